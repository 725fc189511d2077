"""The egress log of each task: what its box asked for and what became of it. Each function runs inside a transaction.

Invariant: one task's log is at most `LOG_BYTES`, and what does not fit is counted, not kept (rule 18); the gate's counters are always
those that came last. Only the runtime of an open record adds to its log. `digest` covers its entries one after another, so that the
end of a call need not read a log of its own length again, and an edit before it shows like one after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fumehood.store.database import Transaction
from fumehood.store.digests import FIRST, following
from fumehood.store.paging import PAGE_BYTES, PAGE_ROWS, fitting

LOG_BYTES = 2**20
# A row's own cost beside its facts: key, time, kind, and its place in the tree.
_ROW_BYTES = 64
_MINE = "SELECT 1 FROM records WHERE task = ? AND runtime_id = ? AND state <> 'closed'"
_TOTALS = "SELECT entries, bytes, dropped, counters, digest FROM egress_totals WHERE task = ?"
_COUNT = """
    INSERT INTO egress_totals (task, entries, bytes, dropped, counters, digest)
    VALUES (:task, :entries, :bytes, :dropped, :counters, :digest)
    ON CONFLICT (task) DO UPDATE SET entries = :entries, bytes = :bytes, dropped = :dropped, counters = :counters, digest = :digest
"""
_APPEND = "INSERT INTO egress (task, seq, at, kind, facts) VALUES (?, ?, ?, ?, ?)"
_READ = "SELECT seq, at, kind, facts FROM egress WHERE task = ? AND seq > ? ORDER BY seq"
_OLD = "SELECT task FROM records WHERE state = 'closed' AND closed_at <= ?"


def add_egress(
    conn: Transaction, task: str, entries: Sequence[Mapping[str, Any]], counters: Mapping[str, int], *, runtime_id: str
) -> bool:
    """Append entries as far as there is room, and replace the counters. False when the task is not this runtime's, or closed."""
    if conn.run(_MINE, (task, runtime_id)).fetchone() is None:
        return False
    kept, used, dropped, _, digest = conn.run(_TOTALS, (task,)).fetchone() or (0, 0, 0, "", FIRST)
    for entry in entries:
        facts = json.dumps(entry["facts"])
        # What came first is kept, and nothing after the first that did not fit: a log with holes would mislead.
        if dropped or used + _ROW_BYTES + len(facts) > LOG_BYTES:
            dropped += 1
            continue
        kept, used = kept + 1, used + _ROW_BYTES + len(facts)
        conn.run(_APPEND, (task, kept, entry["at"], entry["kind"], facts))
        # None: the log was begun before there were digests.
        digest = None if digest is None else following(digest, (kept, entry["at"], entry["kind"], facts))
    totals = {"task": task, "entries": kept, "bytes": used, "dropped": dropped, "counters": json.dumps(dict(counters))}
    conn.run(_COUNT, {**totals, "digest": digest})
    return True


def egress_of(conn: Transaction, task: str, *, after_seq: int | None) -> dict[str, Any]:
    """`{"entries": [...], "counters": {...}, "dropped": n, "more": bool}`, in order."""
    _, _, dropped, counters, _ = conn.run(_TOTALS, (task,)).fetchone() or (0, 0, 0, "{}", None)
    rows = (
        {"seq": seq, "at": at, "kind": kind, "facts": json.loads(facts)}
        for seq, at, kind, facts in conn.run(_READ, (task, after_seq or 0))
    )
    page, more = fitting(rows, PAGE_ROWS, PAGE_BYTES - len(counters))
    return {"entries": page, "counters": json.loads(counters), "dropped": dropped, "more": more}


def prune_egress(conn: Transaction, before_s: float) -> int:
    """Forget the logs of records that were closed by then; how many tasks'."""
    conn.run(f"DELETE FROM egress WHERE task IN ({_OLD})", (before_s,))  # noqa: S608 - a query of ours
    return conn.run(f"DELETE FROM egress_totals WHERE task IN ({_OLD})", (before_s,)).rowcount  # noqa: S608 - as above
