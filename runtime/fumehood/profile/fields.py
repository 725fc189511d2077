"""The fields that operators' files are made of: units, names, paths, and the strict model that takes exactly what it names.

Nothing is coerced, and every error says what was expected in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from fumehood.profile import units
from fumehood.profile.files import NAME_PATTERN

VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"


def expected(message: str) -> PydanticCustomError:
    """An error whose text is exactly `message`."""
    return PydanticCustomError("expected", "{message}", {"message": message})


def checked(check: Callable[[str], object]) -> BeforeValidator:
    """A string that `check` does not raise ValueError for, whose text says what was expected."""
    def validated(value: object) -> object:
        if not isinstance(value, str):
            raise expected(f"expected a string, found {value!r}")
        try:
            check(value)
        except ValueError as error:
            raise expected(str(error)) from None
        return value

    return BeforeValidator(validated)


def measured(parse: Callable[[object], float], show: Callable[[Any], str], low: float, high: float) -> BeforeValidator:
    """A number that `parse` reads from a text, between two that `show` can write."""
    def check(value: object) -> float:
        try:
            number = parse(value)
        except ValueError as error:
            raise expected(str(error)) from None
        if not low <= number <= high:
            raise expected(f"expected between {show(low)} and {show(high)}, found {value}")
        return number

    return BeforeValidator(check)


def size(low: int, high: int = 2**44) -> tuple[BeforeValidator, WithJsonSchema]:
    """Bytes, written with their unit."""
    schema = WithJsonSchema({"type": "string", "pattern": units.SIZE_PATTERN, "examples": ["512MiB"]})
    return measured(units.bytes_of, units.size_text, low, high), schema


def duration(low: float, high: float = 86_400.0) -> tuple[BeforeValidator, WithJsonSchema]:
    """Seconds, written with their unit."""
    schema = WithJsonSchema({"type": "string", "pattern": units.DURATION_PATTERN, "examples": ["60s"]})
    return measured(units.seconds_of, units.duration_text, low, high), schema


Retention = Annotated[float, *duration(60, 30 * 86_400.0)]


def matching(pattern: str, what: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """A string that matches as a whole; `what` says in words what is expected."""
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        # fullmatch: `$` alone would let a trailing newline through.
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise expected(f"expected {what}, found {value!r}")
        return value

    return BeforeValidator(check), WithJsonSchema({"type": "string", "pattern": pattern})


def _absolute(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise expected(f"expected an absolute path without `..`, found {value!r}")
    return value.rstrip("/") or "/"


def _text(value: object) -> str:
    if not isinstance(value, str):
        hint = f'; write "{value}" in quotes' if isinstance(value, bool | int | float) else ""
        raise expected(f"expected a string{hint}")
    if "\0" in value:
        raise expected("expected a string without NUL")
    return value


def _reserved(value: object) -> Any:
    if value in (None, [], {}):
        return None
    # The type is how `resolve` tells what cannot be enforced from what is badly written.
    raise PydanticCustomError("unenforceable", "expected nothing: this release cannot enforce it, so it refuses it")


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[str, *matching(NAME_PATTERN, "a name of a-z, 0-9, `.`, `_`, `-`")]
Variable = Annotated[str, *matching(VARIABLE_PATTERN, "a variable name of letters, digits and `_`")]
AbsolutePath = Annotated[str, BeforeValidator(_absolute), WithJsonSchema({"type": "string", "pattern": "^/"})]
Reserved = Annotated[
    None,
    BeforeValidator(_reserved),
    WithJsonSchema({"description": "Reserved: refused in this release.", "maxItems": 0}),
]


class Strict(BaseModel):
    """A model that takes exactly what it names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
