from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.gateway import strict_json
from fumehood.gateway.strict_json import MAX_DEPTH, UnfitError, dumps, parse

text = st.text(st.characters(exclude_categories=("Cs",)))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse(dumps(value)) == value
    assert b"\n" not in dumps(value)


@given(values)
def test_every_spelling_of_ordinary_json_is_read(value: Any) -> None:
    assert parse(json.dumps(value, ensure_ascii=True, indent=1).encode()) == value


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (b'{"a":NaN}', "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[1e400]", "double"),
        (b"[-1e400]", "double"),
        (b"[" + b"1" * 5000 + b"]", "double"),
        (b'{"a":1,"a":1}', "duplicate"),
        (b'{"a":{"b":1,"\\u0062":2}}', "duplicate"),
        (b'["\\udfff"]', "surrogate"),
        (b'{"\\ud800":1}', "surrogate"),
        (b'["\xed\xa0\x80"]', "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'["\x01"]', "not JSON"),
        (b"[1,]", "not JSON"),
        (b"", "not JSON"),
        (b"1 2", "not JSON"),
        (b'"abc', "not JSON"),
    ],
)
def test_what_two_parsers_read_differently_is_refused(frame: bytes, word: str) -> None:
    with pytest.raises(UnfitError, match=word):
        parse(frame)


def test_depth_is_measured_outside_strings() -> None:
    assert parse(b'["' + b"[" * 1000 + b'"]')
    assert parse(b'["\\"' + b"[" * 1000 + b'"]')
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(UnfitError, match="deeper"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "frame", [b"[" * 4_000_000, b'{"":' * 800_000, b"[[]," * 900_000, b'"' + b"\\" * 4_000_000, b'"' * 4_000_001]
)
def test_a_frame_made_to_be_slow_is_refused_fast(frame: bytes) -> None:
    began_s = time.thread_time()
    with pytest.raises(UnfitError):
        parse(frame)
    assert time.thread_time() - began_s < 1.5


def test_a_lone_surrogate_can_be_replaced_and_a_pair_is_none() -> None:
    assert parse(b'["a\\ud83d","\\ud83d\\ude00"]', repair_surrogates=True) == ["a\ufffd", "\U0001f600"]
    assert parse(b'["\\ud83d\\ude00"]') == ["\U0001f600"]
    assert parse(b'["\\\\ud800"]') == ["\\ud800"]


def test_the_lenient_reading_is_there_for_finding_whom_to_answer() -> None:
    with pytest.raises(UnfitError) as caught:
        strict_json.parse(b'{"id":7,"a":NaN}')
    assert caught.value.loose["id"] == 7
