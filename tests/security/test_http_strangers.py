"""Who must not be served over HTTP: web pages, DNS rebinding, those without a token, those with another's session."""

from __future__ import annotations

import anyio
import pytest
from http_door import Door, answer_of, opened, until

from fumehood.gateway import http

pytestmark = pytest.mark.anyio


async def refused(door: Door, status: int, **headers: str | None) -> dict[str, str]:
    """Try a good call with these headers; nothing must have been started for it."""
    with anyio.fail_after(20):
        answer = await door.call("echo", **headers)
    assert answer.status == status, answer
    assert answer.message["error"]["message"].startswith("fumehood: ")
    assert answer.headers["connection"] == "close"
    assert door.spine.pids == []
    return answer.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1", None])
async def test_a_page_whose_name_was_rebound_to_loopback(host: str | None) -> None:
    async with opened() as door:
        # Without a Host at all h11 itself refuses: HTTP/1.1 wants one.
        if host is None:
            answer = await door.send(b"{}", host=None)
            assert answer.status == 400
            return
        await refused(door, 421, host=host)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "https://good.example.evil.example", ""])
async def test_a_foreign_page_in_a_browser_on_this_host(origin: str) -> None:
    async with opened() as door:
        await refused(door, 403, origin=origin)


async def test_an_allowed_origin_and_every_name_of_loopback_are_served() -> None:
    async with opened() as door:
        for headers in ({"origin": "https://good.example"}, {"host": "localhost"}, {"host": f"LOCALHOST:{door.port}"}):
            answer = await door.ask("server/discover", **headers)
            assert answer.status == 200, headers


async def test_the_browsers_question_before_a_cross_origin_request_is_not_answered() -> None:
    async with opened() as door:
        for origin, status in (("https://evil.example", 403), ("https://good.example", 401)):
            answer = await door.send(
                b"", "OPTIONS", origin=origin, authorization=None, access_control_request_method="POST"
            )
            assert answer.status == status
            assert not any(name.startswith("access-control-") for name in answer.headers)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {'a' * 40}", "a" * 40, f"Bearer {'a' * 39}", f"Bearer {'a' * 41}",
     f"Bearer {'a' * 40} {'a' * 40}", f"Bearer {'A' * 40}", f"Bearer {'a' * 10_000}"],
)  # fmt: skip
async def test_no_token_or_a_wrong_one(authorization: str | None) -> None:
    async with opened() as door:
        headers = await refused(door, 401, authorization=authorization)
        assert headers["www-authenticate"].startswith("Bearer realm=")


async def test_a_good_token_beside_a_wrong_one() -> None:
    async with opened() as door:
        head = door.head(content_length="2").replace(b"authorization:", b"authorization: Bearer wrong\r\nauthorization:")
        async with await door.connect() as stream:
            await stream.send(head + b"{}")
            assert (await answer_of(stream)).status == 400


async def drip(stream: anyio.abc.SocketStream) -> None:
    while True:
        await stream.send(b"x" * 65536)
        await anyio.sleep(0.01)


async def test_a_body_without_a_token_is_not_read() -> None:
    async with opened() as door, await door.connect() as stream:
        await stream.send(door.head(authorization=None, content_length=str(2**30)))
        assert (await answer_of(stream)).status == 401
        with anyio.fail_after(5), pytest.raises(anyio.BrokenResourceError):
            await drip(stream)


@pytest.mark.parametrize("path", ["/", "/mcp/", "/MCP", "/mcp/../mcp", "//mcp", "/%6dcp", "/.well-known/oauth-protected-resource"])
async def test_there_is_one_path(path: str) -> None:
    async with opened() as door:
        assert (await door.send(b"{}", "POST", path)).status == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT"])
async def test_there_are_three_methods(method: str) -> None:
    async with opened() as door, await door.connect() as stream:
        await stream.send(door.head(method))
        with anyio.fail_after(5):
            assert (await stream.receive()).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("how", ["POST", "GET", "DELETE"])
async def test_anothers_session_id_does_not_exist(how: str) -> None:
    async with opened() as door:
        mine = await door.older()
        theirs = mine.of("b" * 40)
        answer = await (theirs.call("echo") if how == "POST" else theirs.send(b"", how))
        assert answer.status == 404
        unknown = Door(door.port, door.spine, mine.token, mine.version, {"mcp-session-id": "0" * 32})
        told = await (unknown.call("echo") if how == "POST" else unknown.send(b"", how))
        assert (told.status, told.body) == (answer.status, answer.body), "it must not tell whether a session is there"
        assert (await mine.call("echo")).message["result"]["content"], "and its owner keeps it"


async def test_session_ids_cannot_be_guessed_and_end_with_delete() -> None:
    async with opened() as door:
        ids = {(await door.older()).extra["mcp-session-id"] for _ in range(8)}
        assert len(ids) == 8
        assert all(len(each) == 32 and int(each, 16) for each in ids)
        mine = await door.older()
        assert (await mine.send(b"", "DELETE")).status == 200
        assert (await mine.call("echo")).status == 404


async def test_one_sender_cannot_open_all_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_SENDER_SESSIONS", 3)
    async with opened() as door:
        kept = [await door.older() for _ in range(3)]
        answer = await Door(door.port, door.spine, door.token, None).ask("initialize", {})
        assert answer.status == 429
        await door.of("b" * 40).older()
        await kept[0].send(b"", "DELETE")
        await door.older()


async def test_one_sender_cannot_keep_the_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REQUESTS", 2)
    async with opened() as door, anyio.create_task_group() as tasks:
        for number in (1, 2):
            tasks.start_soon(door.call, "hang", number)
        await until(lambda: len(door.spine.pids) == 3)  # the list of tools, two calls
        answer = await door.call("echo")
        assert (answer.status, answer.message["error"]["code"]) == (429, -32013)
        assert (await door.of("b" * 40).call("echo")).status == 200
        tasks.cancel_scope.cancel()
