"""Tool pins: what each server's tools were when they were read, and which of that may be called. For inside a transaction.

A pin is the SHA-256 of a text, and the text is stored beside it: what is shown at a review is what is accepted. Invariants:
only `accept` makes a definition one that was reviewed, and only for exactly the pin that it names; the first sight of a tool is
accepted without a review only where the operator's mode trusts it, and never the first sight of *another* definition of a tool
that is known already, under whatever capabilities a client declares: a server that lies would else wait for a new client. A
definition that was accepted under one set of capabilities is accepted under every set. What is kept of one server is bounded, and
so is the number of servers: a worker that was taken over must not fill the disk.

`seen` is what the server had when it was last read, and a tool may be called only while that is the accepted one: with another
definition in sight, also the one that was accepted stays blocked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fumehood.model import PinState
from fumehood.store.database import Transaction
from fumehood.store.paging import PAGE_BYTES, PAGE_ROWS, fitting

SERVERS = 128
BYTES_OF_A_SERVER = 8 * 2**20
_ROW_BYTES = 512

_KEY = "server = :server AND profile = :profile AND tool = :tool"
_ONE = f"SELECT seen, accepted, reviewed, rejected FROM pins WHERE {_KEY} AND capabilities = :capabilities"  # noqa: S608 - ours
_SIBLINGS = f"SELECT accepted, accepted_text, reviewed, rejected FROM pins WHERE {_KEY} AND capabilities <> :capabilities"  # noqa: S608
_INSERT = """
    INSERT INTO pins (server, profile, tool, capabilities, declared, seen, seen_text, seen_at,
      accepted, accepted_text, accepted_at, reviewed, rejected)
    VALUES (:server, :profile, :tool, :capabilities, :declared, :pin, :text, :at, :accepted, :accepted_text, :accepted_at,
      :reviewed, :rejected)
"""
_SEE = f"""
    UPDATE pins SET seen = :pin, seen_text = :text, seen_at = :at, declared = :declared
    WHERE {_KEY} AND capabilities = :capabilities
"""  # noqa: S608 - as above
_INHERIT = f"""
    UPDATE pins SET accepted = :pin, accepted_text = :text, accepted_at = :at, reviewed = :reviewed
    WHERE {_KEY} AND capabilities = :capabilities
"""  # noqa: S608 - as above
_ACCEPT = f"""
    UPDATE pins SET accepted = seen, accepted_text = seen_text, accepted_at = :at, reviewed = 1, rejected = NULL
    WHERE {_KEY} AND seen = :pin
"""  # noqa: S608 - as above
_REJECT = f"""
    UPDATE pins SET rejected = :pin,
      accepted_text = CASE WHEN accepted = :pin THEN NULL ELSE accepted_text END,
      accepted_at = CASE WHEN accepted = :pin THEN NULL ELSE accepted_at END,
      accepted = CASE WHEN accepted = :pin THEN NULL ELSE accepted END
    WHERE {_KEY} AND :pin IN (seen, accepted) AND EXISTS (SELECT 1 FROM pins WHERE {_KEY} AND seen = :pin)
"""  # noqa: S608 - as above
_OF_SERVER = """
    SELECT tool, seen, accepted, reviewed, rejected FROM pins
    WHERE server = :server AND profile = :profile AND capabilities = :capabilities AND tool > :after
    ORDER BY tool LIMIT :limit
"""
_SHOWN = (
    *("server", "profile", "tool", "capabilities", "declared", "seen", "seen_at"),
    *("accepted", "accepted_at", "reviewed", "rejected"),
)
_LIST = f"""
    SELECT {", ".join(_SHOWN)} FROM pins
    WHERE (server, profile, tool, capabilities) > (:server, :profile, :tool, :capabilities)
    ORDER BY server, profile, tool, capabilities LIMIT :limit
"""  # noqa: S608 - as above
_SPACE = f"""
    SELECT coalesce(sum({_ROW_BYTES} + length(CAST(seen_text AS BLOB)) + coalesce(length(CAST(accepted_text AS BLOB)), 0)), 0)
    FROM pins WHERE server = :server AND profile = :profile
"""  # noqa: S608 - as above


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose tools: a server as the operator named it, its profile, and one set of client capabilities."""

    server: str
    profile: str
    capabilities: str

    def key(self, tool: str) -> dict[str, Any]:
        """The key of one tool's row."""
        return {"server": self.server, "profile": self.profile, "capabilities": self.capabilities, "tool": tool}


class FullError(Exception):
    """More definitions than are kept of one server, or of more servers."""


def pin_of(text: str) -> str:
    """`sha256:<hex>` of a definition's text: computed where it is stored, so that nobody shows one and has another accepted."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def state(conn: Transaction, place: Place, tool: str, pin: str, *, review: bool) -> PinState:
    """Whether a call by this pin may run. `review`: only what an operator has accepted counts."""
    found = conn.run(_ONE, place.key(tool)).fetchone()
    if found is None:
        return PinState.NEW
    seen, accepted, reviewed, rejected = found
    now = _state(seen, accepted, rejected, counts=bool(reviewed) or not review)
    return now if now is not PinState.ACCEPTED or seen == pin else PinState.CHANGED


def is_known(conn: Transaction, place: Place, definitions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every one of these is what was seen last: asked before every sight, because a write transaction is dear."""
    for each in definitions:
        found = conn.run(_ONE, place.key(each["tool"])).fetchone()
        if found is None or found[0] != pin_of(each["text"]):
            return False
    return True


def see(
    conn: Transaction, place: Place, definitions: Sequence[Mapping[str, Any]], declared: str, *, review: bool, at_s: float
) -> None:
    """Write what a server's tools are now. Raises FullError, and then the transaction must be given up."""
    for each in definitions:
        pin = pin_of(each["text"])
        row = {**place.key(each["tool"]), "pin": pin, "text": each["text"], "declared": declared, "at": at_s}
        found = conn.run(_ONE, row).fetchone()
        if found is not None and found[0] == pin:
            continue
        siblings = conn.run(_SIBLINGS, row).fetchall()
        twin = next((one for one in siblings if one[0] == pin), None)
        if found is not None:
            conn.run(_SEE, row)
            if twin is not None and found[1] != pin:
                conn.run(_INHERIT, {**row, "reviewed": twin[2]})
            continue
        # The first sight of the tool at all; of a known tool, another definition is a change, whoever is told of it first.
        first = not siblings and each["trusted"] and not review
        taken = twin is not None or first
        _check_servers(conn, row)
        conn.run(
            _INSERT,
            {
                **row, "accepted": pin if taken else None, "accepted_text": each["text"] if taken else None,
                "accepted_at": at_s if taken else None, "reviewed": 0 if twin is None else twin[2],
                "rejected": pin if any(one[3] == pin for one in siblings) else None,
            },
        )  # fmt: skip
    if conn.run(_SPACE, place.key("")).fetchone()[0] > BYTES_OF_A_SERVER:
        raise FullError(f"over {BYTES_OF_A_SERVER} bytes of definitions of one server")


def accept(conn: Transaction, given: Mapping[str, Any], *, at_s: float) -> bool:
    """Accept exactly this definition of a tool, whatever clients declare. False when it is not what is seen now."""
    return conn.run(_ACCEPT, {**given, "at": at_s}).rowcount > 0


def reject(conn: Transaction, given: Mapping[str, Any]) -> bool:
    """Block exactly this definition of a tool until it is accepted. False when it is not what is seen now."""
    return conn.run(_REJECT, given).rowcount > 0


def forget(conn: Transaction, server: str, profile: str) -> int:
    """Forget a server: the next sight of its tools is the first. How many rows there were."""
    return conn.run("DELETE FROM pins WHERE server = ? AND profile = ?", (server, profile)).rowcount


def states(conn: Transaction, place: Place, after: str | None, *, review: bool) -> dict[str, Any]:
    """`{"pins": [{tool, seen, state}], "more": bool}` of one server and set, by tool. Ask again with `after`."""
    values = {**place.key(""), "after": after or "", "limit": PAGE_ROWS + 1}
    rows = (
        {"tool": tool, "seen": seen, "state": _state(seen, accepted, rejected, counts=bool(reviewed) or not review).value}
        for tool, seen, accepted, reviewed, rejected in conn.run(_OF_SERVER, values)
    )
    page, more = fitting(rows, PAGE_ROWS, PAGE_BYTES)
    return {"pins": page, "more": more}


def pins(conn: Transaction, after: Mapping[str, str]) -> dict[str, Any]:
    """`{"pins": [...], "more": bool}`: every row without its texts, in the order of its key. Ask again with the last one's key.

    `state` is as for an operator who trusts first sights; `reviewed` says who accepted.
    """
    rows = (dict(zip(_SHOWN, row, strict=True)) for row in conn.run(_LIST, {**after, "limit": PAGE_ROWS + 1}))
    shown = (
        {**row, "reviewed": bool(row["reviewed"]), "state": _state(row["seen"], row["accepted"], row["rejected"], counts=True).value}
        for row in rows
    )
    page, more = fitting(shown, PAGE_ROWS, PAGE_BYTES)
    return {"pins": page, "more": more}


def text_of(conn: Transaction, server: str, pin: str) -> str | None:
    """What a pin of this server's is the digest of; None when nobody has it any more."""
    query = """
        SELECT CASE WHEN seen = :pin THEN seen_text ELSE accepted_text END FROM pins
        WHERE server = :server AND (seen = :pin OR accepted = :pin) LIMIT 1
    """
    found = conn.run(query, {"server": server, "pin": pin}).fetchone()
    return None if found is None else str(found[0])


def _state(seen: str, accepted: str | None, rejected: str | None, *, counts: bool) -> PinState:
    if seen == rejected:
        return PinState.REJECTED
    if accepted is None or not counts:
        return PinState.NEW
    return PinState.ACCEPTED if seen == accepted else PinState.CHANGED


def _check_servers(conn: Transaction, row: Mapping[str, Any]) -> None:
    if conn.run("SELECT 1 FROM pins WHERE server = :server AND profile = :profile LIMIT 1", row).fetchone() is not None:
        return
    if conn.run("SELECT count(*) FROM (SELECT DISTINCT server, profile FROM pins)").fetchone()[0] >= SERVERS:
        raise FullError(f"pins of {SERVERS} servers are kept, and no more")
