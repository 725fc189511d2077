"""Bodies, streams and WebSockets through the gate: whole, in order, unbuffered, and in memory that does not grow. With real clients."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

from terminating import NAME, TOKEN, USE, Heard, Inside, terminated

pytestmark = pytest.mark.anyio
WEBSOCKET = "GET /ws HTTP/1.1|HOST|Connection: Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==|Sec-WebSocket-Extensions: permessage-deflate"
BIG = 64 * 2**20


async def run(*argv: str, **env: str) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"], **env}
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode or 0, out, err


def curl(inside: Inside, target: str, *more: str) -> list[str]:
    ca = str(inside.folder / "ca.pem")
    return ["curl", "-sS", "--resolve", f"{NAME}:{inside.port}:127.0.0.1", "--cacert", ca, *more, f"https://{NAME}:{inside.port}{target}"]


async def big(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
    for _ in range(BIG // 2**18):
        writer.write(b"\xa5" * 2**18)
        await writer.drain()


@pytest.mark.parametrize("use", [None, USE], ids=["plain", "injected"])
async def test_a_download_that_nobody_reads_costs_bounded_memory_and_comes_whole(tmp_path: Path, use: object) -> None:
    async with terminated(tmp_path, use=use) as inside:  # type: ignore[arg-type]
        inside.server.answers["big"] = big
        reader, writer = await inside.connect()
        writer.write(inside.head("GET /big HTTP/1.1|HOST|Connection: close"))
        await asyncio.sleep(0.3)
        assert inside.task.budget.used_bytes < 2**20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while data := await reader.read(2**18):
            size += len(data)
            assert data.count(b"\xa5") == len(data)
        assert size == BIG
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 * 1024
        writer.close()


async def test_an_upload_passes_whole_with_curl_that_waits_for_100(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(os.urandom(2**20) * 16)
    async with terminated(tmp_path) as inside:
        code, out, err = await run(*curl(inside, "/upload", "-X", "POST", "-H", "Expect:", "--data-binary", f"@{tmp_path / 'body'}"))
        assert (code, out) == (0, b"16777216"), err
        code, out, err = await run(*curl(inside, "/a", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-d", "waited"))
        assert code == 0, err
        assert b"waited" in out


async def test_a_server_that_refuses_a_body_early_is_heard(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(bytes(2**23))
    async with terminated(tmp_path) as inside:
        _, out, _ = await run(*curl(inside, "/early", "-H", "Expect:", "-w", "%{http_code}", "--data-binary", f"@{tmp_path / 'body'}"))
        assert out.endswith(b"413")


async def test_events_come_when_they_are_sent(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def events(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\n")
        await writer.drain()
        await gate.wait()
        writer.write(b"data: two\n\n")
        await writer.drain()
        raise ConnectionResetError

    async with terminated(tmp_path, use=USE) as inside:
        inside.server.answers["events"] = events
        reader, writer = await inside.connect()
        writer.write(inside.head("GET /events HTTP/1.1|HOST"))
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"one\n\n")).endswith(b"data: one\n\n")
            gate.set()
            await reader.readuntil(b"data: two\n\n")
        writer.close()


async def test_a_client_that_leaves_ends_the_upstreams_connection(tmp_path: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(_: Heard, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        begun.set()
        try:
            await reader.read(1)
        finally:
            ended.set()

    async with terminated(tmp_path) as inside:
        inside.server.answers["hang"] = hang
        _, writer = await inside.connect()
        writer.write(inside.head("GET /hang HTTP/1.1|HOST"))
        await asyncio.wait_for(begun.wait(), 5)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_websocket_is_relayed_once_the_server_agrees(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        reader, writer = await inside.connect()
        writer.write(inside.head(WEBSOCKET) + b"first ")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"second")
        assert await reader.readexactly(12) == b"first second"
        writer.write(b"\x81\x2c" + TOKEN.encode() + b"!")
        assert TOKEN.encode() not in await reader.readexactly(len(TOKEN) + 3)
        heard = inside.server.heard[0]
        assert heard.header("authorization") == [f"Bearer {TOKEN}"]
        assert heard.header("sec-websocket-extensions") == []
        writer.close()


@pytest.mark.parametrize("text", ["HEAD /a HTTP/1.1", "GET /none HTTP/1.1", "GET /same HTTP/1.1"])
async def test_answers_without_a_body_leave_the_connection_in_step(tmp_path: Path, text: str) -> None:
    async def none(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def same(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")

    async with terminated(tmp_path) as inside:
        inside.server.answers |= {"none": none, "same": same}
        answer = await inside.say(f"{text}|HOST||GET /b HTTP/1.1|HOST|Connection: close")
        assert answer.count(b"HTTP/1.1 ") == 2
        assert inside.server.connections == 1


async def test_http_1_0_gets_an_answer_that_ends_with_the_connection(tmp_path: Path) -> None:
    async def chunked(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    async with terminated(tmp_path) as inside:
        inside.server.answers["chunked"] = chunked
        answer = await inside.say("GET /chunked HTTP/1.0|HOST")
        assert answer.endswith(b"\r\n\r\nhello")


async def test_curl_asks_for_http_2_and_falls_back(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        code, out, err = await run(*curl(inside, "/a", "--http2", "-w", "%{http_version}"))
        assert code == 0, err
        assert out.endswith(b"1.1")
        assert TOKEN.encode() not in out


@pytest.mark.parametrize(
    "client",
    [
        ("python3", sys.executable, "-c", "import os,urllib.request as u; print(u.urlopen(os.environ['URL']).read())"),
        ("httpx2", sys.executable, "-c", "import os,httpx2 as h; print(h.get(os.environ['URL']).text)"),
        ("node", "node", "-e", "fetch(process.env.URL).then(r => r.text()).then(t => console.log(t))"),
        ("git", "git", "-c", "http.extraHeader=X-Git: yes", "ls-remote", "URL"),
    ],
    ids=lambda client: client[0],
)
async def test_real_clients_believe_the_supplied_bundle_alone(tmp_path: Path, client: tuple[str, ...]) -> None:
    """They are given the gate's variables, and find the name in no DNS: `localhost` stands for it, certified like any other."""
    _, program, *argv = client
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on this host")
    async with terminated(tmp_path, name="localhost") as inside:
        url = f"https://localhost:{inside.port}/a"
        env = {name: str(tmp_path / "ca.pem") for name, value in inside.environment.items() if value == "/run/fumehood/ca.pem"}
        await run(program, *(arg.replace("URL", url) if arg == "URL" else arg for arg in argv), URL=url, **env)
        assert inside.server.heard
        assert inside.refused == []
