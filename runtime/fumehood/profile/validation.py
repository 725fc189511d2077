"""A parsed file into a strict model, with each error told in our words at its line and column. Pure.

Shared by profiles, seccomp files and fumehood.yaml, so that all three complain alike.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fumehood.profile.problems import Problem, Problems, dotted, nearest
from fumehood.profile.source import Path, Source
from fumehood.reasons import Reason

Model = TypeVar("Model", bound=BaseModel)

# Where people look for a field first, and where it is.
_MOVED = {
    "limits.tmp": "filesystem.tmp",
    "tmp": "filesystem.tmp",
    "workspace": "filesystem.workspace",
    "mounts": "filesystem.mounts",
    "memory": "limits.memory",
    "cpu": "limits.cpu",
    "timeout": "limits.wall",
    "limits.timeout": "limits.wall",
    "egress": "network.egress",
    "env": "environment",
    "filesystem.disk": "limits.disk",
}


def validate(source: Source, model: type[Model]) -> Model:
    """The file as `model`. Raises Problems with everything that is wrong with it."""
    value = source.value
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Problems([source.problem((), f"expected a map of fields, found {_kind(value)}")])
    return validate_part(source, model, (), value)


def validate_part(source: Source, model: type[Model], at: Path, value: dict[str, Any]) -> Model:
    """The map at a place of the file, or what is to be judged of it, as `model`. Raises Problems."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=True)
        problems = [_problem(source, model, at, value, detail) for detail in details]
        unique = {(problem.line, problem.column, problem.field, problem.message): problem for problem in problems}
        raise Problems(sorted(unique.values(), key=lambda problem: (problem.line, problem.column))) from None


def _problem(source: Source, model: type[BaseModel], at: Path, value: Any, detail: ErrorDetails) -> Problem:
    inner = _field_path(value, detail["loc"])
    path = (*at, *inner)
    kind = detail["type"]
    context = detail.get("ctx", {})
    found = detail["input"]
    if kind == "unenforceable":
        return source.problem(path, detail["msg"], key=True, reason=Reason.UNENFORCEABLE)
    if kind == "extra_forbidden":
        moved = _MOVED.get(dotted(path))
        names = _fields_at(model, inner[:-1])
        hint = f"; did you mean {moved}?" if moved and path[0] not in names else nearest(str(path[-1]), names)
        if moved and path[:-1] and path[0] in names:
            hint = f"; did you mean {moved}?"
        return source.problem(path, f"expected a known field{hint}", key=True)
    if kind == "missing":
        return source.problem(path, "expected this field, which has no default")
    if kind == "literal_error":
        values = str(context["expected"]).replace("'", "")
        close = nearest(found, values.replace(" or ", ", ").split(", ")) if isinstance(found, str) else ""
        close = close if close.startswith("; nearest") else ""
        return source.problem(path, f"expected {values}, found {_shown(found)}{close}")
    if kind == "expected":
        return source.problem(path, detail["msg"], key="[key]" in detail["loc"])
    return source.problem(path, _expectation(kind, context, found))


def _expectation(kind: str, context: dict[str, Any], found: Any) -> str:
    bounds = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
    if kind in bounds:
        name, words = bounds[kind]
        return f"expected {words} {context[name]:g}, found {_shown(found)}"
    if kind in ("string_too_short", "too_short"):
        unit = "characters" if kind.startswith("string") else "entries"
        return f"expected at least {context['min_length']} {unit}"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind.startswith("string") else "entries"
        return f"expected at most {context['max_length']} {unit}"
    wanted = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "a string",
        "tuple": "a list",
        "list": "a list",
        "dict": "a map of names to values",
        "model": "a map of fields",
        "none": "nothing",
    }
    for prefix, words in wanted.items():
        if kind.startswith(prefix):
            return f"expected {words}, found {_shown(found)}"
    return f"expected another value ({kind.replace('_', ' ')}), found {_shown(found)}"


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else _kind(value) if isinstance(value, dict | list) else str(value)


def _kind(value: Any) -> str:
    return {dict: "a map", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}.get(
        type(value), "a number"
    )


def _field_path(value: Any, loc: tuple[int | str, ...]) -> Path:
    """The location without pydantic's own steps (union members, `[key]`): what the file has, and the last."""
    path: list[int | str] = []
    for number, step in enumerate(loc):
        last = number == len(loc) - 1
        listed = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if listed or (isinstance(value, dict) and step in value):
            path.append(step)
            value = value[step]
        elif last and isinstance(value, dict) and step != "[key]":
            path.append(step)
    return tuple(path)


def _fields_at(model: type[BaseModel], path: Path) -> list[str]:
    """The names that are valid below `path`."""
    current: type[BaseModel] | None = model
    names_next = False
    for step in path:
        if isinstance(step, int) or names_next:
            names_next = False  # what a map calls its entry is no field
            continue
        field = current.model_fields.get(step) if current else None
        current = _model_in(field.annotation) if field else None
        names_next = field is not None and get_origin(field.annotation) is dict
    return [field.alias or name for name, field in current.model_fields.items()] if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        if found := _model_in(part):
            return found
    return None
