"""What a box sends to a host beside the credential that its gate writes: no other secret, however the request is cut.

Attack: a tool that was talked into it posts what it has read, or was given by mistake, to a place that it may reach as somebody.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from fumehood.model import Excuse, OnSecret, Secrets
from terminating import USE, Inside, terminated

pytestmark = pytest.mark.anyio
GITHUB = "ghp" + "_" + "Ab3dEf6hIj9k" * 3
OTHERS = "canary+of/another-lease"
REDACT = Secrets(bodies=OnSecret.REDACT)


async def post(inside: Inside, body: bytes, *, chunks: int = 0, more: str = "") -> bytes:
    if not chunks:
        return await inside.say(f"POST /a HTTP/1.1|HOST|Connection: close|Content-Length: {len(body)}{more}", body)
    pieces = [body[at : at + chunks] for at in range(0, len(body), chunks)]
    sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return await inside.say(f"POST /a HTTP/1.1|HOST|Connection: close|Transfer-Encoding: chunked{more}", sent)


def whole(inside: Inside) -> bytes:
    return b"".join(heard.raw + heard.body for heard in inside.server.heard)


@pytest.mark.parametrize("chunks", [0, 1, 7, 20])
@pytest.mark.parametrize("secret", [GITHUB, OTHERS])
async def test_a_secret_in_a_body_is_refused_however_it_is_cut(tmp_path: Path, chunks: int, secret: str) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        inside.task.known.enter_texts("another lease", [OTHERS])
        answer = await post(inside, json.dumps({"comment": f"it is {secret}"}).encode(), chunks=chunks)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert inside.refused == ["secret_in_request"]
        assert secret.encode() not in whole(inside)
        assert secret not in repr(inside.entries)
        assert secret.encode() not in answer


@pytest.mark.parametrize("target", [f"/a?token={GITHUB}", f"/a/{GITHUB}", f"/a?x={quote(OTHERS, safe='')}", f"/a?x={''.join(f'%{ord(char):02x}' for char in GITHUB)}"])
async def test_a_secret_in_a_path_or_query_in_any_spelling_is_refused_before_anybody_is_dialled(tmp_path: Path, target: str) -> None:
    async with terminated(tmp_path, use=USE) as inside:
        inside.task.known.enter_texts("another lease", [OTHERS])
        assert (await inside.say(f"GET {target} HTTP/1.1|HOST|Connection: close")).startswith(b"HTTP/1.1 403 ")
        assert inside.refused == ["secret_in_request"]
        assert inside.server.connections == 0


async def test_a_secret_in_a_header_is_refused_even_where_bodies_are_redacted(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE, secrets=REDACT) as inside:
        answer = await inside.say(f"GET /a HTTP/1.1|HOST|Connection: close|X-Note: {GITHUB}")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"the header x-note" in answer


@pytest.mark.parametrize("chunks", [0, 1, 13])
async def test_redacted_a_body_keeps_its_length_and_what_else_it_says(tmp_path: Path, chunks: int) -> None:
    async with terminated(tmp_path, use=USE, secrets=REDACT) as inside:
        body = json.dumps({"a": 1, "comment": f"it is {GITHUB} here"}).encode()
        assert (await post(inside, body, chunks=chunks)).startswith(b"HTTP/1.1 200 ")
        (heard,) = inside.server.heard
        assert len(heard.body) == len(body)
        assert GITHUB[12:].encode() not in heard.body
        assert json.loads(heard.body)["comment"].startswith("it is ")
        assert json.loads(heard.body)["comment"].endswith(" here")
        (alarm,) = [facts for kind, facts in inside.entries if kind == "alarm" and facts["what"] == "secret_sent"]
        assert alarm["found"] == {"github-token": 1}


async def test_a_private_key_of_many_lines_does_not_get_out(tmp_path: Path) -> None:
    key = "-----BEGIN " + "RSA PRIVATE KEY-----\n" + ("Ab3dEf6hIj9k" * 5 + "\n") * 30 + "-----END " + "RSA PRIVATE KEY-----"
    async with terminated(tmp_path, use=USE, secrets=REDACT) as inside:
        assert (await post(inside, f"before\n{key}\nafter".encode(), chunks=50)).startswith(b"HTTP/1.1 200 ")
        assert b"Ab3dEf6hIj9kAb3dEf6h" not in inside.server.heard[0].body
        assert inside.server.heard[0].body.endswith(b"\nafter")


async def test_allowed_is_a_format_and_never_what_was_issued(tmp_path: Path) -> None:
    async with terminated(tmp_path, use=USE, secrets=Secrets(bodies=OnSecret.ALLOW)) as inside:
        inside.task.known.enter_texts("another lease", [OTHERS])
        assert (await post(inside, GITHUB.encode())).startswith(b"HTTP/1.1 200 ")
        assert (await post(inside, OTHERS.encode())).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(("where", "status"), [("say", 200), ("*", 200), ("other", 403), ("say/comment", 403)])
async def test_an_excuse_is_for_its_tool(tmp_path: Path, where: str, status: int) -> None:
    excuse = Excuse(rule="github-token", where=where, reason="a token that is public")
    async with terminated(tmp_path, use=USE, secrets=Secrets(allow=(excuse,))) as inside:
        assert (await post(inside, GITHUB.encode())).startswith(b"HTTP/1.1 %d " % status)


async def test_a_host_without_a_credential_of_ours_is_the_boxs_own_affair(tmp_path: Path) -> None:
    async with terminated(tmp_path) as inside:
        assert (await post(inside, GITHUB.encode())).startswith(b"HTTP/1.1 200 ")
