"""Schemas closed: what a tool's schema does not describe, a call does not hold. Pure.

The attack: a schema that closes its top level leaves nested objects open for members that it never names, and so does every place
that it says nothing of. A server reads them, and nobody who reviewed the schema has seen them. So every object is closed: one that
names its properties to these, one that names none to none, and a place where anything is allowed to values without objects in it.
What the schema describes stays as described: a map whose values have a schema (`additionalProperties`, `patternProperties`) is one.

A schema's own `additionalProperties: true` is no reason to leave a place open: that is for the operator to say, who names the tool, or
a place in it, in `arguments.open` of the profile. There the schema's word counts as before: objects that name properties are closed
unless it opens them, and free-form ones are open.

`not`, `if` and `contains` are never closed, which would turn their meaning round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

At = tuple[str, ...]

_ANY = "fumehood.any"
_OPEN = "fumehood.open"
_SCHEMA = frozenset(("additionalProperties", "unevaluatedProperties", "items", "unevaluatedItems"))
_SCHEMA_LIST = frozenset(("prefixItems",))
_IN_PLACE = frozenset(("then", "else"))
_IN_PLACE_LIST = frozenset(("allOf", "anyOf", "oneOf"))
_SHARED = frozenset(("$defs", "definitions"))
_APPLICATORS = frozenset(
    (*_IN_PLACE, *_IN_PLACE_LIST, "if", "dependentSchemas", "$ref", "$dynamicRef", "unevaluatedProperties")
)
# With one of these a schema may take what it would refuse if a part of it were not closed.
_TURNING = frozenset(("oneOf", "not", "if", "contains"))
_OPENING = frozenset(("additionalProperties", "unevaluatedProperties"))
_REMARKS = frozenset(("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "format"))


def places(entries: Sequence[str], tool: str) -> tuple[At, ...]:
    """What of `arguments.open` is about this tool, as paths of argument names; the empty one is the whole."""
    found: list[At] = []
    for entry in entries:
        if entry in {"*", tool}:
            return ((),)
        if entry.startswith(f"{tool}/"):
            found.append(tuple(_unescaped(part) for part in entry[len(tool) + 1 :].split("/")))
    return tuple(found)


def closed(schema: Mapping[str, Any], opens: Sequence[At] = ()) -> Any:
    """The schema with every object closed but at the places that are opened. The argument is untouched."""
    closing = _Closing(schema, tuple(opens))
    made = closing.close(schema, (), root=True)
    beside: dict[str, Any] = {_ANY: closing.anything} if closing.needs_any else {}
    if closing.needs_open:
        beside[_OPEN] = closing.close(schema, (), free=True)
    return made if not beside else {**made, "$defs": {**made.get("$defs", {}), **beside}}


def may_turn(schema: Any) -> bool:
    """Whether closing a part of the schema could make the whole take more: then what is judged must fit it unclosed, too."""
    if isinstance(schema, dict):
        return bool(_TURNING & schema.keys()) or any(map(may_turn, schema.values()))
    return isinstance(schema, list) and any(map(may_turn, schema))


class _Closing:
    def __init__(self, root: Mapping[str, Any], opens: tuple[At, ...]) -> None:
        self._root = root
        self._opens = opens
        self.needs_any = self.needs_open = False

    @property
    def anything(self) -> dict[str, Any]:
        """Any value that holds no member of any object."""
        return {"unevaluatedProperties": False, "items": {"$ref": f"#/$defs/{_ANY}"}}

    def close(
        self, node: Any, at: At | None, *, owns: bool = True, root: bool = False, free: bool = False,
        refs: frozenset[str] = frozenset(),
    ) -> Any:  # fmt: skip
        """Close a schema. `at`: its place in the arguments, None where that is not known: in what references share.

        `owns`: it is the one for its place, not one of several that apply to the same object. `free`: the place is opened.
        `refs`: the references that led here from the same place.
        """
        free = free or () in self._opens or (at is not None and any(at[: len(path)] == path for path in self._opens))
        if node is True and not free:
            node = {}
        if not isinstance(node, dict):
            return node
        made: dict[str, Any] = {}
        inlined: list[Any] = []
        for key, value in node.items():
            if key in _OPENING and not free and not _describes(value):
                continue  # it says: anything
            if key != "$ref" or not isinstance(value, str):
                made[key] = self._member(key, value, at, free=free, refs=refs)
            elif value not in refs and (target := self._led_on(value, at, free=free)) is not None:
                inlined.append(self.close(target, at, owns=False, refs=refs | {value}))
            else:
                made[key] = self._pointed(value, free=free)
        if inlined:
            made["allOf"] = [*made.get("allOf", ()), *inlined]
        if not owns or "const" in node or "enum" in node:
            return made
        return self._shut_freely(made, node, root=root) if free else self._shut(made, node)

    def _shut(self, made: dict[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
        if _may_be("object", node) and "additionalProperties" not in made:
            # `additionalProperties` sees only its own neighbours, and would refuse what an `allOf` names; where there is nothing but
            # neighbours it says the same at a third of the cost.
            alone = not _APPLICATORS & made.keys()
            made.setdefault("additionalProperties" if alone else "unevaluatedProperties", False)
        if _may_be("array", node) and not {"items", "unevaluatedItems"} & made.keys():
            made["unevaluatedItems"] = {"$ref": f"#/$defs/{_ANY}"}
            self.needs_any = True
        return made

    def _shut_freely(self, made: dict[str, Any], node: Mapping[str, Any], *, root: bool) -> dict[str, Any]:
        if not _OPENING & node.keys() and (root or self._names_properties(node, set())):
            made["unevaluatedProperties"] = False
        return made

    def _member(self, key: str, value: Any, at: At | None, *, free: bool, refs: frozenset[str]) -> Any:
        def inner(item: Any, at: At | None = at, *, owns: bool = True, refs: frozenset[str] = refs) -> Any:
            return self.close(item, at, owns=owns, free=free, refs=refs)

        if key in _SCHEMA:
            return inner(value)
        if key in _SCHEMA_LIST and isinstance(value, list):
            return [inner(item) for item in value]
        if key == "properties" and isinstance(value, dict):
            return {name: inner(item, None if at is None else (*at, name), refs=frozenset()) for name, item in value.items()}
        if key == "patternProperties" and isinstance(value, dict):
            return {name: inner(item) for name, item in value.items()}
        if key in _IN_PLACE:
            return inner(value, owns=False)
        if key in _IN_PLACE_LIST and isinstance(value, list):
            return [inner(item, owns=False) for item in value]
        if key in _SHARED and isinstance(value, dict):
            return {name: inner(item, None, owns=False) for name, item in value.items()}
        if key == "dependentSchemas" and isinstance(value, dict):
            return {name: inner(item, owns=False) for name, item in value.items()}
        return value

    def _led_on(self, ref: str, at: At | None, *, free: bool) -> Any:
        """What a reference names, where something below it is opened at this place and not elsewhere."""
        leads_on = not free and at is not None and any(path[: len(at)] == at for path in self._opens)
        return self._target(ref) if leads_on else None

    def _pointed(self, ref: str, *, free: bool) -> str:
        """A reference from a place that is opened leads to a copy in which everything is."""
        if not free or () in self._opens or not (ref == "#" or ref.startswith("#/")):
            return ref
        self.needs_open = True
        return f"#/$defs/{_OPEN}{ref[1:]}"

    def _names_properties(self, node: Any, seen: set[int]) -> bool:
        """Whether this schema, or one that applies to the same object, lists properties."""
        if not isinstance(node, dict) or id(node) in seen:
            return False
        seen.add(id(node))
        if "properties" in node:
            return True
        beside = [node[key] for key in _IN_PLACE & node.keys()]
        beside += [item for key in _IN_PLACE_LIST & node.keys() if isinstance(node[key], list) for item in node[key]]
        if isinstance(ref := node.get("$ref"), str):
            beside.append(self._target(ref))
        return any(self._names_properties(item, seen) for item in beside)

    def _target(self, ref: str) -> Any:
        """What a JSON pointer inside the schema names, or None: an anchor."""
        found: Any = self._root
        for part in ref.removeprefix("#").split("/")[1:]:
            key = _unescaped(part)
            if not isinstance(found, dict) or key not in found:
                return None
            found = found[key]
        return found if ref == "#" or ref.startswith("#/") else None


def _may_be(kind: str, node: Mapping[str, Any]) -> bool:
    said = node.get("type")
    return said is None or kind == said or (isinstance(said, list) and kind in said)


def _describes(schema: Any) -> bool:
    """Whether a schema says anything at all of the values that it is for."""
    return not (schema is True or (isinstance(schema, dict) and not schema.keys() - _REMARKS))


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
