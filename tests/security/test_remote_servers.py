"""Attacks by remote MCP servers, by who controls their names, and by clients behind the gateway. Everything on loopback, over TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from http_door import opened
from remote_world import (
    LOOPBACK,
    STREAM,
    Asked,
    Say,
    Tokens,
    World,
    answer,
    event,
    modern,
    older_server,
    result,
    scripted,
    text,
    world,
)

from fumehood.faults import FumehoodError
from fumehood.model import Result
from fumehood.ports import Issued, LeaseRequest, Outward
from fumehood.reach import NetworkLimits, Secret, SecretForm
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio
METADATA = "169.254.169.254"


async def ended(open_: World, **arguments: Any) -> tuple[Result, Reason | None]:
    """How one call of the tool `t` ended, by its record."""
    await open_.call("t", **arguments)
    return open_.last.result, open_.last.reason


def says(*parts: bytes) -> Say:
    """A server that answers a call with these bytes, whatever it was asked."""

    async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
        number = json.dumps(asked.message["id"]).encode()
        for part in parts:
            writer.write(part.replace(b"@ID@", number))
            await writer.drain()

    return modern(say)


ANSWERED = b'{"jsonrpc":"2.0","id":@ID@,"result":{"resultType":"complete","content":[{"type":"text","text":"ok"}]}}'


# Names and addresses


class _Names(asyncio.DatagramProtocol):
    """A name server that answers each question with what `found` says at that moment."""

    def __init__(self, found: Callable[[], list[str]]) -> None:
        self._found = found
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = dns.message.from_wire(data)
        reply = dns.message.make_response(question)
        first = question.question[0]
        if first.rdtype == dns.rdatatype.A:
            self.asked += 1
            reply.answer.append(dns.rrset.from_text(first.name, 0, "IN", "A", *self._found()))
        self._transport.sendto(reply.to_wire(), addr)


@asynccontextmanager
async def names(found: Callable[[], list[str]]) -> AsyncIterator[Outward]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Names(found), local_addr=("127.0.0.1", 0))
    try:
        yield Outward(resolvers=(f"127.0.0.1:{transport.get_extra_info('sockname')[1]}",))
    finally:
        transport.close()


async def test_a_name_that_leads_to_a_private_address_is_not_dialled_unless_its_network_is_named() -> None:
    async with scripted(says(answer(ANSWERED))) as far, world(far.url, addresses=()) as open_:
        with pytest.raises(Exception, match="upstream_not_allowed"):
            await open_.ask("tools/list")
        assert far.connections == 0
        assert open_.spine.egress("refused")[0]["reason"] == "address_not_allowed"


async def test_a_name_that_leads_to_the_metadata_service_is_not_dialled_whatever_else_is_named() -> None:
    async with names(lambda: [METADATA]) as outward, world("https://far.example/mcp", outward=outward) as open_:
        with pytest.raises(Exception, match="upstream_not_allowed"):
            await open_.ask("tools/list")
        assert open_.spine.egress("connect") == []


async def test_of_several_addresses_only_the_one_that_was_judged_is_dialled() -> None:
    async with (
        names(lambda: [METADATA, "127.0.0.1"]) as outward,
        scripted(says(answer(ANSWERED)), "far.example") as far,
        world(far.url, outward=outward) as open_,
    ):
        assert await ended(open_) == (Result.OK, None)
        assert {each["address"] for each in open_.spine.egress("connect")} == {"127.0.0.1"}


async def test_a_name_that_is_bound_anew_between_calls_is_judged_anew() -> None:
    now = ["127.0.0.1"]
    async with (
        names(lambda: now) as outward,
        scripted(says(answer(ANSWERED)), "far.example") as far,
        world(far.url, outward=outward) as open_,
    ):
        assert await ended(open_) == (Result.OK, None)
        before = far.connections
        now[0] = METADATA
        open_.spine.ports.outward.shared.clear()  # what was resolved before has become too old
        assert await ended(open_) == (Result.FAILED, Reason.UPSTREAM_NOT_ALLOWED)
        assert far.connections == before


# TLS


async def test_without_a_certificate_of_a_trusted_authority_nothing_is_asked() -> None:
    async with scripted(says(answer(ANSWERED))) as far, world(far.url, trusted=False) as open_:
        with pytest.raises(Exception, match="upstream_untrusted"):
            await open_.ask("tools/list")
        assert far.asked == []


async def test_a_certificate_of_another_name_is_none() -> None:
    async with scripted(says(answer(ANSWERED)), "other.example") as far, world(f"https://localhost:{far.port}/mcp") as open_:
        with pytest.raises(Exception, match="upstream_untrusted"):
            await open_.ask("tools/list")
        assert far.asked == []


async def test_a_server_without_tls_hears_nothing_of_a_call() -> None:
    heard: list[Asked] = []

    async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
        heard.append(asked)
        writer.write(answer(b"{}"))

    async with scripted(say, tls=False) as far, world(far.url, wall_s=2.0) as open_:
        with pytest.raises(Exception, match=r"upstream_unreachable|wall"):
            await open_.ask("tools/list")
        assert heard == []


# Credentials that are not ours to give


async def test_the_clients_own_token_never_reaches_the_server() -> None:
    async with scripted(says(answer(ANSWERED))) as far, world(far.url) as open_, opened(behind=open_.front) as door:
        token = door.token
        said = await door.ask("tools/call", {"name": "t", "arguments": {}, "_meta": {"x/secret": token}}, mcp_name="t")
        assert said.message["result"]["content"][0]["text"] == "ok"
        assert len(far.asked) == 3
        for asked in far.asked:
            assert "authorization" not in asked.headers
            assert token not in json.dumps([asked.target, asked.headers, asked.body.decode()])


# What servers answer


@pytest.mark.parametrize("location", [f"http://{METADATA}/latest/meta-data/", "https://localhost/elsewhere"])
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_no_redirect_is_followed(status: str, location: str) -> None:
    async with scripted(says(answer(b"", status, Location=location))) as far, world(far.url) as open_:
        assert await ended(open_) == (Result.FAILED, Reason.UPSTREAM_REFUSED)
        assert location.split("/")[2] in open_.last.detail
        assert len(far.asked) == 3, "the list, and one call"
        assert {each["port"] for each in open_.spine.egress("connect")} == {far.port}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(b"no", "401 Unauthorized", WWW_Authenticate='Bearer error="invalid_token"'), Reason.UPSTREAM_UNAUTHORIZED),
        (answer(b"no", "403 Forbidden"), Reason.UPSTREAM_UNAUTHORIZED),
        (answer(b"no", "404 Not Found"), Reason.UPSTREAM_REFUSED),
        (answer(b"no", "429 Too Many Requests", Retry_After="7"), Reason.UPSTREAM_BUSY),
        (answer(b"no", "500 Internal Server Error"), Reason.UPSTREAM_FAILED),
        (answer(b"no", "503 Service Unavailable"), Reason.UPSTREAM_BUSY),
        (answer(b"", "202 Accepted"), Reason.SERVER_GARBAGE),
        (answer(ANSWERED, kind="text/html"), Reason.SERVER_GARBAGE),
        (answer(ANSWERED, Content_Encoding="gzip"), Reason.SERVER_GARBAGE),
        (answer(b'{"jsonrpc":"2.0","id":"someone-elses","result":{"content":[]}}'), Reason.SERVER_GARBAGE),
        (answer(b'{"jsonrpc":"2.0","id":"someone-elses","error":{"code":-1,"message":"x"}}', "400 Bad"), Reason.UPSTREAM_REFUSED),
        (answer(b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":[],"content":[{}]}}'), Reason.SERVER_GARBAGE),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\nContent-Length: 2\r\n\r\n{}", Reason.SERVER_GARBAGE),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", Reason.SERVER_GARBAGE),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Reason.SERVER_GARBAGE),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", Reason.SERVER_GARBAGE),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 50, Reason.SERVER_GARBAGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", Reason.SERVER_GARBAGE),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Reason.SERVER_GARBAGE),
        (b"", Reason.SERVER_DIED),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{", Reason.SERVER_DIED),
        (STREAM + b": nothing\n\n", Reason.SERVER_DIED),
        (STREAM + b"data: " + ANSWERED, Reason.SERVER_DIED),
        (STREAM + b"event: other\ndata: " + ANSWERED + b"\n\n", Reason.SERVER_DIED),
    ],
)  # fmt: skip
async def test_what_is_no_answer_ends_the_call_with_a_code(said: bytes, reason: Reason) -> None:
    async with scripted(says(said)) as far, world(far.url) as open_:
        result_, found = await ended(open_)
        assert (result_, found) == (Result.FAILED, reason), open_.last.detail
        assert "stderr" not in (open_.last.remedy or reason.remedy), "there is none to read"


async def test_a_refused_credential_is_named_with_what_the_server_said_of_it() -> None:
    said = answer(b"", "401 Unauthorized", WWW_Authenticate='Bearer scope="mcp:tools"\x1b[2J')
    async with scripted(says(said)) as far, world(far.url) as open_:
        await open_.call("t")
        assert "mcp:tools" in open_.last.detail
        assert "\x1b" not in open_.last.detail
        assert open_.last.remedy is not None
        assert "upstream.credential" in open_.last.remedy


async def test_an_error_of_the_protocol_is_passed_on_whatever_its_status() -> None:
    body = b'{"jsonrpc":"2.0","id":@ID@,"error":{"code":-32602,"message":"no such thing"}}'
    for said in (body, body.replace(b"@ID@", b"null")):

        async def say(asked: Asked, writer: asyncio.StreamWriter, said: bytes = said) -> None:
            writer.write(answer(said.replace(b"@ID@", json.dumps(asked.message["id"]).encode()), "400 Bad Request"))

        async with scripted(modern(say)) as far, world(far.url) as open_:
            with pytest.raises(Exception, match="no such thing"):
                await open_.call("t")


async def test_a_line_under_another_id_is_dropped_before_the_answer() -> None:
    forged = [event({"id": each, "result": text("forged")}) for each in (0, 1, "1", None)]
    async with scripted(says(STREAM, *forged, b"data: " + ANSWERED + b"\n\n")) as far, world(far.url) as open_:
        assert await open_.told("t") == "ok"


# Sizes and time


@pytest.mark.parametrize("shape", ["json", "event", "one line", "chunked"])
async def test_an_answer_over_the_limit_is_not_read_to_its_end(shape: str) -> None:
    many = b"x" * 65536
    written = 0

    async def say(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        heads = {
            "json": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4000000000\r\n\r\n[",
            "chunked": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            "event": STREAM + b"data: [\n",
            "one line": STREAM + b"data: [",
        }
        writer.write(heads[shape])
        while written < 64 * 2**20:
            writer.write({"event": b"data: " + many + b"\n", "chunked": b"10000\r\n" + many + b"\r\n"}.get(shape, many))
            await writer.drain()
            written += len(many)

    async with scripted(modern(say)) as far, world(far.url, result_bytes=2**20) as open_:
        assert await ended(open_) == (Result.FAILED, Reason.RESULT_TOO_LARGE)
    assert written < 16 * 2**20


async def drips(asked: Asked, writer: asyncio.StreamWriter) -> None:
    del asked
    while True:
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(0.02)


async def comments(asked: Asked, writer: asyncio.StreamWriter) -> None:
    del asked
    writer.write(STREAM)
    while True:
        writer.write(b": still there\n\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("say", [drips, comments])
async def test_bytes_that_say_nothing_keep_no_call_alive(say: Say) -> None:
    async with scripted(modern(say)) as far:
        async with world(far.url, wall_s=0.5) as open_:
            assert await ended(open_) == (Result.KILLED, Reason.WALL)
        async with world(far.url, wall_s=20.0, idle_s=0.5) as open_:
            assert await ended(open_) == (Result.KILLED, Reason.IDLE)


async def test_an_endless_stream_of_messages_ends_with_the_calls_share_of_the_network() -> None:
    async def floods(asked: Asked, writer: asyncio.StreamWriter) -> None:
        del asked
        writer.write(STREAM)
        while True:
            writer.write(b": " + b"x" * 60_000 + b"\n")
            await writer.drain()

    async with scripted(modern(floods)) as far, world(far.url, network=NetworkLimits(bytes_in=2**20)) as open_:
        assert await ended(open_) == (Result.FAILED, Reason.UPSTREAM_LIMIT)
        assert "network.limits.bytes_in" in (open_.last.remedy or "")


async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
    raise AssertionError((asked, writer))


async def test_arguments_over_the_calls_share_of_the_network_are_not_sent() -> None:
    schema = {"type": "object", "properties": {"words": {"type": "string"}}}
    say = modern(never, inputSchema=schema)
    async with scripted(say) as far, world(far.url, network=NetworkLimits(bytes_out=20_000)) as open_:
        assert await ended(open_, words="x" * 30_000) == (Result.FAILED, Reason.UPSTREAM_LIMIT)
        assert [asked.message["method"] for asked in far.asked] == ["server/discover", "tools/list"]


# Sessions of older servers


async def test_a_session_that_is_gone_is_begun_again_once() -> None:
    for times, expected in ((1, (Result.OK, None)), (9, (Result.FAILED, Reason.UPSTREAM_REFUSED))):
        left = times

        async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
            nonlocal left
            left -= 1
            writer.write(answer(b"", "404 Not Found") if left >= 0 else answer(result(asked, **text("ok"))))

        async with scripted(older_server(say)) as far, world(far.url) as open_:
            await open_.ask("tools/list")
            begun = len(far.asked)
            assert await ended(open_) == expected
            calls = [asked.message["method"] for asked in far.asked[begun:] if asked.method == "POST"]
            assert calls == ["initialize", "notifications/initialized", "tools/call"] * 2
            assert all(asked.headers["mcp-session-id"] == "s-1" for asked in far.asked[begun + 1 : begun + 3])


@pytest.mark.parametrize("session", ["a b", "a\tb", "x" * 2000, "\x80"])
async def test_a_session_id_that_is_none_is_never_sent_back(session: str) -> None:
    async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(result(asked, **text("ok"))))

    async with scripted(older_server(say, session)) as far, world(far.url) as open_:
        with pytest.raises(Exception, match="server_garbage"):
            await open_.ask("tools/list")
        assert all("mcp-session-id" not in asked.headers for asked in far.asked)


async def test_a_name_is_sent_in_the_head_so_that_it_cannot_end_a_line() -> None:
    async with scripted(says(answer(ANSWERED))) as far, world(far.url, resources=None) as open_:
        with pytest.raises(Exception, match="server_garbage"):  # it answers as a tool does
            await open_.ask("resources/read", uri="file:///a\r\nX-Forged: 1\r\n\r\n")
        assert far.asked[-1].message["method"] == "resources/read"
        assert far.asked[-1].headers["mcp-name"].startswith("=?base64?")
        assert "x-forged" not in far.asked[-1].headers


async def test_loopback_is_named_for_these_tests_alone() -> None:
    assert LOOPBACK == ("127.0.0.0/8",)


# The credential


async def test_without_a_lease_nothing_is_asked() -> None:
    class Broken(Tokens):
        async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
            raise FumehoodError(Reason.LEASE_FAILED, f"as the test asked {request.lease, handle}")

    async with scripted(says(answer(ANSWERED))) as far, world(far.url, tokens=Broken()) as open_:
        with pytest.raises(Exception, match="lease_failed"):
            await open_.ask("tools/list")
        assert far.connections == 0


async def test_a_token_is_not_sent_to_whom_no_trusted_certificate_names() -> None:
    async with scripted(says(answer(ANSWERED)), "other.example") as far:
        async with world(f"https://localhost:{far.port}/mcp", tokens=Tokens()) as open_:
            with pytest.raises(Exception, match="upstream_untrusted"):
                await open_.ask("tools/list")
        assert far.asked == []


async def test_a_token_that_would_end_a_line_is_not_sent() -> None:
    class Splitting(Tokens):
        async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
            issued = await super().issue(request, handle)
            return replace(issued, secret=Secret(form=SecretForm.TOKEN, parts={"token": "a\r\nX-Forged: 1"}))

    async with scripted(says(answer(ANSWERED))) as far, world(far.url, tokens=Splitting()) as open_:
        with pytest.raises(Exception, match="upstream_unauthorized") as caught:
            await open_.ask("tools/list")
        assert "Forged" not in str(caught.value)
        assert far.asked == []


@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_a_server_that_sends_the_token_back_raises_an_alarm_and_the_client_does_not_get_it(cut: int) -> None:
    async def echoes(asked: Asked, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(result(asked, **text(f"you said {asked.headers['authorization']}"))).encode()
        writer.write(STREAM)
        for at in range(0, len(body), cut):
            writer.write((b"data: " if at == 0 else b"") + body[at : at + cut])
            await writer.drain()
        writer.write(b"\n\n")

    tokens = Tokens()
    async with scripted(modern(echoes)) as far, world(far.url, tokens=tokens) as open_:
        said = await open_.told("t")
        assert said.startswith("you said Bearer ")
        assert not any(token in said for token in tokens.revoked)
        assert len(open_.spine.egress("alarm")) == 1


async def test_a_refused_token_is_named_and_not_shown() -> None:
    said = answer(b"", "401 Unauthorized", WWW_Authenticate='Bearer error="invalid_token"')
    async with scripted(says(said)) as far, world(far.url, tokens=Tokens()) as open_:
        await open_.call("t")
        assert "the credential issuer" in open_.last.detail
        assert "secret-token" not in repr(open_.last)
