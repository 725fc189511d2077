"""The egress log of each task: what its box asked for and what became of it. Each function runs inside a transaction.

Invariant: one task's log is at most `LOG_BYTES`, and what does not fit is counted, not kept (rule 18); the gate's counters are always
those that came last. Only the runtime of an open record adds to its log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from fumehood.lifecycle import State
from fumehood.store.queries import PAGE_BYTES, PAGE_ROWS, fitting
from fumehood.store.tables import EGRESS, EGRESS_TOTALS, IS_OPEN, RECORDS

LOG_BYTES = 2**20
# A row's own cost beside its facts: key, time, kind, and its place in the tree.
_ROW_BYTES = 64


def add_egress(
    conn: Connection, task: str, entries: Sequence[Mapping[str, Any]], counters: Mapping[str, int], *, runtime_id: str
) -> bool:
    """Append entries as far as there is room, and replace the counters. False when the task is not this runtime's, or closed."""
    mine = select(RECORDS.c.task).where(RECORDS.c.task == task, RECORDS.c.runtime_id == runtime_id, IS_OPEN)
    if conn.execute(mine).first() is None:
        return False
    before = conn.execute(select(EGRESS_TOTALS).where(EGRESS_TOTALS.c.task == task)).first()
    if before is None:
        conn.execute(insert(EGRESS_TOTALS), {"task": task, "entries": 0, "bytes": 0, "dropped": 0, "counters": {}})
    kept, used, dropped = (before.entries, before.bytes, before.dropped) if before is not None else (0, 0, 0)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        size = _ROW_BYTES + len(json.dumps(entry["facts"]))
        # What came first is kept, and nothing after the first that did not fit: a log with holes would mislead.
        if dropped or used + size > LOG_BYTES:
            dropped += 1
            continue
        kept, used = kept + 1, used + size
        rows.append({"task": task, "seq": kept, "at": entry["at"], "kind": entry["kind"], "facts": entry["facts"]})
    if rows:
        conn.execute(insert(EGRESS), rows)
    values = {"entries": kept, "bytes": used, "dropped": dropped, "counters": dict(counters)}
    conn.execute(update(EGRESS_TOTALS).where(EGRESS_TOTALS.c.task == task).values(values))
    return True


def egress_of(conn: Connection, task: str, *, after_seq: int | None) -> dict[str, Any]:
    """`{"entries": [...], "counters": {...}, "dropped": n, "more": bool}`, in order."""
    totals = conn.execute(select(EGRESS_TOTALS).where(EGRESS_TOTALS.c.task == task)).first()
    counters, dropped = ({}, 0) if totals is None else (totals.counters, totals.dropped)
    query = select(EGRESS.c.seq, EGRESS.c.at, EGRESS.c.kind, EGRESS.c.facts).where(EGRESS.c.task == task)
    query = query.where(EGRESS.c.seq > (after_seq or 0)).order_by(EGRESS.c.seq)
    with conn.execute(query) as found:
        room = PAGE_BYTES - len(json.dumps(counters))
        page, more = fitting((dict(row) for row in found.mappings()), PAGE_ROWS, room)
    return {"entries": page, "counters": counters, "dropped": dropped, "more": more}


def prune_egress(conn: Connection, before_s: float) -> int:
    """Forget the logs of records that were closed by then; how many tasks'."""
    old = select(RECORDS.c.task).where(RECORDS.c.state == State.CLOSED.value, RECORDS.c.closed_at <= before_s)
    conn.execute(delete(EGRESS).where(EGRESS.c.task.in_(old)))
    return conn.execute(delete(EGRESS_TOTALS).where(EGRESS_TOTALS.c.task.in_(old))).rowcount
