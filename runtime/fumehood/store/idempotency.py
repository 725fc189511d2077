"""Idempotency keys: which call has a sender's key, so that a request which is sent again is not run again (rule 24).

Each function runs inside a transaction. Invariants: a key belongs to one sender of one tenant, and to the call that took it first; it
answers only for a request that is equal to that call's, of the same pinned definition, under the same profile and policy, and for any
other it is refused: neither an old answer under new rules nor a second run. What is compared is what the two records say, so nobody
claims one thing and records another. A key outlives its call by what `until` says, and never ends before its call; that of a call
whose tool was never started is given back with its end, as if it had not been used.

How many keys one sender has is bounded: one more is refused, and no younger one forgotten for it.
"""

from __future__ import annotations

from typing import Any

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.store.database import Transaction

KEYS_OF_A_SENDER = 4096

# What of a record must be equal, in the order in which a difference is told, and what that difference is to people.
_COMPARED = {
    "tool": "another tool",
    "request_digest": "another request",
    "pin": "another definition of the tool",
    "profile_digest": "another version of the profile",
}
_WHOSE = ("tenant", "sender", "sender_uid")
_MINE = f"""
    SELECT {", ".join((*_WHOSE, "idempotency_key", *_COMPARED))} FROM records
    WHERE task = ? AND runtime_id = ? AND state <> 'closed'
"""  # noqa: S608 - the names are columns of ours
_FOUND = f"""
    SELECT keys.task, keys.policy, keys.until < :at AND records.state = 'closed', {", ".join(f"records.{name}" for name in _COMPARED)}
    FROM keys JOIN records ON records.task = keys.task
    WHERE keys.tenant = :tenant AND keys.sender = :sender AND keys.sender_uid = :sender_uid AND keys.key = :key
"""  # noqa: S608 - as above
_OF_SENDER = "tenant = :tenant AND sender = :sender AND sender_uid = :sender_uid"
_COUNT = f"SELECT count(*) FROM keys WHERE {_OF_SENDER}"  # noqa: S608 - as above
_FORGET = f"""
    DELETE FROM keys WHERE {_OF_SENDER} AND until < :at AND task IN (SELECT task FROM records WHERE state = 'closed')
"""  # noqa: S608 - as above
_TAKE = """
    INSERT INTO keys (tenant, sender, sender_uid, key, task, policy, until)
    VALUES (:tenant, :sender, :sender_uid, :key, :task, :policy, :until)
"""
# Bound, and not running: a tool may run a moment before the step that says so is written.
_GIVE_BACK = """
    DELETE FROM keys WHERE task = :task AND (
      EXISTS (SELECT 1 FROM records WHERE task = :task AND result = 'refused')
      OR NOT EXISTS (SELECT 1 FROM events WHERE task = :task AND state = 'bound')
    )
"""
_EXTEND = "UPDATE keys SET until = max(until, :until) WHERE task = :task"


def claim_key(
    conn: Transaction, task: str, policy: str, *, runtime_id: str, at_s: float, until_s: float
) -> str | None:
    """Give an open call of this runtime its key, or name the earlier task that has it. Raises `Refused`, having changed nothing."""
    row = conn.run(_MINE, (task, runtime_id)).fetchone()
    if row is None or row[3] is None:
        raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="ledger.request", detail=f"claim: not possible for {task} in its state"))
    whose = {**dict(zip(_WHOSE, row, strict=False)), "key": row[3], "at": at_s}
    found = conn.run(_FOUND, whose).fetchone()
    if found is not None and not found[2]:
        return None if found[0] == task else _equal(found, (policy, *row[4:]))
    _make_room(conn, whose, expired=found is not None)
    conn.run(_TAKE, {**whose, "task": task, "policy": policy, "until": until_s})
    return None


def _equal(found: tuple[Any, ...], mine: tuple[Any, ...]) -> str:
    """The earlier task, if its call is equal to ours in everything that counts."""
    earlier, policy, _, *compared = found
    told = dict(zip(_COMPARED.values(), zip(compared, mine[1:], strict=True), strict=True))
    told["another policy"] = (policy, mine[0])
    for what, (theirs, ours) in told.items():
        if theirs != ours:
            raise Refused(Deny(reason=Reason.KEY_REUSED, rule="once.key", detail=f"task {earlier} has it, for {what}"))
    return str(earlier)


def _make_room(conn: Transaction, whose: dict[str, Any], *, expired: bool) -> None:
    count = conn.run(_COUNT, whose).fetchone()[0]
    if expired or count >= KEYS_OF_A_SENDER:
        count -= conn.run(_FORGET, whose).rowcount
    if count >= KEYS_OF_A_SENDER:
        raise Refused(Deny(reason=Reason.KEYS_FULL, rule="once.keys", detail=f"{count} keys of this sender are remembered"))


def settle_key(conn: Transaction, task: str, *, until_s: float) -> None:
    """Keep the key of a call that has just been closed until then, or give it back if its tool was never started."""
    if not conn.run(_GIVE_BACK, {"task": task}).rowcount:
        conn.run(_EXTEND, {"task": task, "until": until_s})
