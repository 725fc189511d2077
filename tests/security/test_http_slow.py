"""Clients that are slow, half gone, greedy or deaf: each costs a bounded time, and what they asked is cancelled."""

from __future__ import annotations

import json
import socket
import time

import anyio
import pytest
from http_door import Door, answer_of, opened, until
from raw_client import ENVELOPE

from fumehood.gateway import http, http_server
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio


async def closed_within(stream: anyio.abc.SocketStream, seconds: float) -> bytes:
    """What still came before the other side closed."""
    got = b""
    with anyio.fail_after(seconds):
        try:
            while True:
                got += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return got


def call(tool: str, number: object = 1) -> bytes:
    params = {"name": tool, "arguments": {}, "_meta": ENVELOPE}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


def request(door: Door, body: bytes, **headers: str | None) -> bytes:
    name = json.loads(body)["params"]["name"]
    return door.head(content_length=str(len(body)), mcp_method="tools/call", mcp_name=name, **headers) + body


async def drip(stream: anyio.abc.SocketStream, pieces: bytes | list[bytes], pause_s: float = 0.02) -> None:
    """Send piece by piece."""
    for piece in pieces:
        await stream.send(piece if isinstance(piece, bytes) else bytes([piece]))
        await anyio.sleep(pause_s)


@pytest.mark.parametrize("before", ["nothing", "a byte at a time"])
async def test_a_head_that_never_ends(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.5)
    async with opened() as door, await door.connect() as stream:
        began = time.monotonic()
        if before == "a byte at a time":
            with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(5):
                await drip(stream, door.head() * 100)
        else:
            await closed_within(stream, 5)
        assert 0.4 < time.monotonic() - began < 3
        await stream.aclose()


async def test_a_second_head_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.5)
    async with opened() as door, await door.connect() as stream:
        await stream.send(request(door, call("echo")))
        assert (await answer_of(stream)).status == 200
        began = time.monotonic()
        await stream.send(door.head()[:-2])
        await closed_within(stream, 5)
        assert time.monotonic() - began < 3


async def test_a_body_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.5)
    async with opened() as door, await door.connect() as stream:
        await stream.send(door.head(content_length="1000") + b"{")
        assert (await answer_of(stream)).status == 408
        await closed_within(stream, 5)
        assert door.spine.pids == []


@pytest.mark.parametrize("how", ["length", "chunks"])
async def test_a_body_over_the_limit(how: str) -> None:
    async with opened() as door, await door.connect() as stream:
        if how == "length":
            await stream.send(door.head(content_length=str(4 * 2**20 + 1)))
        else:
            await stream.send(door.head(transfer_encoding="chunked"))
            with pytest.raises(anyio.BrokenResourceError):
                await drip(stream, [b"10000\r\n" + b" " * 65536 + b"\r\n"] * 1000, 0)
            return
        answer = await answer_of(stream)
        assert (answer.status, answer.message["error"]["code"]) == (413, -32600)


@pytest.mark.parametrize(
    "headers",
    [{"x": "y" * 20_000}, {f"x{number}": "y" for number in range(200)}, {"x": "y" * 10_000_000}],
    ids=["one of 20 kB", "200 of them", "one of 10 MB"],
)
async def test_giant_headers(headers: dict[str, str]) -> None:
    async with opened() as door, await door.connect() as stream:
        got = b""
        try:
            await stream.send(door.head(content_length="2", **headers) + b"{}")
            got = await closed_within(stream, 5)
        except anyio.BrokenResourceError:
            pass  # cut off while it was still writing
        assert not got or got.split()[1] in (b"400", b"431")
        assert door.spine.pids == []


@pytest.mark.parametrize("era", ["modern", "older"])
@pytest.mark.parametrize("how", ["closes", "closes its sending half"])
async def test_a_client_that_leaves_cancels_its_call(era: str, how: str) -> None:
    async with opened() as door:
        asked = door if era == "modern" else await door.older()
        assert (await asked.call("echo")).status == 200
        before = len(door.spine.pids)
        stream = await door.connect()
        await stream.send(request(asked, call("hang") if era == "modern" else call_older("hang")))
        await until(lambda: len(door.spine.pids) > before)
        left = time.monotonic()
        if how == "closes":
            await stream.aclose()
        else:
            await stream.send_eof()
        await until(lambda: door.spine.outcomes[-1][1].reason is Reason.CANCELLED)
        assert door.spine.removed_at_s[-1] - left < 0.5
        await stream.aclose()
        assert (await asked.call("echo", 2)).status == 200


def call_older(tool: str, number: object = 1) -> bytes:
    params = {"name": tool, "arguments": {}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


async def test_a_client_that_does_not_read_its_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "STALL_S", 0.5)
    async with opened(result_bytes=2**24) as door:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await anyio.to_thread.run_sync(lambda: (raw.setblocking(True), raw.connect(("127.0.0.1", door.port))))
        await anyio.to_thread.run_sync(raw.sendall, request(door, call("huge")))
        await until(lambda: [call.tool for call, _ in door.spine.outcomes][-1:] == ["huge"])
        await anyio.sleep(2)
        got = await anyio.to_thread.run_sync(_rest, raw)
        assert len(got) < 10 * 2**20, "it was cut before the whole answer"
        assert (await door.call("echo", 2)).status == 200


def _rest(raw: socket.socket) -> bytes:
    got = b""
    try:
        while chunk := raw.recv(65536):
            got += chunk
    except ConnectionError:
        pass
    finally:
        raw.close()
    return got


async def test_connections_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(http_server, "HEAD_S", 1.0)
    async with opened() as door:
        streams = [await door.connect() for _ in range(30)]
        await anyio.sleep(0.2)
        over = [stream for stream in streams if await is_closed(stream)]
        assert len(over) == 22
        await anyio.sleep(1.2)  # the others said nothing either
        assert (await door.call("echo")).status == 200
        for stream in streams:
            await stream.aclose()


async def is_closed(stream: anyio.abc.SocketStream) -> bool:
    with anyio.move_on_after(0.05):
        try:
            await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True
    return False


async def test_the_next_request_before_the_answer_hides_nothing() -> None:
    async with opened() as door:
        assert (await door.call("echo")).status == 200
        stream = await door.connect()
        await stream.send(request(door, call("hang")))
        await anyio.sleep(0.3)
        await stream.send(request(door, call("echo", 2)))
        await until(lambda: door.spine.outcomes[-1][1].reason is Reason.CANCELLED)
        await stream.aclose()


async def test_the_end_of_the_gateway_ends_every_call() -> None:
    async with opened() as door:
        older = await door.older()
        streams = [await door.connect() for _ in range(2)]
        await streams[0].send(request(door, call("hang")))
        await streams[1].send(request(older, call_older("hang")))
        await until(lambda: len(door.spine.pids) == 4)  # a reading of each era
        spine = door.spine
    assert [outcome.reason for call_, outcome in spine.outcomes if call_.tool == "hang"] == [Reason.CANCELLED] * 2
    for stream in streams:
        await stream.aclose()
