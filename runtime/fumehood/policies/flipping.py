"""The smallest change that would have let a call through, or have somebody asked: found by asking again. Pure.

What is tried are the things that the policies themselves speak of, one at a time and then two: a label or a taint less, a tool more
that was done, a group more, another sender, argument, hour or day. What is found is true of the policies as they are; that nothing is
found within `MOST` questions says only that more would have to change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fumehood.model import Decision, Sender
from fumehood.policies.asked import Asked
from fumehood.policies.cedar import PolicySet
from fumehood.policies.deciding import rule_on

MOST = 4000
_ORDER = list(Decision)
_DAY_S = 86_400
_HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that could have been otherwise, and the question as it would be then."""

    told: str
    make: Callable[[Asked], Asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """What one or two changes come to."""

    told: tuple[str, ...]
    decision: Decision


def flips(policies: PolicySet, asked: Asked) -> list[Flip]:
    """The smallest changes that loosen the decision: all single ones, or all pairs where no single one does."""
    found = _found(policies, asked)
    before = _ORDER.index(found)
    if not before:
        return []
    candidates = list(changes(policies, asked))
    asks = 0
    for size in (1, 2):
        loosened: list[Flip] = []
        for some in itertools.combinations(candidates, size):
            asks += 1
            if asks > MOST:
                break
            changed = asked
            for each in some:
                changed = each.make(changed)
            after = _found(policies, changed)
            if _ORDER.index(after) < before:
                loosened.append(Flip(told=tuple(each.told for each in some), decision=after))
        if loosened:
            return sorted(loosened, key=lambda flip: _ORDER.index(flip.decision))
    return []


def changes(policies: PolicySet, asked: Asked) -> Iterator[Change]:
    """What the policies speak of that could be otherwise."""
    spoken = [_spoken(rule.conditions) for rule in policies.rules]
    known = asked.conversation
    for taint in sorted(known.taint):
        yield Change(told=f"the conversation holds nothing {taint}", make=partial(_less_taint, taint))
    for label in sorted(asked.labels):
        yield Change(told=f"the profile does not label it {label}", make=partial(_less_label, label))
    for tool in sorted({text for each in spoken for text in each.texts if "/" in text} - known.since):
        yield Change(told=f"{tool} has ended well before (since this last did)", make=partial(_more_done, tool))
    yield from _people(policies, asked)
    yield from _arguments(policies, asked, spoken)
    if any("time" in each.names for each in spoken):
        begin = asked.at_s - asked.at_s % _DAY_S
        for hour in range(24):
            yield Change(told=f"it is {hour:02d}:00 UTC", make=partial(_at, begin + hour * _HOUR_S))
        for days in range(1, 7):
            yield Change(told=f"it is {days} days later", make=partial(_at, asked.at_s + days * _DAY_S))


def _people(policies: PolicySet, asked: Asked) -> Iterator[Change]:
    entities = sorted({entity for rule in policies.rules for entity in _entities((rule.scope, rule.conditions))})
    for kind, name in entities:
        if kind == "Group" and name not in asked.sender.groups:
            yield Change(told=f"the sender is in the group {name}", make=partial(_in_group, name))
        if kind == "Sender" and name != asked.sender.name:
            yield Change(told=f"the sender is {name}", make=partial(_named, name))
    local = Sender(uid=asked.owner, name=asked.sender.name.rpartition(":")[2], tenant=asked.sender.tenant, groups=asked.sender.groups)
    if local != asked.sender:
        yield Change(told="the owner of the state folder asks, on a local connection", make=partial(_by, local))


def _arguments(policies: PolicySet, asked: Asked, spoken: list[_Spoken]) -> Iterator[Change]:
    places = sorted(place for place in policies.places or () if "/" not in place)
    texts = sorted({text for each in spoken for text in each.texts} - set(places))
    numbers = sorted({number + step for each in spoken for number in each.numbers for step in (-1, 0, 1)})
    for place in places:
        if place in asked.arguments:
            yield Change(told=f"without the argument `{place}`", make=partial(_without, place))
        for value in (*texts, *numbers, True, False):
            yield Change(told=f"with `{place}`: {value!r}", make=partial(_with, place, value))


def _less_taint(taint: str, asked: Asked) -> Asked:
    return replace(asked, conversation=replace(asked.conversation, taint=asked.conversation.taint - {taint}))


def _less_label(label: str, asked: Asked) -> Asked:
    return replace(asked, labels=asked.labels - {label})


def _more_done(tool: str, asked: Asked) -> Asked:
    known = asked.conversation
    return replace(asked, conversation=replace(known, done=known.done | {tool}, since=known.since | {tool}))


def _in_group(group: str, asked: Asked) -> Asked:
    return replace(asked, sender=replace(asked.sender, groups=(*asked.sender.groups, group)))


def _named(name: str, asked: Asked) -> Asked:
    return replace(asked, sender=replace(asked.sender, name=name))


def _by(sender: Sender, asked: Asked) -> Asked:
    return replace(asked, sender=sender)


def _at(at_s: float, asked: Asked) -> Asked:
    return replace(asked, at_s=at_s)


def _with(place: str, value: object, asked: Asked) -> Asked:
    return replace(asked, arguments={**asked.arguments, place: value})


def _without(place: str, asked: Asked) -> Asked:
    return replace(asked, arguments={name: value for name, value in asked.arguments.items() if name != place})


@dataclass(frozen=True, slots=True)
class _Spoken:
    """The literals and attributes of some conditions. A pattern is told as a text that it fits."""

    texts: frozenset[str]
    numbers: frozenset[int]
    names: frozenset[str]


def _spoken(conditions: Any) -> _Spoken:
    texts: set[str] = set()
    numbers: set[int] = set()
    names: set[str] = set()
    for node in _nodes(conditions):
        value = node.get("Value")
        if isinstance(value, str):
            texts.add(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            numbers.add(value)
        if isinstance(pattern := node.get("pattern"), list):
            texts.add("".join("x" if part == "Wildcard" else part["Literal"] for part in pattern))
        if isinstance(name := node.get("attr"), str):
            names.add(name)
    return _Spoken(frozenset(texts), frozenset(numbers), frozenset(names))


def _entities(value: Any) -> Iterator[tuple[str, str]]:
    for node in _nodes(value):
        if isinstance(node.get("type"), str) and isinstance(node.get("id"), str):
            yield node["type"], node["id"]


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    todo = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, list | tuple):
            todo.extend(node)
        elif isinstance(node, dict):
            yield node
            todo.extend(node.values())


def _found(policies: PolicySet, asked: Asked) -> Decision:
    return rule_on(policies, asked).decision
