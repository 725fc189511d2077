"""The one form of a JSON value that is digested and signed: RFC 8785. Pure.

Two writings of one value (another order of members, `1.0` for `1`, escaped letters) give the same bytes; two values never do. A
whole number that no double is written as has no form there: readers that know doubles only would see another number than we did.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

_LARGEST = 2**53 - 1
_NO_FORM = "it has no canonical form (RFC 8785)"


def canonical(value: Any) -> bytes:
    """The value's RFC 8785 form. Raises ValueError for what has none: NaN, a lone surrogate, a number that is not exact."""
    try:
        return json.dumps(_alike(value), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except _DifferError:
        return _by_library(value)
    except (UnicodeEncodeError, RecursionError) as error:
        raise ValueError(_NO_FORM) from error


def digest_of_json(value: Any) -> str:
    """`sha256:<hex>` of the value's RFC 8785 form. Raises ValueError."""
    return f"sha256:{hashlib.sha256(canonical(value)).hexdigest()}"


def _by_library(value: Any) -> bytes:
    import rfc8785

    try:
        try:
            return rfc8785.dumps(value)
        except rfc8785.IntegerDomainError:
            return rfc8785.dumps(_as_doubles(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise ValueError(_NO_FORM) from error


class _DifferError(Exception):
    """Something that Python's encoder, written in C, might write in another way than RFC 8785."""


def _alike(value: Any) -> Any:
    """The value as Python's own encoder writes it in canonical form: the library, in Python, takes six times as long.

    Strings are escaped alike. Names are sorted by code point, which is the order of UTF-16 below the surrogates. A double is
    written by both with the fewest digits that mean it, from 1e-4 up to 1e16 without an exponent. Raises _DifferError.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or (kind is int and -_LARGEST <= value <= _LARGEST):
        return value
    if kind is dict:
        for name in value:
            if type(name) is not str or not (name.isascii() or max(name) < "\ud800"):
                raise _DifferError
        return {name: _alike(member) for name, member in value.items()}
    if kind is list or kind is tuple:
        return [_alike(member) for member in value]
    if kind is float and (-_LARGEST <= value <= _LARGEST if value.is_integer() else 1e-4 <= abs(value) < 1e16):
        return int(value) if value.is_integer() else value
    raise _DifferError


def _as_doubles(value: Any) -> Any:
    """The value with whole numbers as the doubles that are written alike: `1e20` and its 21 digits are one number."""
    match value:
        case int() if 2**53 <= abs(value) < 10**21:
            return float(value) if canonical(float(value)).decode() == str(value) else value
        case dict():
            return {name: _as_doubles(member) for name, member in value.items()}
        case list() | tuple():
            return [_as_doubles(member) for member in value]
    return value
