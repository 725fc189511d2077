"""What a profile tells policies of its tools, for people: as a file says it, and as sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fumehood.model import Profile

_FIELDS = {"untrusted": "returns", "private": "reads", "external": "effect"}
_SAID = {
    "untrusted": "may return what strangers wrote",
    "private": "may return what is private",
    "external": "may have an effect outside",
}


def shown_names(names: Sequence[str]) -> dict[str, str]:
    """Labels as a file has them."""
    return {_FIELDS[name]: name for name in names}


def shown_labels(value: Profile) -> dict[str, Any]:
    """The two sections."""
    return {"labels": {name: shown_names(labels) for name, labels in value.labels}, "cost": dict(value.cost)}


def said_of_labels(value: Profile) -> list[str]:
    """What policies are told."""
    every = dict(value.labels).get("*", ())
    lines = [
        f"Policies are told that {'every call' if name == '*' else f'`{name}`'} {' and '.join(_SAID[label] for label in labels)}."
        for name, labels in value.labels
    ]
    for rule in value.network.rules:
        if rule.labels and set(rule.labels) - set(every):
            said = " and ".join(_SAID[label] for label in rule.labels)
            lines.append(f"Since it can reach {rule.name}, policies are told that every call {said}.")
    costs = [f"{cost} for {'others' if name == '*' else f'`{name}`'}" for name, cost in value.cost]
    return [*lines, *([f"In budgets of `cost` a call counts {', '.join(costs)}."] if costs else [])]
