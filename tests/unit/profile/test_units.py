"""Sizes and durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.profile.units import bytes_of, duration_text, seconds_of, size_text


@pytest.mark.parametrize(("text", "count"), [("512MiB", 2**29), ("1.5GiB", 3 * 2**29), ("0B", 0), ("1TiB", 2**40)])
def test_sizes(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("2m", 120), ("500ms", 0.5), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("512MB", "512MiB"),
        ("512M", "512MiB"),
        ("4k", "4KiB"),
        (512, ""),
        (True, ""),
        ("x", ""),
        ("-1MiB", ""),
        (None, ""),
    ],
)
def test_sizes_without_their_unit_are_refused(text: object, hint: str) -> None:
    with pytest.raises(ValueError, match="expected a size with its unit") as caught:
        bytes_of(text)
    assert (f"did you mean {hint}?" in str(caught.value)) == bool(hint)


@pytest.mark.parametrize(("text", "hint"), [("60sec", "60s"), ("2min", "2m"), (60, ""), ("60", ""), ("1m30s", "")])
def test_durations_without_their_unit_are_refused(text: object, hint: str) -> None:
    with pytest.raises(ValueError, match="expected a duration with its unit") as caught:
        seconds_of(text)
    assert (f"did you mean {hint}?" in str(caught.value)) == bool(hint)


@given(st.integers(0, 2**44))
def test_a_size_survives_its_text(count: int) -> None:
    assert bytes_of(size_text(count)) == count


@given(st.integers(0, 10**8))
def test_a_duration_survives_its_text(milliseconds: int) -> None:
    assert round(seconds_of(duration_text(milliseconds / 1000)) * 1000) == milliseconds
