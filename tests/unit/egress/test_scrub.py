"""Secrets that come back: found in every spelling we know, however the stream is cut, and replaced at equal length."""

from __future__ import annotations

import base64
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress.scrub import Scrubber
from fumehood.screening.spellings import Spellings, forms

SECRET = 'ghs_S3cret/+0123456789abc"def'  # noqa: S105 - a canary
PLACEHOLDER = b"fumehood0abcdefghij"
PLAIN = SECRET.encode()
SPELLINGS = {
    "plain": PLAIN,
    "basic": base64.b64encode(b"me:" + PLAIN),
    "base64": base64.b64encode(PLAIN),
    "base64 behind one": base64.b64encode(b"x" + PLAIN + b"yz"),
    "base64 behind two": base64.b64encode(b"xy" + PLAIN + b"z"),
    "base64 for urls": base64.urlsafe_b64encode(b"xyz?" + PLAIN),
    "percent": quote(SECRET, safe="").encode(),
    "percent in small letters": quote(SECRET, safe="").lower().replace("s3cret", "S3cret").encode(),
    "percent throughout": "".join(f"%{byte:02x}" for byte in PLAIN).encode(),
    "hexadecimal": PLAIN.hex().encode(),
    "json": SECRET.replace('"', '\\"').encode(),
    "json of php": SECRET.replace('"', '\\"').replace("/", "\\/").encode(),
}


def scrubber() -> Scrubber:
    return Scrubber(Spellings(forms(SECRET, "me").items(), PLACEHOLDER))


def through(scrub: Scrubber, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return b"".join(scrub.feed(data[start:end]) for start, end in pairwise(edges)) + scrub.end()


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_found_wherever_the_stream_is_cut(name: str) -> None:
    spelling = SPELLINGS[name]
    data = b"{before " + spelling + b" after}"
    for cut in range(len(data)):
        scrub = scrubber()
        out = through(scrub, data, [cut])
        assert len(out) == len(data)
        assert out.startswith(b"{before ")
        assert out.endswith(b" after}")
        assert scrub.found
        assert not any(known in out for known in forms(SECRET, "me"))


@given(st.lists(st.sampled_from([*SPELLINGS.values(), b"ghs_", b" ", PLAIN[:9], b"x"]), max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_no_spelling_goes_out_however_they_are_mixed(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    out = through(scrubber(), data, cuts)
    assert len(out) == len(data)
    assert PLAIN not in out
    assert quote(SECRET, safe="").encode() not in out


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_what_holds_no_secret_is_not_touched(data: bytes, cuts: list[int]) -> None:
    scrub = scrubber()
    assert through(scrub, data, cuts) == data
    assert scrub.found == {}


def test_an_event_is_not_held_back() -> None:
    scrub = scrubber()
    for event in (b"data: one\n\n", b"data: ghs", b"_S3", b": ping\n\n", PLAIN[:7]):
        assert scrub.feed(event) == event


def test_a_secret_too_short_to_tell_from_text_is_not_looked_for() -> None:
    assert forms("abc") == {}
