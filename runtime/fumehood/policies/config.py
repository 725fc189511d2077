"""The `policy:` section of fumehood.yaml as a value: frozen, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from fumehood.policies.known import Unit

SHIPPED = ("owner", "senders", "taint")
DEFAULT = ("owner", "taint")
KEPT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much of one unit may be used in any `per_s` seconds; what is more is denied, or asked about.

    It is about the calls that fit all of `senders`, `groups` and `tools` (patterns; empty for every one), counted for each of `each`.
    """

    name: str
    unit: Unit
    most: float
    per_s: float
    ask: bool = False
    senders: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    each: tuple[str, ...] = ("sender",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Which policies hold. `files` are absolute paths, the last part of one a pattern perhaps; `shipped` the names of ours.

    `kept_s` is how long a conversation is remembered.
    """

    files: tuple[str, ...] = ()
    shipped: tuple[str, ...] = DEFAULT
    budgets: tuple[Budget, ...] = ()
    kept_s: float = KEPT_S
