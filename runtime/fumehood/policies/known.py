"""What policies can know of a call beside the call: values that the ledger fills in, in the transaction that opens its record."""

from __future__ import annotations

from dataclasses import dataclass

UNTRUSTED = "untrusted"
PRIVATE = "private"
EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Everything one sender did of late, over any connection (a new one launders nothing), and what it holds by now.

    `done` are the tools (`server/name`) that ended well, `since` those that did after the one that is called last did. `taint` is of
    `UNTRUSTED` and `PRIVATE`: this conversation's, and that of the workspace that the call sees.
    """

    done: frozenset[str] = frozenset()
    since: frozenset[str] = frozenset()
    taint: frozenset[str] = frozenset()
