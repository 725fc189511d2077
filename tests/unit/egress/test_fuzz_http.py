"""A bounded run of what `scripts/fuzz` runs for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuzz_http import head, scrub

LINES = st.sampled_from([
    b"Host: api.example.org", b"Host: evil.example", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close", b"X-A: b", b" folded", b"X_A: c",
    b"Cookie: \xff", b"Range: bytes=0-1", b"Expect: 100-continue", b"Upgrade: websocket",
])  # fmt: skip
TARGETS = st.sampled_from([b"/public/a", b"/public/../b", b"/public/%2e%2e/b", b"/public//a", b"https://api.example.org/public", b"*", b"/public?x=%00", b"/%70ublic/a"])


@given(TARGETS, st.lists(LINES | st.binary(max_size=12), max_size=6), st.binary(max_size=8))
def test_what_is_let_through_is_read_again_as_the_same(target: bytes, lines: list[bytes], behind: bytes) -> None:
    head(b"\r\n".join([b"GET " + target + b" HTTP/1.1", *lines]) + b"\r\n\r\n" + behind)


@given(st.binary(max_size=300))
def test_no_secret_goes_out_of_any_stream(data: bytes) -> None:
    scrub(data)
