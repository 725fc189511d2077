"""The one form of a JSON value that is digested and signed: RFC 8785. Pure.

Two writings of one value (another order of members, `1.0` for `1`, escaped letters) give the same bytes; two values never do. A
whole number that no double is written as has no form there: readers that know doubles only would see another number than we did.
"""

from __future__ import annotations

import hashlib
from typing import Any


def canonical(value: Any) -> bytes:
    """The value's RFC 8785 form. Raises ValueError for what has none: NaN, a lone surrogate, a number that is not exact."""
    import rfc8785

    try:
        try:
            return rfc8785.dumps(value)
        except rfc8785.IntegerDomainError:
            return rfc8785.dumps(_as_doubles(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise ValueError("it has no canonical form (RFC 8785)") from error


def digest_of_json(value: Any) -> str:
    """`sha256:<hex>` of the value's RFC 8785 form. Raises ValueError."""
    return f"sha256:{hashlib.sha256(canonical(value)).hexdigest()}"


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
