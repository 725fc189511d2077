"""What a box tries over HTTP against a gate that judges its requests. Each test is named by the attack."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest

from terminating import NAME, Heard, plain, terminated

pytestmark = pytest.mark.anyio
ALLOW = ("GET /public/**", "POST /public/upload")


def answered(answer: bytes) -> dict[str, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


async def test_a_request_that_no_pattern_allows_never_leaves_and_says_what_to_add(tmp_path: Path) -> None:
    async with terminated(tmp_path, allow=ALLOW) as inside:
        answer = await inside.say("DELETE /public/a?token=hunter2 HTTP/1.1|HOST")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert "DELETE /public/a" in answered(answer)["remedy"]
        assert inside.server.connections == 0
        assert inside.refused == ["http_not_allowed"]
        assert "hunter2" not in repr(inside.entries)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("CONNECT evil.example:443 HTTP/1.1|HOST", 403),
        ("GET https://evil.example/public/a HTTP/1.1|HOST", 421),
        ("GET /public/a HTTP/1.1|Host: evil.example", 421),
        ("GET /public/a HTTP/1.1|HOST|HOST", 400),
        ("GET /public/..%2fadmin HTTP/1.1|HOST", 403),
        ("POST /public/upload HTTP/1.1|HOST|Content-Length: 4|Transfer-Encoding: chunked", 400),
        ("GET /public/a HTTP/1.1|HOST|Connection: Upgrade|Upgrade: h2c", 403),
        ("GET /public/a HTTP/1.1|HOST|X-Original-URL: /admin", 403),
        ("PRI * HTTP/2.0||SM", 421),
    ],
)  # fmt: skip
async def test_a_request_that_servers_read_differently_never_leaves(tmp_path: Path, text: str, status: int) -> None:
    async with terminated(tmp_path, allow=ALLOW) as inside:
        assert (await inside.say(text)).startswith(f"HTTP/1.1 {status} ".encode())
        assert inside.server.connections == 0
        assert len(inside.refused) == 1


async def test_a_second_host_on_a_connection_that_was_kept(tmp_path: Path) -> None:
    async with terminated(tmp_path, allow=ALLOW) as inside:
        first = inside.head("GET /public/a HTTP/1.1|HOST").decode()
        answer = await inside.say(first[:-4].replace("\r\n", "|") + "||GET /public/b HTTP/1.1|Host: evil.example")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"HTTP/1.1 421 " in answer
        assert [heard.target for heard in inside.server.heard] == ["/public/a"]


async def test_requests_sent_ahead_are_judged_one_by_one_and_answered_in_order(tmp_path: Path) -> None:
    async with terminated(tmp_path, allow=ALLOW) as inside:
        texts = [f"GET /public/{n} HTTP/1.1|HOST||" for n in range(3)]
        answer = await inside.say("".join(texts) + "GET /admin HTTP/1.1|HOST")
        assert [answer.find(f"GET /public/{n} ".encode()) > 0 for n in range(3)] == [True] * 3
        assert [heard.target for heard in inside.server.heard] == ["/public/0", "/public/1", "/public/2"]
        assert inside.server.connections == 1


async def test_a_request_hidden_in_a_body_is_a_body(tmp_path: Path) -> None:
    hidden = b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
    async with terminated(tmp_path, allow=("POST /public/a",)) as inside:
        text = f"POST /public/a HTTP/1.1|HOST|Connection: close|Content-Length: {len(hidden)}"
        assert (await inside.say(text, hidden)).startswith(b"HTTP/1.1 200 ")
        assert [(heard.target, heard.body) for heard in inside.server.heard] == [("/public/a", hidden)]


@pytest.mark.parametrize("chunk", [b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"])
async def test_chunks_are_framed_anew(tmp_path: Path, chunk: bytes) -> None:
    async with terminated(tmp_path, allow=("POST /public/a",)) as inside:
        await inside.say("POST /public/a HTTP/1.1|HOST|Connection: close|Transfer-Encoding: chunked", chunk)
        assert [heard.body for heard in inside.server.heard] == [b"hello"]


@pytest.mark.parametrize("chunk", [b"5\nhello\n0\n\n\r\n", b"-5\r\nhello", b"0x5\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n"])
async def test_chunks_that_servers_read_differently_end_the_connection(tmp_path: Path, chunk: bytes) -> None:
    async with terminated(tmp_path, allow=("POST /public/a",)) as inside:
        answer = await inside.say("POST /public/a HTTP/1.1|HOST|Transfer-Encoding: chunked", chunk)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert inside.refused == ["http_malformed"]


@pytest.mark.parametrize("asked", ["evil.example", None])
async def test_a_handshake_for_another_name_or_for_none(tmp_path: Path, asked: str | None) -> None:
    async with terminated(tmp_path) as inside:
        context = inside.context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await inside.connect(context=context, name=asked or "")
        await asyncio.sleep(0.05)
        assert inside.refused == ["tls_inside"]


async def test_tls_1_1_and_http_2_by_alpn_are_not_spoken(tmp_path: Path) -> None:
    async with terminated(tmp_path) as inside:
        context = inside.context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await inside.connect(context=context)
        spoken = writer.get_extra_info("ssl_object")
        assert (spoken.selected_alpn_protocol(), spoken.version()) == ("http/1.1", "TLSv1.3")
        writer.close()
        old = inside.context()
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await inside.connect(context=old)
        again = writer.get_extra_info("ssl_object").session
        assert not again.has_ticket
        writer.close()


async def test_an_upstream_certified_for_another_name(tmp_path: Path) -> None:
    async with terminated(tmp_path, certified="evil.example") as inside:
        answer = await inside.say("GET / HTTP/1.1|HOST")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert answered(answer)["why"] == "tls_upstream"
        assert inside.server.heard == []


async def test_an_upstream_whose_authority_nobody_trusts(tmp_path: Path) -> None:
    async with terminated(tmp_path, trusted=False) as inside:
        assert (await inside.say("GET / HTTP/1.1|HOST")).startswith(b"HTTP/1.1 502 ")
        assert inside.refused == ["tls_upstream"]
        assert inside.server.heard == []


async def test_a_101_that_nobody_asked_for_opens_no_relay(tmp_path: Path) -> None:
    async def switch(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw")

    async with terminated(tmp_path) as inside:
        inside.server.answers["a"] = inside.server.answers["ws"] = switch
        for target, more in (("/a", ""), ("/ws", "|Connection: Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")):
            answer = await inside.say(f"GET {target} HTTP/1.1|HOST{more}")
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"raw" not in answer
        assert inside.refused == ["http_upstream"] * 2


async def test_a_head_that_drips_has_one_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fumehood.egress.terminate.HEAD_S", 0.3)
    async with terminated(tmp_path) as inside:
        _, writer = await inside.connect()
        begun = asyncio.get_running_loop().time()

        async def drip() -> None:
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.02)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(drip(), 3)
        assert asyncio.get_running_loop().time() - begun < 2
        assert inside.refused == ["http_slow"]


async def test_a_second_answer_of_an_upstream_is_not_the_next_requests(tmp_path: Path) -> None:
    async def twice(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"one") + plain(b"poison"))

    async with terminated(tmp_path) as inside:
        inside.server.answers["twice"] = twice
        answer = await inside.say("GET /twice HTTP/1.1|HOST||GET /b HTTP/1.1|HOST|Connection: close")
        assert b"poison" not in answer
        assert b"GET /b " in answer
        assert inside.server.connections == 2


async def test_an_answer_that_breaks_off_does_not_end_as_if_it_were_whole(tmp_path: Path) -> None:
    async def half(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        raise ConnectionResetError

    async with terminated(tmp_path) as inside:
        inside.server.answers["half"] = half
        answer = await inside.say("GET /half HTTP/1.1|HOST")
        assert b"0\r\n\r\n" not in answer


async def test_an_own_certificate_speaks_for_no_other_name(tmp_path: Path) -> None:
    """A tool that stole the authority's key could still not play another server to the programs of its box."""
    async with terminated(tmp_path) as inside:
        forged = inside.holdings["http.authority"].make_context("evil.example")
        listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=forged)
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            await asyncio.open_connection("127.0.0.1", port, ssl=inside.context(), server_hostname="evil.example")
        listening.close()


async def test_nothing_on_the_connection_of_a_plain_rule_is_tls_nor_the_other_way_round(tmp_path: Path) -> None:
    async with terminated(tmp_path, insecure=True) as inside:
        assert inside.pem == b""
        assert (await inside.say("GET / HTTP/1.1|HOST|Connection: close", tls=False)).startswith(b"HTTP/1.1 200 ")
    async with terminated(tmp_path) as inside:
        assert await inside.say("GET / HTTP/1.1|HOST", tls=False) == b""
        assert inside.refused == ["tls_inside"]
    assert NAME
