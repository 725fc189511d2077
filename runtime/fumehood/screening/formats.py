"""Known formats of secrets, from `formats.json`: what `scripts/secret-patterns` took of detect-secrets (Apache-2.0, Yelp, Inc.).

A text is a stranger's, so it is matched by RE2, in time linear in its length: once by the set of all patterns, which tells those that
occur, and then by each of these for the places. RE2 works on bytes here; every pattern is ASCII.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import re2  # type: ignore[import-untyped]

# With less, long texts of letters would fill the table of states again and again.
_SET_BYTES = 32 * 2**20
_BEFORE_BYTES = 96
# The longest beginning of a token that is looked at for being JSON.
_JWT_BYTES = 16 * 1024
_TEXT = (Path(__file__).parent / "formats.json").read_text(encoding="ascii")


@dataclass(frozen=True, slots=True)
class Format:
    """One format. `group` of `pattern` is the secret; `before`, if any, must end where it begins."""

    rule: str
    pattern: Any
    group: int
    before: Any = None


def _options(*, captures: bool = True) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = not captures
    options.log_errors = False
    return options


@functools.cache
def _compiled() -> tuple[Any, tuple[Format, ...]]:
    """The set and its formats, made with the first text: 5 ms."""
    options = _options(captures=False)
    options.max_mem = _SET_BYTES
    every = re2.Set.SearchSet(options)
    found = []
    for each in json.loads(_TEXT)["formats"]:
        flags = "(?i)" if each["ignore_case"] else ""
        every.Add((flags + each.get("hint", each["pattern"])).encode())
        before = re2.compile((flags + each["before"]).encode(), _options()) if "before" in each else None
        pattern = re2.compile((flags + each["pattern"]).encode(), _options())
        found.append(Format(each["rule"], pattern, each["group"], before))
    every.Compile()
    return every, tuple(found)


def rules() -> frozenset[str]:
    """The names of all formats."""
    return frozenset(each["rule"] for each in json.loads(_TEXT)["formats"])


def occurring(data: bytes) -> list[Format]:
    """The formats that occur in some bytes, or could."""
    every, found = _compiled()
    return [found[number] for number in every.Match(data) or ()]


def spans(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Where the secrets of known formats are, and of which rule each is; not in order, and they may overlap."""
    for each in occurring(data):
        for match in each.pattern.finditer(data):
            start, end = match.span(each.group)
            if each.before is not None and each.before.search(data[max(0, start - _BEFORE_BYTES) : start]) is None:
                continue
            if each.rule == "jwt" and not is_jwt(data[start:end]):
                continue
            yield start, end, each.rule


def is_jwt(token: bytes) -> bool:
    """Whether a token's first two parts are JSON: text with two dots in it is none for that."""
    try:
        for part in token.split(b".")[:2]:
            if len(part) > _JWT_BYTES:
                return True  # nobody writes that by chance
            json.loads(base64.urlsafe_b64decode(part.rstrip(b"=") + b"=" * (-len(part.rstrip(b"=")) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return True
