"""JSON as everyone reads it alike, or not at all. Pure.

Parsers differ on what the grammar leaves open: of two equal keys the first or the last wins, NaN is a number, null or
an error, 1e400 is infinity. A peer that exploits this shows us one message and the server another. So whatever two
parsers may read differently is refused: NaN and infinities, numbers beyond a double, equal keys, lone surrogates,
bytes that are not UTF-8. Nesting and the number of values are measured on the bytes, before anything is built.

A lone surrogate from a server (JavaScript cuts strings between the halves of a pair) can be replaced instead: refusing
it would lose an honest result, and passing it on would make a Python client drop the answer and wait for ever.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any

MAX_DEPTH = 64
MAX_VALUES = 500_000
_MAX_DIGITS = 308  # one more and a double is infinite

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class UnfitError(ValueError):
    """The text is not JSON, or not JSON that everyone reads alike.

    `loose` is what a lenient parser made of it, or None: good for finding out whom to answer, and for nothing else.
    """

    def __init__(self, message: str, loose: Any = None) -> None:
        """Carry the reason and the lenient reading."""
        super().__init__(message)
        self.loose = loose


def parse(text: bytes, *, repair_surrogates: bool = False) -> Any:
    """The value of a JSON text. Raises `UnfitError`."""
    _measure(text)
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnfitError("not UTF-8") from error
    faults: list[str] = []
    decoder = _decoder(faults)
    try:
        value = decoder.decode(decoded)
    except (ValueError, RecursionError) as error:
        raise UnfitError("not JSON") from error
    if _SURROGATE_ESCAPE.search(text):
        repaired = _repair(value)
        # Strings compare by code point, so a difference is exactly a lone surrogate that was replaced.
        if repaired != value and not repair_surrogates:
            faults.append("a lone surrogate")
        value = repaired
    if faults:
        raise UnfitError(f"JSON with {faults[0]}", value)
    return value


def dumps(value: Any) -> bytes:
    """A value as one line of UTF-8 JSON. What `parse` accepted, this can write."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _measure(text: bytes) -> None:
    structure = _STRING.sub(b"", text)
    brackets = structure.translate(None, _NOT_STRUCTURE)
    if structure.count(b",") + len(brackets) // 2 > MAX_VALUES:
        raise UnfitError(f"JSON of more than {MAX_VALUES} values")
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise UnfitError(f"JSON nested deeper than {MAX_DEPTH}")


def _decoder(faults: list[str]) -> json.JSONDecoder:
    """A decoder that notes what is unfit instead of stopping, so that the reader can still find the message's id."""

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(members)
        if len(made) != len(members):
            faults.append("a duplicate key")
        return made

    def constant(name: str) -> None:
        faults.append(name)

    def real(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            faults.append("a number beyond a double")
            return 0.0
        return number

    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > _MAX_DIGITS:
            faults.append("a number beyond a double")
            return 0
        return int(digits)

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant, parse_float=real, parse_int=integer)


def _repair(value: Any) -> Any:
    """The value with U+FFFD for every lone surrogate. Its depth is bounded by `_measure`."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_repair(item) for item in value]
    if isinstance(value, dict):
        return {_repair(key): _repair(item) for key, item in value.items()}
    return value
