"""One value has one form, and what has no exact form has none."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from fumehood.canonical import canonical, digest_of_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_the_form_is_read_back_to_itself(value: object) -> None:
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(VALUES)
def test_what_is_written_fast_is_what_the_library_writes(value: object) -> None:
    try:
        expected = rfc8785.dumps(value)
    except rfc8785.IntegerDomainError:
        return
    assert canonical(value) == expected


def test_every_way_to_write_a_double_is_the_library_s() -> None:
    for exponent in range(-12, 24):
        for digits in ("1", "-1", "1.5", "123456.789", "9.999999999999999", "9.007199254740992"):
            value = float(f"{digits}e{exponent}")
            assert canonical([value, -0.0]) == rfc8785.dumps([value, -0.0])


def test_the_order_of_members_and_the_writing_of_numbers_do_not_matter() -> None:
    assert digest_of_json({"b": 1.0, "a": [10**2]}) == digest_of_json({"a": [1e2], "b": 1})


def test_a_large_number_is_one_number_however_it_is_written() -> None:
    assert canonical([1e20]) == canonical([10**20]) == b"[100000000000000000000]"
    assert canonical([2.0**60]) == canonical([1152921504606847000]) == b"[1152921504606847000]"


def test_members_are_ordered_by_utf_16_as_rfc_8785_says() -> None:
    assert canonical({"\ufb33": 1, "\U0001f600": 2, "\u20ac": 3}) == '{"\u20ac":3,"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1, 2**60, 10**400, "\ud800", {1: 2}, {"\ud800": 1}, [object()]])
def test_what_readers_would_read_differently_has_no_form(value: object) -> None:
    with pytest.raises(ValueError, match="RFC 8785"):
        canonical(value)
