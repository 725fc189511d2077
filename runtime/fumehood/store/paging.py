"""Answers that fit one message: lists come in pages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

# A message is at most 192 KiB; what surrounds a page needs little of the rest.
PAGE_BYTES = 160 * 1024
PAGE_ROWS = 500


def fitting(rows: Iterable[Mapping[str, Any]], most: int, room: int) -> tuple[list[Mapping[str, Any]], bool]:
    """As many rows as fit `room` bytes, and whether there are more. ASCII JSON is never shorter than what is sent."""
    page: list[Mapping[str, Any]] = []
    for row in rows:
        room -= len(json.dumps(row)) + 1
        if room < 0 or len(page) == most:
            return page, True
        page.append(row)
    return page, False
