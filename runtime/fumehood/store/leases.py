"""The lease journal: how each credential is revoked, on disk before it is issued (rule 19). Each function runs inside a transaction.

Invariants: a lease belongs to an open record of the runtime that opens it; it goes from `opened` over `issued` to `closed` and never
back, and a closed one keeps its proof; only its own runtime, or a sweeper that holds a claim on it, closes it or notes a failed
try. A claim is taken in one write transaction, so that of two sweepers only one has it, and lapses after `CLAIM_S`. A try that
failed is not repeated by a sweeper before a pause that doubles with each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, literal_column, or_, select, update

from fumehood.lifecycle import State
from fumehood.store.queries import PAGE_BYTES, PAGE_ROWS, fitting
from fumehood.store.tables import IS_OPEN, LEASES, RECORDS

CLAIM_S = 120.0
LONGEST_PAUSE_S = 600.0
# A call holds a few, and as many again each time that it is parked. A worker that was taken over must not fill the disk.
LEASES_OF_A_TASK = 512
CLAIMED_AT_ONCE = 16
OPENED, ISSUED, CLOSED = "opened", "issued", "closed"

_IS_LIVE = LEASES.c.state != literal_column(f"'{CLOSED}'")
_SHOWN = tuple(column for column in LEASES.c if column.name not in {"sealed", "claimed_at"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """One lease for a sweeper to revoke. `sealed` is as it was stored: only the ledger can open it."""

    lease: str
    task: str
    credential: str
    provider: str
    handle: Mapping[str, Any]
    sealed: str | None
    until: float | None
    tries: int


def open_lease(conn: Connection, fields: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Write that a credential is about to be issued. False when its task has no open record here, or too many leases."""
    mine = select(RECORDS.c.task).where(RECORDS.c.task == fields["task"], RECORDS.c.runtime_id == runtime_id, IS_OPEN)
    if conn.execute(mine).first() is None:
        return False
    count = conn.execute(select(func.count()).select_from(LEASES).where(LEASES.c.task == fields["task"])).scalar_one()
    if count >= LEASES_OF_A_TASK:
        return False
    row = {**fields, "runtime_id": runtime_id, "state": OPENED, "opened_at": at_s, "tries": 0}
    return conn.execute(insert(LEASES).prefix_with("OR IGNORE"), row).rowcount == 1


def issue_lease(conn: Connection, fields: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Write what else revoking it takes, once. False when it is not a lease of this runtime that was just opened."""
    done = conn.execute(
        update(LEASES)
        .where(LEASES.c.lease == fields["lease"], LEASES.c.runtime_id == runtime_id, LEASES.c.state == OPENED)
        .values(
            state=ISSUED, issued_at=at_s, until=func.coalesce(bindparam("ends"), LEASES.c.until),
            sealed=bindparam("shut"), facts=bindparam("told", type_=LEASES.c.facts.type),
        ),
        {"ends": fields["until"], "shut": fields["sealed"], "told": fields["facts"]},
    )  # fmt: skip
    return done.rowcount == 1


def close_lease(conn: Connection, fields: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Write how a revocation went. Closing what is closed changes nothing. False when it is not the asker's to close."""
    lease = fields["lease"]
    found = conn.execute(select(LEASES.c.state, LEASES.c.runtime_id, LEASES.c.claimed_by).where(LEASES.c.lease == lease)).first()
    if found is None or runtime_id not in {found.runtime_id, found.claimed_by}:
        return False
    if found.state == CLOSED:
        return True
    changes: dict[str, Any] = {"tries": LEASES.c.tries + 1, "claimed_by": None, "claimed_at": at_s}
    if (revoked := fields["revoked"]) is not None:
        # What is not needed any more is not kept, sealed or not.
        changes |= {"state": CLOSED, "closed_at": at_s, "sealed": None, "proof": {**revoked, "at": at_s}}
    changes["error"] = fields["error"]
    conn.execute(update(LEASES).where(LEASES.c.lease == lease).values(changes))
    return True


def claim_leases(
    conn: Connection, *, lease: str | None, task: str | None, after: str | None, orphaned: bool, limit: int,
    runtime_id: str, at_s: float,
) -> list[Claimed]:  # fmt: skip
    """Take leases to revoke, oldest first; all that a living sweeper does not hold, or the one, or those of the task.

    `orphaned` are those whose record is closed, for which nobody else will do it, and whose last try is not too recent.
    """
    query = select(LEASES).where(_IS_LIVE).order_by(LEASES.c.lease)
    query = query.where(or_(LEASES.c.claimed_by.is_(None), LEASES.c.claimed_at < at_s - CLAIM_S))
    if lease is not None:
        query = query.where(LEASES.c.lease == lease)
    if task is not None:
        query = query.where(LEASES.c.task == task)
    if after is not None:
        query = query.where(LEASES.c.lease > after)
    if orphaned:
        query = query.join(RECORDS, RECORDS.c.task == LEASES.c.task).where(RECORDS.c.state == State.CLOSED.value)
    most = max(1, min(limit, CLAIMED_AT_ONCE))
    taken: list[Claimed] = []
    for row in conn.execute(query).fetchall():
        if len(taken) < most and not (orphaned and _rests(row, at_s)):
            taken.append(_claimed(row))
    for one in taken:
        conn.execute(update(LEASES).where(LEASES.c.lease == one.lease).values(claimed_by=runtime_id, claimed_at=at_s))
    return taken


def anything_to_claim(conn: Connection) -> bool:
    """Whether any lease is open at all: asked before every claim, because a write transaction is dear."""
    return conn.execute(select(LEASES.c.lease).where(_IS_LIVE).limit(1)).first() is not None


def _rests(row: Row[Any], at_s: float) -> bool:
    """Whether its last failed try is too recent; one that was claimed and never told of is not."""
    if row.claimed_by is not None or row.claimed_at is None:
        return False
    return bool(row.claimed_at > at_s - min(LONGEST_PAUSE_S, 2.0 ** min(row.tries, 16)))


def _claimed(row: Row[Any]) -> Claimed:
    return Claimed(
        lease=row.lease, task=row.task, credential=row.credential, provider=row.provider, handle=row.handle,
        sealed=row.sealed, until=row.until, tries=row.tries,
    )  # fmt: skip


def leases(conn: Connection, *, task: str | None, state: str | None, after: str | None, limit: int) -> dict[str, Any]:
    """`{"leases": [...], "more": bool}`, oldest first, with whose call each was; without what is sealed. Ask again with `after`."""
    query = (
        select(*_SHOWN, RECORDS.c.tenant, RECORDS.c.sender, RECORDS.c.tool, RECORDS.c.profile)
        .join(RECORDS, RECORDS.c.task == LEASES.c.task)
        .order_by(LEASES.c.lease)
    )
    if task is not None:
        query = query.where(LEASES.c.task == task)
    if state is not None:
        query = query.where(LEASES.c.state == CLOSED if state == CLOSED else _IS_LIVE)
    if after is not None:
        query = query.where(LEASES.c.lease > after)
    most = max(1, min(limit, PAGE_ROWS))
    with conn.execute(query.limit(most + 1)) as found:
        page, more = fitting((dict(row) for row in found.mappings()), most, PAGE_BYTES)
    return {"leases": page, "more": more}


def prune_leases(conn: Connection, before_s: float) -> int:
    """Forget closed leases that old; how many."""
    return conn.execute(delete(LEASES).where(LEASES.c.state == CLOSED, LEASES.c.closed_at <= before_s)).rowcount
