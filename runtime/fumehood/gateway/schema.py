r"""Arguments against a tool's own input schema, which a stranger wrote.

Three attacks: a remote `$ref` makes the judge fetch a URL; a pattern like `^(a+)+$`, or branches that branch, cost
seconds on a short input; and a schema that closes its top level leaves nested objects open for members that it never
names. So references must stay inside the schema and the registry is empty; every judgement runs under a limit of
processor time; and every object that names its properties is closed, unless the schema itself opens it with
`additionalProperties`, `patternProperties` or `unevaluatedProperties`. A nested object that names no property at all is
a free-form map and stays open; the arguments themselves are always closed.

What passes has passed both the schema as written and the closed one: closing a branch of a `oneOf` could otherwise let
through what the author refused. `not`, `if` and `contains` are never closed, which would turn their meaning round.

Dialect: 2020-12, with draft-07's list of `items` and its `dependencies` rewritten, which npm servers still send.
Patterns are ECMA-262's: `$` there does not match before a final newline, and `\d` and `\w` are ASCII.
"""

from __future__ import annotations

import gc
import re
import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

from fumehood.gateway.protocol import printable

Made = TypeVar("Made")

JUDGE_CPU_S = 0.1
CHECK_CPU_S = 0.5

_SCHEMA = frozenset(("additionalProperties", "unevaluatedProperties", "items", "unevaluatedItems"))
_SCHEMA_LIST = frozenset(("prefixItems",))
_SCHEMA_MAP = frozenset(("properties", "patternProperties"))
_IN_PLACE = frozenset(("then", "else"))
_IN_PLACE_LIST = frozenset(("allOf", "anyOf", "oneOf"))
_IN_PLACE_MAP = frozenset(("dependentSchemas", "$defs", "definitions"))
_DATA = frozenset(("const", "enum", "default", "examples"))
# They would change the dialect that is judged, or what references mean.
_DROPPED = frozenset(("$schema", "$id", "$vocabulary"))
_NAMED = frozenset(("properties", "$defs", "definitions", "dependentSchemas"))
_OPENING = frozenset(("additionalProperties", "unevaluatedProperties"))


class SchemaError(ValueError):
    """The schema cannot be judged safely."""


class _TooSlowError(BaseException):
    """Raised out of the judge by its timer; a BaseException, so that nothing in the judge takes it for its own."""


class Schema:
    """One tool's input schema, ready to judge. Raises `SchemaError` when that would not be safe."""

    def __init__(self, schema: Any, cpu_s: float = CHECK_CPU_S) -> None:
        """Check the schema itself, in at most `cpu_s` of processor time."""
        import jsonschema  # type: ignore[import-untyped]
        import referencing

        if not isinstance(schema, dict):
            raise SchemaError("it is not an object")
        validator = jsonschema.Draft202012Validator
        try:
            both = limited(cpu_s, lambda: _checked(schema, validator))
        except _TooSlowError as error:
            raise SchemaError("it takes too long to check") from error
        except (jsonschema.SchemaError, RecursionError) as error:
            raise SchemaError(f"it is not valid: {_first_line(error)}") from error
        nowhere: Any = referencing.Registry()
        self._judges = [validator(each, registry=nowhere) for each in both]

    def fault(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments, in one line, or None. Only in the main thread: the limit is a signal."""
        try:
            return limited(JUDGE_CPU_S, lambda: self._first_fault(arguments))
        except _TooSlowError:
            return f"judging them took more than {JUDGE_CPU_S} s"
        except Exception as error:  # noqa: BLE001 - an unresolvable or endless reference: not judged is not passed
            return f"they cannot be judged: {printable(type(error).__name__)}"

    def _first_fault(self, arguments: Mapping[str, Any]) -> str | None:
        for judge in self._judges:
            for error in judge.iter_errors(arguments):
                return f"{printable(error.json_path, 100)}: {_first_line(error)}"
        return None


def _checked(schema: Mapping[str, Any], validator: Any) -> tuple[Any, Any]:
    plain = _rewritten(schema)
    validator.check_schema(plain)
    return plain, closed(plain)


def closed(schema: Any) -> Any:
    """The schema with every object closed that names its properties and is not opened. The argument is untouched."""
    return _close(schema, schema, owns=True, root=True)


def _close(node: Any, root_schema: Any, *, owns: bool, root: bool = False) -> Any:
    """Close a schema. `owns`: it is the one for its place, not one of several that apply to the same object."""
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key in _SCHEMA:
            made[key] = _close(value, root_schema, owns=True)
        elif key in _SCHEMA_LIST and isinstance(value, list):
            made[key] = [_close(item, root_schema, owns=True) for item in value]
        elif key in _SCHEMA_MAP and isinstance(value, dict):
            made[key] = {name: _close(item, root_schema, owns=True) for name, item in value.items()}
        elif key in _IN_PLACE:
            made[key] = _close(value, root_schema, owns=False)
        elif key in _IN_PLACE_LIST and isinstance(value, list):
            made[key] = [_close(item, root_schema, owns=False) for item in value]
        elif key in _IN_PLACE_MAP and isinstance(value, dict):
            made[key] = {name: _close(item, root_schema, owns=False) for name, item in value.items()}
        else:
            made[key] = value
    if owns and not _OPENING & node.keys() and (root or _names_properties(node, root_schema, set())):
        # Not `additionalProperties`: that sees only its own neighbours, and would refuse what an `allOf` names.
        made["unevaluatedProperties"] = False
    return made


def _names_properties(node: Any, root_schema: Any, seen: set[int]) -> bool:
    """Whether this schema, or one that applies to the same object, lists properties."""
    if not isinstance(node, dict) or id(node) in seen:
        return False
    seen.add(id(node))
    if "properties" in node:
        return True
    beside = [node[key] for key in _IN_PLACE & node.keys()]
    beside += [item for key in _IN_PLACE_LIST & node.keys() if isinstance(node[key], list) for item in node[key]]
    if isinstance(ref := node.get("$ref"), str):
        beside.append(_target(root_schema, ref))
    return any(_names_properties(item, root_schema, seen) for item in beside)


def _target(root_schema: Any, ref: str) -> Any:
    """What a JSON pointer inside the schema names, or None (an anchor): then nothing is added, which only opens."""
    found = root_schema
    for part in ref.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


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
