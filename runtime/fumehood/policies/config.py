"""The `policy:` section of fumehood.yaml as a value: frozen, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

SHIPPED = ("owner", "senders", "taint")
DEFAULT = ("owner", "taint")
KEPT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Which policies hold. `files` are absolute paths, the last part of one a pattern perhaps; `shipped` the names of ours.

    `kept_s` is how long a conversation is remembered.
    """

    files: tuple[str, ...] = ()
    shipped: tuple[str, ...] = DEFAULT
    kept_s: float = KEPT_S
