"""What a call asks of a credential: the profile's template with the call's arguments in it, within the operator's maximum. Pure.

Invariants: an argument is inserted into a string of the template and nowhere else, so it adds no key, no list entry and no second
value; it holds letters, digits and a few signs, so it is no wildcard, no way up and nothing that a backend's own syntax could read
differently; and the whole is compared with the maximum after the insertion, so an argument can narrow and never widen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reasons import Reason

ARGUMENT_CHARS = 256
_PLACE = re.compile(r"\{args\.([^{}]*)\}")
_FIT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./@-]*[A-Za-z0-9_-])?", re.ASCII)


def scope_of(template: Mapping[str, Any], arguments: Mapping[str, Any], maximum: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """The scope of one call. Raises Refused(SCOPE_REFUSED), naming the field."""
    scope = {key: _inserted(value, arguments, f"{rule}.{key}") for key, value in template.items()}
    for key, value in scope.items():
        if key not in maximum:
            raise _refused(f"{rule}.{key}", "the credential's `allow` has no such key")
        _check(value, maximum[key], f"{rule}.{key}")
    return scope


def _inserted(value: Any, arguments: Mapping[str, Any], where: str) -> Any:
    match value:
        case str():
            return _PLACE.sub(lambda found: _argument(found[1], arguments, where), value)
        case list() | tuple():
            return [_inserted(each, arguments, where) for each in value]
        case Mapping():
            return {key: _inserted(each, arguments, f"{where}.{key}") for key, each in value.items()}
        case _:
            return value


def _argument(name: str, arguments: Mapping[str, Any], where: str) -> str:
    value = arguments.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _refused(where, f"the call has no text `{name}` among its arguments")
    # The argument itself is not quoted: whoever chose it may have chosen it for who reads this.
    if len(value) > ARGUMENT_CHARS or _FIT.fullmatch(value) is None or ".." in value or "//" in value:
        raise _refused(where, f"the argument `{name}` may not be part of a scope: letters, digits and . _ - / @ may")
    return value


def _check(value: Any, maximum: Any, where: str) -> None:
    match value:
        case Mapping() if isinstance(maximum, Mapping):
            for key, each in value.items():
                if key not in maximum:
                    raise _refused(f"{where}.{key}", "the credential's `allow` has no such key")
                _check(each, maximum[key], f"{where}.{key}")
        case list() | tuple() if value:  # to a backend an empty list often means everything
            for each in value:
                _check_one(each, maximum, where)
        case str() | int() | float():
            _check_one(value, maximum, where)
        case _:
            raise _refused(where, "it is empty, or not of the form of the credential's `allow`")


def _check_one(value: Any, maximum: Any, where: str) -> None:
    choices = maximum if isinstance(maximum, list | tuple) else (maximum,)
    if not isinstance(value, str | int | float) or not any(_fits(value, choice) for choice in choices):
        raise _refused(where, "it is more than the credential's `allow` has")


def _fits(value: str | float, most: Any) -> bool:
    if isinstance(value, bool) or isinstance(most, bool):
        return value is False or most is True if isinstance(value, bool) and isinstance(most, bool) else False
    if isinstance(value, str):
        return isinstance(most, str) and fits_pattern(value, most)
    return isinstance(most, int | float) and value <= most


def fits_pattern(value: str, pattern: str) -> bool:
    """Whether a text is within an operator's pattern, where `*` is any characters but `/` and `**` is any.

    A value that holds a wildcard of its own is something wider than a text, so only the same words, or `**`, hold it.
    """
    if value == pattern:
        return True
    parts = (".*" if part == "**" else "[^/*?]*" if part == "*" else re.escape(part) for part in re.split(r"(\*+)", pattern))
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


def _refused(rule: str, detail: str) -> Refused:
    return Refused(Deny(reason=Reason.SCOPE_REFUSED, rule=rule, detail=f"{rule}: {detail}"))
