"""Subordinate id ranges, as subuid(5) reserves them."""

from __future__ import annotations

from pathlib import Path


def subordinate_range(path: Path, *owners: str) -> tuple[int, int] | None:
    """The (start, count) that subuid(5) reserves for one of `owners`, names of one user; the largest if several, None if none."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return None
    ranges = [
        (int(fields[2]), int(fields[1]))
        for fields in (line.split(":") for line in lines)
        if len(fields) == 3 and fields[0] in owners and fields[1].isdigit() and fields[2].isdigit()
    ]
    return max(((start, count) for count, start in ranges), key=lambda found: found[1], default=None)
