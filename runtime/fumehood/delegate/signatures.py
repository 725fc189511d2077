"""Which functions can be handed over, and how their arguments and results travel: as JSON, judged by the function's own types.

Supported: None, bool, int, float, str, Literal and Enum of these, Any (whatever is JSON), list, set, frozenset, Sequence,
tuple, dict and Mapping with string keys, dataclasses, TypedDict, Annotated with pydantic's constraints, and unions whose
members JSON can tell apart. Anything else is refused when the function is decorated, in one line that names the parameter:
a type that only looked as if it travelled would arrive as another one.

Invariants: what is validated is the JSON text itself, strictly (a string is no number), on the way in and on the way out;
nothing is ever pickled. A parameter of an SDK's `Context` type stays on the host. Pure.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fumehood.delegate import runner
from fumehood.faults import FumehoodError, Refused
from fumehood.model import Deny
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ARGUMENTS_BYTES = 4 * 2**20
_PLAIN = (None, type(None), bool, int, float, str, Any)
_ARRAYS = (list, set, frozenset, collections.abc.Sequence)
_OBJECTS = (dict, collections.abc.Mapping)
_SDKS = ("mcp", "fastmcp")
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def unfit(function: Callable[..., Any], detail: str) -> FumehoodError:
    """The refusal of a function, at its decoration."""
    return FumehoodError(Reason.FUNCTION_UNFIT, f"`{getattr(function, '__qualname__', function)}` cannot be handed over: {detail}")


def refused(detail: str) -> Refused:
    """The refusal of a call's arguments."""
    return Refused(Deny(reason=Reason.ARGUMENTS_INVALID, rule="delegate.types", detail=detail))


@dataclass(frozen=True, slots=True)
class Signature:
    """A function's parameters that travel, the one that stays, and its result."""

    whole: inspect.Signature
    parameters: Mapping[str, TypeAdapter[Any]]
    context: str | None
    result: TypeAdapter[Any] = field(repr=False)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """A Python call's arguments as JSON values, and the context given. Raises `Refused`."""
        try:
            given = self.whole.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise refused(str(error)) from None
        context = given.pop(self.context, None) if self.context else None
        # A default is the function's own affair, and need not even fit its annotation.
        own = {name: value for name, value in given.items() if value is not self.whole.parameters[name].default}
        return self._judged(own), context

    def from_json(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that are JSON values already, judged. Raises `Refused`."""
        strangers = [name for name in values if name not in self.parameters]
        needed = (name for name, one in self.whole.parameters.items() if one.default is one.empty and name != self.context)
        absent = [name for name in needed if name not in values]
        if strangers or absent:
            wrong = f"there is no parameter `{strangers[0]}`" if strangers else f"`{absent[0]}` is missing"
            raise refused(wrong)
        return self._judged(values)

    def _judged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        judged = {}
        size = 0
        for name, value in values.items():
            try:
                judged[name] = runner.plain(value)
                text = _text(judged[name])
                size += len(text)
                self.parameters[name].validate_json(text, strict=True)
            except (ValueError, RecursionError) as error:
                raise refused(f"`{name}`: {_line(error)}") from None
        if size > ARGUMENTS_BYTES:
            raise refused(f"the arguments are over {ARGUMENTS_BYTES} bytes")
        return judged

    def value(self, result: Any) -> Any:
        """A result that came as a JSON value, as the function's return type. Raises ValueError in one line."""
        try:
            return self.result.validate_json(_text(result), strict=True)
        except (ValueError, RecursionError) as error:
            raise ValueError(_line(error)) from None


def signature_of(function: Callable[..., Any]) -> Signature:
    """What of a function's signature travels. Raises FumehoodError(FUNCTION_UNFIT)."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # an annotation is any expression of the author's
        raise unfit(function, f"an annotation cannot be resolved where it is decorated ({_line(error)})") from error
    whole = inspect.signature(function)
    contexts = [name for name in whole.parameters if is_context(hints.get(name))]
    if len(contexts) > 1:
        raise unfit(function, "it has two parameters of the SDK's Context type")
    adapters = {}
    for name, parameter in whole.parameters.items():
        if parameter.kind not in _KINDS:
            raise unfit(function, f"`{name}` has no name that a JSON object could give it; write it as an ordinary parameter")
        if name not in contexts:
            adapters[name] = _adapter(function, f"parameter `{name}`", hints.get(name, Any))
    result = _adapter(function, "its result", hints.get("return", Any))
    return Signature(whole, adapters, contexts[0] if contexts else None, result)


def is_context(hint: Any) -> bool:
    """Whether an annotation is the context type of a known SDK, or an optional one. Imports none of them."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return any(is_context(arm) for arm in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and any(
        base.__name__ == "Context" and base.__module__.split(".")[0] in _SDKS for base in kind.__mro__
    )


def _adapter(function: Callable[..., Any], what: str, hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    if fault := _fault(hint, frozenset()):
        raise unfit(function, f"{what}: {fault}")
    try:
        return TypeAdapter(_readable(hint))
    except PydanticUserError as error:
        raise unfit(function, f"{what}: {_line(error)}") from None


def _fault(hint: Any, seen: frozenset[Any]) -> str:
    """Why a type cannot travel; empty when it can."""
    if hint in _PLAIN or hint in seen:
        return ""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Annotated, typing.Required, typing.NotRequired}:
        return _fault(args[0], seen)
    if origin is typing.Literal:
        return next((f"Literal of {choice!r}" for choice in args if not isinstance(choice, (str, int, bool, type(None)))), "")
    if origin in {typing.Union, types.UnionType}:
        return _union_fault(args, seen)
    if origin in _ARRAYS or (origin is tuple and args):
        return next((fault for one in args if one is not ... and (fault := _fault(one, seen))), "")
    if origin in _OBJECTS:
        return _fault(args[1], seen) if args[0] is str else "an object's keys are strings; write dict[str, ...]"
    if hint in {list, dict}:
        return ""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next((f"{hint.__name__}.{one.name} is no JSON value" for one in hint if not isinstance(one.value, (str, int))), "")
    if typing.is_typeddict(hint) or (isinstance(hint, type) and dataclasses.is_dataclass(hint) and _is_plain_dataclass(hint)):
        inner = typing.get_type_hints(hint, include_extras=True)
        return next((f"{hint.__name__}.{name}: {fault}" for name, one in inner.items() if (fault := _fault(one, seen | {hint}))), "")
    name = getattr(hint, "__name__", hint)
    return f"{name} cannot travel as JSON; use str, int, float, bool, list, dict[str, ...], a dataclass or a TypedDict"


def _union_fault(arms: tuple[Any, ...], seen: frozenset[Any]) -> str:
    if inner := next((fault for arm in arms if (fault := _fault(arm, seen))), ""):
        return inner
    kinds = [runner.kind_of(arm) for arm in arms]
    made = [arm for arm in arms if arm not in _PLAIN and typing.get_origin(arm) is not typing.Literal]
    # Plain members need no telling apart: their JSON value is the value.
    if made and ("any" in kinds or any(kinds.count(runner.kind_of(arm)) > 1 for arm in made)):
        return f"JSON cannot tell {' and '.join(getattr(arm, '__name__', str(arm)) for arm in arms)} apart"
    return ""


def _is_plain_dataclass(kind: type) -> bool:
    """The standard library's, made from its fields alone: others have validators that the box does not know."""
    return not hasattr(kind, "__pydantic_fields__") and all(one.init for one in dataclasses.fields(kind))


def _readable(hint: Any) -> Any:
    """The hint with each TypedDict as pydantic takes it: before Python 3.12 it refuses the standard library's own."""
    if typing.is_typeddict(hint):
        from typing_extensions import TypedDict

        fields = {
            name: typing.Required[_readable(one)] if name in hint.__required_keys__ else typing.NotRequired[_readable(one)]
            for name, one in typing.get_type_hints(hint).items()
        }
        make: Any = TypedDict  # the functional form, with a name and fields that no type checker can read
        made = make(hint.__name__, fields)
        made.__pydantic_config__ = {"extra": "forbid"}
        return made
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return typing.Union[tuple(_readable(arm) for arm in args)]  # noqa: UP007 - from a tuple
    if origin in _ARRAYS or origin in _OBJECTS or origin is tuple:
        return origin[tuple(one if one is ... else _readable(one) for one in args)]
    return hint


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _line(error: BaseException) -> str:
    """An error in one printable line; pydantic's without its links."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        first = errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "".join(letter if letter.isprintable() else " " for letter in words)[:300]
