"""What a box tries to get at the credential that its gate writes into requests. Each test is named by the attack."""

from __future__ import annotations

import asyncio
import base64
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from fumehood.egress.inject import Placeholders
from fumehood.reach import CredentialUse, NetworkLimits, Scheme, Secret, SecretForm
from fumehood.screening.spellings import forms
from terminating import SECRET, TOKEN, USE, Heard, plain, terminated

pytestmark = pytest.mark.anyio
GET = "GET /a HTTP/1.1|HOST|Connection: close"
QUERY = CredentialUse(name="maps", source="maps", query="key", scheme=Scheme.RAW, variable="MAPS_KEY")


def has_secret(data: bytes) -> bool:
    return any(spelling in data for spelling in forms(TOKEN, "x-access-token"))


async def test_the_credential_is_the_servers_and_never_the_boxs(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        placeholder = inside.environment["GITHUB_TOKEN"]
        answer = await inside.say(f"{GET}|Authorization: Bearer {placeholder}")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert inside.server.heard[0].header("authorization") == [f"Bearer {TOKEN}"]
        assert not has_secret(answer)
        assert len(placeholder) == len(TOKEN)
        assert TOKEN not in repr(inside.entries)


async def test_an_authorization_of_the_clients_own_does_not_go_beside_ours(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        await inside.say(f"{GET}|Authorization: Bearer of-the-attackers|Accept-Encoding: gzip|Range: bytes=0-3|If-Range: x|TE: trailers|Trailer: x")
        heard = inside.server.heard[0]
        assert heard.header("authorization") == [f"Bearer {TOKEN}"]
        assert heard.header("accept-encoding") == ["identity"]
        assert [heard.header(name) for name in ("range", "if-range", "te", "trailer")] == [[]] * 4


@pytest.mark.parametrize(
    "text",
    [
        "GET /a?q=MINE HTTP/1.1|HOST", "GET /MINE HTTP/1.1|HOST", "GET /a HTTP/1.1|HOST|X-Note: MINE", "GET /a HTTP/1.1|HOST|Cookie: a=MINE",
        "GET /a HTTP/1.1|HOST|X-Auth: Basic BASIC", "GET /a?q=%66umehoodREST HTTP/1.1|HOST", "GET /a HTTP/1.1|HOST|Authorization: Bearer FOREIGN",
        "GET /a?x=FOREIGN HTTP/1.1|HOST",
    ],
)  # fmt: skip
async def test_a_placeholder_in_another_place_or_of_another_task(tmp_path: Path, text: str) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        mine = inside.environment["GITHUB_TOKEN"]
        basic = base64.b64encode(f"x:{mine}".encode()).decode()
        foreign = Placeholders([USE]).token(USE.name)
        text = text.replace("MINE", mine).replace("BASIC", basic).replace("FOREIGN", foreign).replace("REST", mine.removeprefix("fumehood"))
        assert (await inside.say(text)).startswith(b"HTTP/1.1 403 ")
        assert inside.server.connections == 0
        assert inside.refused == ["placeholder_foreign" if foreign in text else "placeholder_misplaced"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_placeholder_in_a_body_even_in_two_pieces(tmp_path: Path, chunked: bool) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        body = b'{"comment": "' + inside.environment["GITHUB_TOKEN"].encode() + b'"}'
        halves = (body[:20], body[20:])
        if chunked:
            sent = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"
            answer = await inside.say("POST /a HTTP/1.1|HOST|Transfer-Encoding: chunked", sent)
        else:
            answer = await inside.say(f"POST /a HTTP/1.1|HOST|Content-Length: {len(body)}", body)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert inside.refused == ["placeholder_misplaced"]
        assert all(body != heard.body for heard in inside.server.heard)


async def test_a_placeholder_after_its_lease_has_ended_or_is_parked(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        await inside.leases.suspend()
        answer = await inside.say(f"{GET}|Authorization: Bearer {inside.environment['GITHUB_TOKEN']}")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert inside.refused == ["credential_gone"]
        assert inside.server.heard == []


async def test_a_lease_that_ends_between_two_requests_of_one_connection(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        reader, writer = await inside.connect()
        writer.write(inside.head("GET /a HTTP/1.1|HOST"))
        await reader.readuntil(b"}")
        await inside.leases.suspend()
        writer.write(inside.head("GET /b HTTP/1.1|HOST"))
        assert b"credential_gone" in await reader.read(-1)
        assert [heard.target for heard in inside.server.heard] == ["/a"]
        writer.close()


async def test_a_credential_never_goes_to_a_server_that_is_not_proved(tmp_path: Path) -> None:
    for more in ({"trusted": False}, {"certified": "evil.example"}):
        async with terminated(tmp_path, use=USE, **more) as inside:  # type: ignore[arg-type]
            assert (await inside.say(GET)).startswith(b"HTTP/1.1 502 ")
            assert inside.server.heard == []


async def test_a_credential_never_goes_over_plain_http(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE, insecure=True) as inside:
        await inside.say(GET, tls=False)
        assert inside.server.heard[0].header("authorization") == []


async def test_a_credential_never_goes_where_method_or_path_do_not_match(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE, allow=("GET /a",)) as inside:
        for text in ("POST /a HTTP/1.1|HOST", "GET /b HTTP/1.1|HOST", "GET /a/../b HTTP/1.1|HOST"):
            assert (await inside.say(text)).startswith(b"HTTP/1.1 403 ")
        assert inside.server.heard == []


async def test_a_parameter_that_the_client_sent_beside_ours(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=QUERY, secret=SECRET) as inside:
        answer = await inside.say(f"GET /a?key={inside.environment['MAPS_KEY']}&x=y&k%65y=mine HTTP/1.1|HOST|Connection: close")
        assert inside.server.heard[0].target == "/a?x=y&key=ghs_S3cretOfTheOperator%2F%2B0123456789abcdef"
        assert not has_secret(answer)


@pytest.mark.parametrize("spelling", list(forms(TOKEN, "x-access-token")), ids=lambda spelling: spelling[:12].decode("latin-1"))
async def test_an_upstream_that_sends_the_secret_back(tmp_path: Path, spelling: bytes) -> None:
    async def reflect(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = spelling.decode("latin-1")
        head = f"HTTP/1.1 302 {text}\r\nLocation: /?a={text}\r\nX-Echo: {text}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: " + spelling + b"\r\n\r\n" + head.encode("latin-1"))
        for byte in spelling * 2:
            writer.write(b"1\r\n" + bytes([byte]) + b"\r\n")
        writer.write(b"0\r\nX-Trailer: " + spelling + b"\r\n\r\n")

    async with terminated(tmp_path, use=replace(USE, scheme=Scheme.BASIC, username="x-access-token")) as inside:
        inside.server.answers["a"] = reflect
        answer = await inside.say(GET)
        assert b"HTTP/1.1 302 fumehood0" in answer
        assert not has_secret(answer.replace(b"\r\n1\r\n", b""))
        assert len(inside.of("alarm")) == 1
        assert inside.of("alarm")[0]["what"] == "secret_echoed"
        assert not has_secret(repr(inside.entries).encode())


async def test_an_upstream_that_compresses_though_it_may_not_is_noted(tmp_path: Path) -> None:
    async def compress(heard: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(gzip.compress(heard.raw), "200 OK", "Content-Encoding: gzip"))

    async with terminated(tmp_path, use=USE) as inside:
        inside.server.answers["a"] = compress
        await inside.say(GET)
        assert inside.of("request")[0]["unscrubbed"] == "gzip"


async def test_a_secret_with_a_line_feed_writes_no_header_of_its_own(tmp_path: Path) -> None:
    secret = Secret(form=SecretForm.TOKEN, parts={"token": "a\r\nX-Evil: b"})
    async with terminated(tmp_path, use=USE, secret=secret) as inside:
        assert (await inside.say(GET)).startswith(b"HTTP/1.1 403 ")
        assert inside.refused == ["credential_unfit"]
        assert inside.server.heard == []


async def test_an_upstream_connection_with_a_credential_is_no_other_connections(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        await asyncio.gather(*(inside.say(GET) for _ in range(3)))
        assert inside.server.connections == 3


async def test_a_refusal_holds_no_secret_when_the_cap_on_bytes_ends_an_injected_answer(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE, limits=NetworkLimits(bytes_in=50)) as inside:
        assert not has_secret(await inside.say(GET))
        assert inside.refused == ["bytes_in"]
        assert not has_secret(repr(inside.entries).encode())
