r"""Arguments and results against a tool's own schemas, which a stranger wrote.

Two attacks: a remote `$ref` makes the judge fetch a URL; a pattern like `^(a+)+$`, or branches that branch, cost seconds on a short
input. So references must stay inside the schema and the registry is empty, and every judgement runs under a limit of processor time.

Arguments pass when they fit the schema as written and the closed one (`closing`): closing a branch of a `oneOf` could otherwise let
through what the author refused. Results are held against the schema as written, as their client will.

Dialect: 2020-12, with draft-07's list of `items` and its `dependencies` rewritten, which npm servers still send.
Patterns are ECMA-262's: `$` there does not match before a final newline, and `\d` and `\w` are ASCII.
"""

from __future__ import annotations

import gc
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any, TypeVar

from fumehood.gateway.closing import At, closed, may_turn
from fumehood.gateway.protocol import printable

Made = TypeVar("Made")

JUDGE_CPU_S = 0.1
CHECK_CPU_S = 0.5

_DATA = frozenset(("const", "enum", "default", "examples"))
# They would change the dialect that is judged, or what references mean.
_DROPPED = frozenset(("$schema", "$id", "$vocabulary"))
# What a plain schema says; the last four ask for nothing.
_PLAIN = frozenset(("type", "maxLength", "title", "description", "default", "examples"))
_NAMED = frozenset(("properties", "$defs", "definitions", "dependentSchemas"))


class SchemaError(ValueError):
    """The schema cannot be judged safely."""


class _TooSlowError(BaseException):
    """Raised out of the judge by its timer; a BaseException, so that nothing in the judge takes it for its own."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What does not fit, in one line. `undescribed`: the schema as written would take it, because it says nothing of it."""

    detail: str
    undescribed: bool = False


class Schema:
    """One schema of a tool's, ready to judge. Raises `SchemaError` when that would not be safe."""

    def __init__(self, schema: Any, cpu_s: float = CHECK_CPU_S, *, opens: Sequence[At] | None = ()) -> None:
        """Check the schema itself, in at most `cpu_s` of processor time. It is closed but at `opens`; None: not at all."""
        import jsonschema  # type: ignore[import-untyped]
        import referencing

        if not isinstance(schema, dict):
            raise SchemaError("it is not an object")
        validator = _dialect()
        try:
            plain, shut = limited(cpu_s, lambda: _checked(schema, validator, opens))
        except _TooSlowError as error:
            raise SchemaError("it takes too long to check") from error
        except (jsonschema.SchemaError, RecursionError) as error:
            raise SchemaError(f"it is not valid: {_first_line(error)}") from error
        nowhere: Any = referencing.Registry()
        self._plain = validator(plain, registry=nowhere)
        self._closed = None if shut is None else validator(shut, registry=nowhere)
        self._both = shut is None or may_turn(plain)

    def fault(self, value: Any, cpu_s: float = JUDGE_CPU_S) -> Fault | None:
        """What is wrong with a value, or None. Only in the main thread: the limit is a signal."""
        try:
            return limited(cpu_s, lambda: self._first_fault(value))
        except _TooSlowError:
            return Fault(f"judging it took more than {cpu_s:g} s")
        except Exception as error:  # noqa: BLE001 - an unresolvable or endless reference: not judged is not passed
            return Fault(f"it cannot be judged: {printable(type(error).__name__)}")

    def _first_fault(self, value: Any) -> Fault | None:
        shut = None if self._closed is None else _first(self._closed, value)
        if shut is None and not self._both:
            return None
        plain = _first(self._plain, value)
        if plain is not None:
            return Fault(plain)
        return None if shut is None else Fault(shut, undescribed=True)


@cache
def _dialect() -> Any:
    """The library's 2020-12, but a member that fits a schema which says a type, or how long at most, gets no validator of its own.

    Most members are such, and making validators is most of what the library does. Whatever does not fit is the library's to tell.
    """
    import jsonschema

    library = jsonschema.Draft202012Validator
    properties = library.VALIDATORS["properties"]

    def sparing(judge: Any, members: Mapping[str, Any], value: Any, schema: Any) -> Iterator[Any]:
        if judge.is_type(value, "object"):
            rest = {name: of for name, of in members.items() if name in value and not _is_plainly(judge, value[name], of)}
            yield from properties(judge, rest, value, schema)

    return jsonschema.validators.extend(library, {"properties": sparing})


def _is_plainly(judge: Any, value: Any, schema: Any) -> bool:
    """Whether a value fits such a schema. False also when that is not seen at once."""
    if not isinstance(schema, dict) or not schema.keys() <= _PLAIN:
        return False
    wanted = schema.get("type")
    if not isinstance(wanted, str) or not judge.is_type(value, wanted):
        return False
    return not isinstance(value, str) or "maxLength" not in schema or len(value) <= schema["maxLength"]


def _first(judge: Any, value: Any) -> str | None:
    for error in judge.iter_errors(value):
        return f"{printable(error.json_path, 100)}: {_first_line(error)}"
    return None


def _checked(schema: Mapping[str, Any], validator: Any, opens: Sequence[At] | None) -> tuple[Any, Any]:
    plain = _rewritten(schema)
    validator.check_schema(plain)
    return plain, None if opens is None else closed(plain, opens)


def _rewritten(node: Any) -> Any:
    """The schema in 2020-12 with Python's patterns. Raises `SchemaError` for references that leave it."""
    if isinstance(node, list):
        return [_rewritten(item) for item in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for key, value in node.items():
        made |= _member(key, value, node)
    return made


def _member(key: str, value: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """One member, as the members that it becomes."""
    made: dict[str, Any] = {}
    if key in _DATA:
        made[key] = value
    elif isinstance(value, str):
        made[key] = _text(key, value)
    elif isinstance(value, list) and key == "items":
        made["prefixItems"] = _rewritten(value)
        if "additionalItems" in node:
            made["items"] = _rewritten(node["additionalItems"])
    elif isinstance(value, dict) and key == "patternProperties":
        made[key] = {python_pattern(name): _rewritten(item) for name, item in value.items()}
    elif isinstance(value, dict) and key == "dependencies":
        made["dependentRequired"] = {name: item for name, item in value.items() if isinstance(item, list)}
        made["dependentSchemas"] = {name: _rewritten(i) for name, i in value.items() if not isinstance(i, list)}
    elif isinstance(value, dict) and key in _NAMED:
        made[key] = {name: _rewritten(item) for name, item in value.items()}
    else:
        made[key] = _rewritten(value)
    return {} if key in _DROPPED else made


def _text(key: str, value: str) -> str:
    if key in ("$ref", "$dynamicRef") and not value.startswith("#"):
        raise SchemaError(f"it refers to something outside itself: {printable(value)!r}")
    return python_pattern(value) if key == "pattern" else value


_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?<(?![=!])|\$|.", re.DOTALL)


def python_pattern(pattern: str) -> str:
    """An ECMA-262 pattern as Python's `re` reads it alike. Raises `SchemaError` where it cannot."""

    def token(match: re.Match[str]) -> str:
        text = match[0]
        return {"$": r"\Z", "(?<": "(?P<"}.get(text, text)

    # ASCII inside a group of its own: jsonschema joins the patterns of `patternProperties` with `|`.
    made = f"(?a:{_TOKEN.sub(token, pattern)})"
    try:
        re.compile(made)
    except (re.error, RecursionError, OverflowError) as error:
        raise SchemaError(f"its pattern {printable(pattern, 80)!r} cannot be judged here") from error
    return made


def _first_line(error: Any) -> str:
    return printable(str(getattr(error, "message", error)).partition("\n")[0])


def limited(cpu_s: float, work: Callable[[], Made]) -> Made:
    """What `work` returns, unless it takes more than `cpu_s` of processor time: then `_TooSlowError`.

    A signal ends it wherever it is: `re` looks for signals while it matches. No garbage is collected meanwhile: the
    interpreter would run other people's finalisers inside the work, and an exception in one of those is swallowed,
    which leaves their tables wrong and the work running. Should one be lost all the same, the timer fires again. The
    handler raises only below `guarded`, so a late signal never hits the code that stops the timer, or anything after.
    """

    def guarded() -> Made:
        return work()

    def stop(_signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is guarded.__code__:
                raise _TooSlowError
            frame = frame.f_back

    collecting = gc.isenabled()
    previous = signal.signal(signal.SIGVTALRM, stop)
    gc.disable()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, cpu_s)
        return guarded()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
        if collecting:
            gc.enable()
