"""Heads of requests: what is refused, and that what is let through has one meaning."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fumehood.egress.http_judge import MAX_HEAD_BYTES, HeadReader, Place, Refusal, Request, judge
from fumehood.reach import EgressKind, EgressRule

ALLOW = ("GET /repos/acme/**", "POST /repos/acme/site/issues", "HEAD /repos/acme/**")
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
WEBSOCKET = f"GET /repos/acme/live HTTP/1.1|Host: api.example.org|Connection: Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|{KEY}"


def place(*, allow: tuple[str, ...] | None = ALLOW, port: int = 443, insecure: bool = False) -> Place:
    rule = EgressRule(kind=EgressKind.HTTP, name="api.example.org", ports=(port,), allow=allow, insecure=insecure)
    return Place(name="api.example.org", port=port, rule=rule)


def judged(text: str, at: Place | None = None) -> Request | Refusal:
    """Judge a head written with `|` for CRLF."""
    found = judge(text.replace("|", "\r\n").encode("latin-1") + b"\r\n\r\n", at or place())
    return found if isinstance(found, Refusal) else found[0]


def let_through(text: str, at: Place | None = None) -> Request:
    found = judged(text, at)
    assert isinstance(found, Request), found
    return found


def test_what_goes_upstream_is_what_was_judged() -> None:
    text = "GET /repos/acme/site?page=2 HTTP/1.1|Host: API.example.org|Accept: */*|Connection: keep-alive|TE: trailers|Proxy-Authorization: Basic eA=="
    request = let_through(text)
    assert (request.method, request.target, request.headers) == (b"GET", b"/repos/acme/site?page=2", [(b"accept", b"*/*")])
    assert request.asked == "GET /repos/acme/site"


@pytest.mark.parametrize(
    "text",
    [
        "GET /repos/acme HTTP/1.1|Host: api.example.org:443",
        "GET https://api.example.org/repos/acme HTTP/1.1|Host: api.example.org",
        "HEAD /repos/acme HTTP/1.0|Host: api.example.org",
        "POST /repos/acme/site/issues HTTP/1.1|Host: api.example.org|Content-Length: 3",
        "POST /repos/acme/site/issues HTTP/1.1|Host: api.example.org|Transfer-Encoding: chunked|Expect: 100-continue",
        WEBSOCKET,
    ],
)
def test_an_honest_request_is_let_through(text: str) -> None:
    let_through(text)


A = "GET /repos/acme HTTP/1.1|Host: api.example.org"
P = "POST /repos/acme/site/issues HTTP/1.1|Host: api.example.org"


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("CONNECT api.example.org:443 HTTP/1.1|Host: api.example.org:443", 403, "http_method"),
        ("TRACE /repos/acme HTTP/1.1|Host: api.example.org", 403, "http_method"),
        ("TRACK /repos/acme HTTP/1.1|Host: api.example.org", 403, "http_method"),
        ("get /repos/acme HTTP/1.1|Host: api.example.org", 400, "http_malformed"),
        ("GET https://evil.example/repos/acme HTTP/1.1|Host: api.example.org", 421, "http_host"),
        ("GET http://api.example.org/repos/acme HTTP/1.1|Host: api.example.org", 421, "http_host"),
        ("GET https://u@api.example.org/repos/acme HTTP/1.1|Host: api.example.org", 421, "http_host"),
        ("GET repos/acme HTTP/1.1|Host: api.example.org", 421, "http_host"),
        ("GET /repos/acme#x HTTP/1.1|Host: api.example.org", 400, "http_malformed"),
        ("GET /repos/acme HTTP/1.1|Host: evil.example", 421, "http_host"),
        ("GET /repos/acme HTTP/1.1|Host: api.example.org.", 421, "http_host"),
        ("GET /repos/acme HTTP/1.1|Host: api.example.org:8443", 421, "http_host"),
        ("GET /repos/acme HTTP/1.1|Host: api.example.org, evil.example", 421, "http_host"),
        ("GET /repos/acme HTTP/1.1", 400, "http_malformed"),
        ("GET /repos/acme HTTP/1.0", 421, "http_host"),
        (f"{A}|Host: api.example.org", 400, "http_malformed"),
        (f"{A}|Host: evil.example", 400, "http_malformed"),
        (f"{P}|Content-Length: 3|Transfer-Encoding: chunked", 400, "http_malformed"),
        (f"{P}|Transfer-Encoding: chunked|Transfer-Encoding: chunked", 400, "http_malformed"),
        (f"{P}|Transfer-Encoding: gzip, chunked", 400, "http_malformed"),
        (f"{P}|Transfer-Encoding: xchunked", 400, "http_malformed"),
        (f"{P}|Content-Length: 3|Content-Length: 3", 400, "http_malformed"),
        (f"{P}|Content-Length: 3|Content-Length: 4", 400, "http_malformed"),
        (f"{P}|Content-Length: +3", 400, "http_malformed"),
        (f"{P}|Content-Length: 0x3", 400, "http_malformed"),
        ("POST /repos/acme/site/issues HTTP/1.0|Host: api.example.org|Transfer-Encoding: chunked", 400, "http_malformed"),
        (f"{A}|Accept : */*", 400, "http_malformed"),
        (f"{A}|Accept: a|  folded", 400, "http_malformed"),
        (f"{A}|Accept: a\x01b", 400, "http_malformed"),
        (f"{A}|Accept: a\x00b", 400, "http_malformed"),
        (f"{A}|Accept: a\nX: b", 400, "http_malformed"),
        (f"{A}|Accept: a\rX: b", 400, "http_malformed"),
        (f"{A}|Accept: a\r", 400, "http_malformed"),
        (f"{A}|: b", 400, "http_malformed"),
        (f"{A}|nonsense", 400, "http_malformed"),
        ("GET /repos/acme HTTP/2.0|Host: api.example.org", 400, "http_malformed"),
        ("GET /repos/acme HTTP/0.9|Host: api.example.org", 400, "http_malformed"),
        ("GET  /repos/acme HTTP/1.1|Host: api.example.org", 400, "http_malformed"),
        (f"{A}|Connection: Upgrade, HTTP2-Settings|Upgrade: h2c|HTTP2-Settings: x", 403, "http_upgrade"),
        (f"{A}|Connection: Upgrade|Upgrade: websocket, h2c", 403, "http_upgrade"),
        (f"{A}|Connection: Upgrade|Upgrade: websocket", 400, "http_malformed"),
        (WEBSOCKET.replace("13", "8"), 400, "http_malformed"),
        (WEBSOCKET.replace("AAAA", "", 1), 400, "http_malformed"),
        (WEBSOCKET.replace("Connection: Upgrade", "Connection: close"), 400, "http_malformed"),
        (f"{WEBSOCKET}|Content-Length: 3", 400, "http_malformed"),
        (f"{A}|Connection: Authorization", 400, "http_malformed"),
        (f"{A}|Expect: 200-ok", 400, "http_malformed"),
        (f"{A}|Content_Length: 3", 400, "http_alias"),
        (f"{A}|X_HTTP_Method_Override: DELETE", 400, "http_alias"),
        (f"{A}|X-Key: a|X_Key: b", 400, "http_alias"),
        (f"{A}|Transfer.Encoding: chunked", 400, "http_alias"),
        (f"{A}|X-HTTP-Method-Override: DELETE", 403, "http_override"),
        (f"{A}|X-Original-URL: /admin", 403, "http_override"),
        (f"{A}|X-Rewrite-URL: /admin", 403, "http_override"),
        (f"{A}|X-Forwarded-Host: evil.example", 403, "http_override"),
        ("POST /repos/acme/site/issues?_method=DELETE HTTP/1.1|Host: api.example.org", 403, "http_override"),
        ("POST /repos/acme/site/issues?a=b&%5fmethod=DELETE HTTP/1.1|Host: api.example.org", 403, "http_override"),
        ("DELETE /repos/acme/site HTTP/1.1|Host: api.example.org", 403, "http_not_allowed"),
        ("GET /admin HTTP/1.1|Host: api.example.org", 403, "http_not_allowed"),
        ("OPTIONS * HTTP/1.1|Host: api.example.org", 403, "http_not_allowed"),
        ("GET /repos/acme/../../admin HTTP/1.1|Host: api.example.org", 403, "http_ambiguous_path"),
        ("GET /repos/acme/%2e%2e/x HTTP/1.1|Host: api.example.org", 403, "http_ambiguous_path"),
        ("GET /repos/acme/..%2fx HTTP/1.1|Host: api.example.org", 403, "http_ambiguous_path"),
        ("GET //repos/acme HTTP/1.1|Host: api.example.org", 403, "http_ambiguous_path"),
        ("GET /repos/acme/caf\xe9 HTTP/1.1|Host: api.example.org", 400, "http_malformed"),
        (A + "".join(f"|X-{n}: a" for n in range(200)), 431, "http_too_large"),
        (f"GET /repos/acme?{'a' * 20000} HTTP/1.1|Host: api.example.org", 414, "http_too_large"),
    ],
)
def test_a_request_that_two_servers_could_read_differently_is_refused(text: str, status: int, code: str) -> None:
    refused = judged(text)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.cause.code) == (status, code), refused


def test_a_refusal_says_what_to_add_to_the_profile_and_nothing_of_the_query() -> None:
    refused = judged("DELETE /repos/acme/site?token=hunter2 HTTP/1.1|Host: api.example.org")
    assert isinstance(refused, Refusal)
    assert "DELETE /repos/acme/site" in (refused.remedy or "")
    assert "hunter2" not in repr(refused)


def test_a_rule_without_allow_takes_every_path_of_its_name_but_no_other_name() -> None:
    everything = place(allow=None)
    for target in ("/a//b", "/a/../b;c", "/%2e%2e", "*"):
        assert isinstance(judged(f"OPTIONS {target} HTTP/1.1|Host: api.example.org", everything), Request)
    assert isinstance(judged("GET / HTTP/1.1|Host: evil.example", everything), Refusal)


def test_on_another_port_the_host_says_so() -> None:
    assert isinstance(judged("GET /repos/acme HTTP/1.1|Host: api.example.org", place(port=8443)), Refusal)
    assert isinstance(judged("GET /repos/acme HTTP/1.1|Host: api.example.org:8443", place(port=8443)), Request)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_head_is_counted_by_what_came_and_not_by_its_lines(size: int) -> None:
    reader, sent = HeadReader(), 0
    data = b"GET / HTTP/1.1\r\nX: " + b"a" * (2 * MAX_HEAD_BYTES)
    while not (ready := reader.ready()):
        reader.feed(data[sent : sent + size])
        sent += size
        assert sent <= MAX_HEAD_BYTES + size + 1
    assert isinstance(ready, Refusal)
    assert ready.cause.code == "http_too_large"


@pytest.mark.parametrize("data", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HTTP/2.0\r\n"])
def test_http_2_without_asking_is_misdirected(data: bytes) -> None:
    reader = HeadReader(data)
    ready = reader.ready()
    assert isinstance(ready, Refusal)
    assert ready.status == 421


def test_a_bare_line_feed_is_refused_before_the_head_is_whole() -> None:
    reader = HeadReader(b"GET / HTTP/1.1\nHost: a\n\n")
    assert isinstance(reader.ready(), Refusal)


@given(st.lists(st.binary(max_size=30), max_size=8), st.data())
@example([b"\r\n", b"\r\n"], None)
def test_no_bytes_make_the_judge_fail(lines: list[bytes], data: st.DataObject | None) -> None:
    del data
    found = judge(b"GET /repos/acme HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n", place())
    assert isinstance(found, Refusal | tuple)


HEADERS = st.sampled_from(
    ["Host: api.example.org", "Host: evil.example", "Content-Length: 3", "Content-Length: 0", "Transfer-Encoding: chunked", "Connection: close", "Upgrade: h2c", "X-A: b", "Expect: 100-continue", " folded", "X_A: c"]
)  # fmt: skip


@given(st.lists(HEADERS, max_size=6))
def test_what_is_let_through_has_one_host_and_one_length(headers: list[str]) -> None:
    found = judged("|".join(["GET /repos/acme HTTP/1.1", *headers]))
    if isinstance(found, Request):
        assert headers.count("Host: api.example.org") == 1
        assert "Host: evil.example" not in headers
        assert sum(header.startswith(("Content-Length", "Transfer-Encoding")) for header in headers) <= 1
        assert not {" folded", "Upgrade: h2c"}.intersection(headers)
