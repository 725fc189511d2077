"""A call as policies see it: Cedar's request and entities, in JSON. Pure.

Cedar has no schema for each tool's arguments, so they are tags of one entity a type, by their place (`rows/0/name`, a JSON pointer
without its first slash). Cedar has no fractions: a number that is no whole one of 64 bits is a text of its digits; 3.0 is 3, as it is
to most servers. Only what some policy asks for is written down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fumehood.policies.asked import Asked
from fumehood.policies.naming import door_of
from fumehood.policies.places import host_of, path_of

TYPES = {"text": "Text", "number": "Number", "flag": "Flag", "list": "List", "path": "Path", "host": "Host"}
_LONG = 2**63


def entities_of(asked: Asked, wanted: Collection[str] | None) -> list[dict[str, Any]]:
    """The sender, the resource and the arguments. `wanted` are the places that policies ask for; None for all of them."""
    sender, named = asked.sender, asked.resource
    attributes = {"uid": sender.uid, "tenant": sender.tenant, "door": door_of(sender)}
    parents = [] if named.server is None else [_uid("Server", named.server)]
    tags = tags_of(asked.arguments, wanted)
    return [
        {"uid": _uid("Sender", sender.name), "attrs": attributes, "parents": [_uid("Group", group) for group in sender.groups]},
        {"uid": _uid(named.type, named.id), "attrs": {}, "parents": parents},
        *({"uid": _uid(kind, ""), "attrs": {}, "parents": [], "tags": tags[name]} for name, kind in TYPES.items()),
    ]


def request_of(asked: Asked) -> dict[str, Any]:
    """Principal, resource and context; who decides adds the action."""
    at, known = time.gmtime(asked.at_s), asked.conversation
    context = {
        "kind": asked.kind,
        "door": asked.door,
        "profile": asked.profile,
        "scope": asked.scope,
        "owner": asked.owner,
        "time": {"epoch": int(asked.at_s), "hour": at.tm_hour, "weekday": at.tm_wday + 1},
        "labels": sorted(asked.labels),
        "conversation": {"done": sorted(known.done), "since": sorted(known.since), "taint": sorted(known.taint)},
        **{name: {"__entity": _uid(kind, "")} for name, kind in TYPES.items()},
    }
    return {
        "principal": _uid("Sender", asked.sender.name), "resource": _uid(asked.resource.type, asked.resource.id),
        "context": json.dumps(context),
    }  # fmt: skip


def tags_of(arguments: Mapping[str, Any], wanted: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """The arguments by type and place."""
    tags: dict[str, dict[str, Any]] = {name: {} for name in TYPES}
    found = _values(arguments) if wanted is None else ((place, value) for place in wanted for value in _at(arguments, place))
    for place, value in found:
        for name, projected in _typed(value):
            tags[name][place] = projected
    return tags


def _at(arguments: Mapping[str, Any], place: str) -> Iterator[Any]:
    """What is at a place, if there is something."""
    value: Any = arguments
    for step in place.split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and name in value and _escaped(name) == step:
            value = value[name]
        elif isinstance(value, list | tuple) and step.isdecimal() and str(number := int(step)) == step and number < len(value):
            value = value[number]
        else:
            return
    yield value


def _values(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value with its place, without recursion: arguments are as deep as a profile lets them be."""
    todo: list[tuple[str, Any]] = [(_escaped(name), value) for name, value in arguments.items()]
    while todo:
        here, found = todo.pop()
        yield here, found
        if isinstance(found, Mapping):
            todo.extend((f"{here}/{_escaped(name)}", inner) for name, inner in found.items())
        elif isinstance(found, list | tuple):
            todo.extend((f"{here}/{number}", inner) for number, inner in enumerate(found))


def _typed(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case bool():
            yield "flag", value
        case int() if -_LONG <= value < _LONG:
            yield "number", value
        case float() if value.is_integer() and -_LONG <= value < _LONG:
            yield "number", int(value)
        case int() | float():
            yield "text", repr(value)
        case str():
            yield "text", value
            if (path := path_of(value)) is not None:
                yield "path", path
            if (host := host_of(value)) is not None:
                yield "host", host
        case list() | tuple() if all(isinstance(each, str) for each in value):
            yield "list", sorted(set(value))
        case _:
            return


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}
