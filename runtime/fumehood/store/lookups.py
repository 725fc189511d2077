"""What our own processes ask the ledger: which records somebody owes an end, and whose a task is.

Each function runs inside `Database.read`; each answer is JSON and fits one message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fumehood.store.database import Transaction

OPEN_ROWS = 300
RUNTIMES = 500
# A receipt names so many; the one before the first of them names more.
EARLIER = 100
_UNCLOSED = ("task", "runtime_id", "boot_id", "engine", "container")
_OWNER = (
    *("tenant", "sender", "sender_uid", "runtime_id", "front_door", "state", "result", "reason"),
    *("opened_at", "closed_at"),
)
# `state <> 'closed'` to the letter, as in the partial index: SQLite uses that only for a condition it can read when it plans.
_OPEN_TASKS = f"""
    SELECT {", ".join(_UNCLOSED)} FROM records
    WHERE state <> 'closed' AND (:runtime_id IS NULL OR runtime_id = :runtime_id) AND task > :after_task
    ORDER BY task LIMIT {OPEN_ROWS}
"""  # noqa: S608 - the names are columns of ours
_RUNTIMES_OPEN = f"""
    SELECT DISTINCT runtime_id FROM records WHERE state <> 'closed' ORDER BY runtime_id LIMIT {RUNTIMES}
"""  # noqa: S608 - a number of ours


def open_tasks(conn: Transaction, *, runtime_id: str | None, after_task: str | None) -> list[dict[str, Any]]:
    """Records that are not closed, oldest first, at most `OPEN_ROWS`: who owes them an end, and which box they had."""
    found = conn.run(_OPEN_TASKS, {"runtime_id": runtime_id, "after_task": after_task or ""})
    return [dict(zip(_UNCLOSED, row, strict=True)) for row in found]


def runtimes_open(conn: Transaction) -> list[str]:
    """Runtimes that have open records, at most `RUNTIMES`."""
    return [name for (name,) in conn.run(_RUNTIMES_OPEN)]


def owner(conn: Transaction, name: str) -> dict[str, Any] | None:
    """Whose call it was and how it went, as far as what is kept of it is concerned; None when there is no record."""
    query = f"SELECT {', '.join(_OWNER)} FROM records WHERE task = ?"  # noqa: S608 - the names are columns of ours
    row = conn.run(query, (name,)).fetchone()
    return None if row is None else dict(zip(_OWNER, row, strict=True))


def known(conn: Transaction, names: Sequence[str]) -> list[str]:
    """Those of these tasks that have records."""
    query = "SELECT task FROM records WHERE task IN (SELECT value FROM json_each(?))"
    return [name for (name,) in conn.run(query, (json.dumps(list(names)),))]


def earlier_of(conn: Transaction, session: str, task: str) -> list[str]:
    """The calls of a session before one of them, the newest `EARLIER` of them, oldest first."""
    query = "SELECT task FROM records WHERE session = ? AND task < ? ORDER BY task DESC LIMIT ?"
    return [name for (name,) in reversed(conn.run(query, (session, task, EARLIER)).fetchall())]


def egress_refused(conn: Transaction, task: str) -> int:
    """How many attempts a task's egress log has that were refused."""
    (found,) = conn.run("SELECT count(*) FROM egress WHERE task = ? AND kind = 'refused'", (task,)).fetchone()
    return int(found)
