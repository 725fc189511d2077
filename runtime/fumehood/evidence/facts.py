"""Facts as JSON that fits a message: bounded, finite, valid Unicode. Pure.

Attack: names of files, tools and errors come from the box. A lone surrogate cannot be encoded, a NaN is no JSON, and a
long name would make a message that no record takes; none of these may cost the call its record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fumehood.model import FileChange

FACTS_BYTES = 32 * 1024
FILES_BYTES = 96 * 1024
DETAIL_CHARS = 4000
_VALUE_CHARS = 4096
_SHORT_CHARS = 256
# Sixteen names of 64 characters, of which each may be written as a six-byte escape.
_LEFT_OUT_BYTES = 8 * 1024
_DEPTH = 8


def text(value: str, limit: int) -> str:
    """A text that can be stored: what UTF-8 cannot say is escaped, and what is too long ends with an ellipsis."""
    # Nearly all are: a call's record is some hundred short names.
    safe = value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def plain(value: object, depth: int = 0) -> Any:
    """A value as JSON has it. What is not JSON becomes its text; what is not a number becomes null."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            return text(value, _VALUE_CHARS)
        case Mapping() if depth < _DEPTH:
            return {text(str(name), _VALUE_CHARS): plain(item, depth + 1) for name, item in value.items()}
        case list() | tuple() | set() | frozenset() if depth < _DEPTH:
            return [plain(item, depth + 1) for item in value]
        case _:
            return text(str(value), _VALUE_CHARS)


def bounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of at most `FACTS_BYTES`: the largest are left out until the rest fits, and `left_out` names the first."""
    safe: dict[str, Any] = plain(facts)
    # The whole at once first: measuring a dozen values apart for each step of each call was a tenth of the worker's time.
    if _size(safe) <= FACTS_BYTES:
        return safe
    sizes = {name: _size(name) + _size(value) + len(": , ") for name, value in safe.items()}
    total = sum(sizes.values())
    left_out: list[str] = []
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if total <= FACTS_BYTES - _LEFT_OUT_BYTES:
            break
        total -= sizes[name]
        del safe[name]
        left_out.append(text(name, 64))
    return {**safe, "left_out": left_out[:16]}


def short(facts: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Facts of at most `limit` bytes: long texts are cut, and fields after the last that fits are left out."""
    room = limit - len('{"left_out": true}')
    kept: dict[str, Any] = {}
    for name, value in plain(facts).items():
        safe = text(value, _SHORT_CHARS) if isinstance(value, str) else value
        room -= _size(name) + _size(safe) + len(": , ")
        if room < 0:
            return {**kept, "left_out": True}
        kept[name] = safe
    return kept


def listed(files: Iterable[FileChange]) -> list[dict[str, Any]]:
    """As many of a call's files as a record holds."""
    page: list[dict[str, Any]] = []
    room = FILES_BYTES - 2
    for change in files:
        row = plain(asdict(change))
        room -= _size(row) + 2
        if room < 0:
            break
        page.append(row)
    return page


def _size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
