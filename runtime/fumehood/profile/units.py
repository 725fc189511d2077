"""Sizes and durations as operators write them. A number without its unit is refused: 512 of what? Pure."""

from __future__ import annotations

import math
import re

SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$"
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"

_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DURATIONS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z]*)")


def bytes_of(text: object) -> int:
    """`512MiB` in bytes. Raises ValueError with the expectation."""
    number, unit = _split(text, "a size with its unit (B, KiB, MiB, GiB, TiB), such as 512MiB")
    if unit not in _SIZES:
        binary = {name.lower().replace("ib", ""): name for name in _SIZES}
        meant = binary.get(unit.lower().removesuffix("ib").removesuffix("b"))
        hint = f"; did you mean {number:g}{meant}?" if meant and unit else ""
        raise ValueError(f"expected a size with its unit (B, KiB, MiB, GiB, TiB), such as 512MiB, found {text!r}{hint}")
    return math.ceil(number * _SIZES[unit])


def seconds_of(text: object) -> float:
    """`90s`, `2m`, `500ms` in seconds. Raises ValueError with the expectation."""
    expectation = "a duration with its unit (ms, s, m, h), such as 60s"
    number, unit = _split(text, expectation)
    if unit not in _DURATIONS_MS:
        meant = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m"}.get(
            unit, {"minutes": "m", "hour": "h", "hours": "h", "msec": "ms"}.get(unit, "")
        )
        hint = f"; did you mean {number:g}{meant}?" if meant else ""
        raise ValueError(f"expected {expectation}, found {text!r}{hint}")
    return number * _DURATIONS_MS[unit] / 1000


def size_text(count: int) -> str:
    """The shortest exact way to write a size."""
    for unit, factor in reversed(_SIZES.items()):
        if count >= factor and count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"


def duration_text(seconds: float) -> str:
    """The shortest exact way to write a duration."""
    milliseconds = round(seconds * 1000)
    for unit, factor in reversed(_DURATIONS_MS.items()):
        if milliseconds >= factor and milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms"


def _split(text: object, expectation: str) -> tuple[float, str]:
    if isinstance(text, bool) or not isinstance(text, str):
        shown = repr(text) if isinstance(text, int | float) else type(text).__name__
        raise ValueError(f"expected {expectation}, found {shown}")  # noqa: TRY004 - pydantic reports ValueError
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ValueError(f"expected {expectation}, found {text!r}")
    return float(found[1]), found[2]
