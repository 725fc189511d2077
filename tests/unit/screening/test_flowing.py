"""A stream without its secrets, however it is cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fumehood.screening.flowing import HELD_FROM, MOST_HELD, Flow
from fumehood.screening.known import KnownSecrets

GITHUB = b"ghp" + b"_" + b"Ab3dEf6hIj9k" * 3
KEY = b"-----BEGIN " + b"RSA PRIVATE KEY-----\n" + (b"Ab3dEf6hIj9k" * 5 + b"\n") * 20 + b"-----END " + b"RSA PRIVATE KEY-----"
MARK = b"[secret removed: github-token]"


def flow(*, keeps_length: bool = False) -> Flow:
    return Flow(KnownSecrets(), lambda _: True, keeps_length=keeps_length)


def through(one: Flow, *pieces: bytes) -> bytes:
    return b"".join([*map(one.feed, pieces), one.end()])


@settings(deadline=None)
@given(st.lists(st.integers(0, 1340), max_size=6))
@example([11, 50])
@example([1321])
@example([1326])
def test_a_secret_goes_out_in_no_cut_but_for_its_first_bytes(cuts: list[int]) -> None:
    text = b"before it " + GITHUB + b"\nand behind\n" + KEY + b" end"
    at = [0, *sorted(cuts), len(text)]
    pieces = [text[low:high] for low, high in pairwise(at)]
    one = flow()
    out = through(one, *pieces)
    assert GITHUB[HELD_FROM + 1 :] not in out  # its underscore is no letter
    assert b"Ab3dEf6hIj9k" * 4 not in out
    assert out.startswith(b"before it ")
    assert out.endswith(b" end")
    assert one.found == {"github-token": 1, "private-key": 1}
    assert len(through(flow(keeps_length=True), *pieces)) == len(text)


def test_byte_by_byte() -> None:
    text = b"a line, " + GITHUB + b" and more\n"
    out = through(flow(), *(text[i : i + 1] for i in range(len(text))))
    assert GITHUB[HELD_FROM + 1 :] not in out  # its underscore is no letter
    assert out.endswith(b" and more\n")


def test_a_prompt_is_not_delayed_and_a_line_goes_when_it_ends() -> None:
    one = flow()
    assert one.feed(b"Password: ") == b"Password: "
    assert one.feed(b"name> ") == b"name> "
    assert one.feed(b"done\n") == b"done\n"
    assert one.feed(b"." * 500) == b"." * 500
    assert one.feed(b"\n") == b"\n"
    assert one.feed(GITHUB) == b""
    assert one.feed(b"\n") == MARK + b"\n"


def test_what_is_held_back_is_bounded() -> None:
    one = flow()
    sent = len(one.feed(b"x" * 10**6))
    assert 10**6 - sent <= MOST_HELD
    assert sent + len(one.end()) == 10**6


def test_a_beginning_of_a_key_that_never_ends_takes_no_more_than_a_key() -> None:
    out = through(flow(), b"-----BEGIN " + b"PRIVATE KEY-----\n", *[b"line of something else\n"] * 10_000)
    assert out.endswith(b"line of something else\n" * 5_000)


def test_what_stands_before_a_secret_is_remembered() -> None:
    secret = b"Ab3dEf6hIj9k" * 3 + b"/+ab"
    out = through(flow(), b"AWS_SECRET_ACCESS_KEY = ", secret[:20], secret[20:], b"\n")
    assert out == b"AWS_SECRET_ACCESS_KEY = [secret removed: aws-secret-key]\n"
