"""What the chain says of rows: SHA-256 over the values that a row has, column by column.

A row's form is the JSON array of its columns' values as SQLite holds them, in an order that is written here and never follows the
schema: a column that a later step adds is in no digest that was taken before. JSON inside a column is its stored text. Nothing is
parsed and written again, so the bytes that are stored are their own canonical form; RFC 8785 in Python takes ten times as long.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from fumehood.store.database import Transaction

# Entries say which of these they mean: a longer list is another version.
VERSION = 1
OPENING = (
    *("task", "tenant", "sender", "sender_uid", "runtime_id", "boot_id", "front_door", "tool", "session", "command"),
    *("profile", "profile_digest", "image", "request_digest", "pin", "proof", "idempotency_key", "opened_at"),
)
RECORD = (
    *OPENING,
    *("image_digest", "init_digest", "engine", "container", "state", "result", "reason", "detail", "rule", "exit_code", "signal"),
    *("closed_at", "cpu_user_s", "cpu_system_s", "memory_peak_bytes", "pids_peak", "oom_kills", "pids_limit_hits"),
    *("cpu_throttled_s", "io_read_bytes", "io_write_bytes", "stdout_bytes", "stderr_bytes", "stdout_truncated"),
    *("stderr_truncated", "files", "files_total", "pending", "timings", "readback", "teardown", "repeats"),
)
LEASE = (
    *("lease", "task", "runtime_id", "credential", "provider", "handle", "opened_at"),
    *("until", "issued_at", "sealed", "facts"),
    *("state", "closed_at", "tries", "error", "proof"),
)
# How much of a lease is settled when it was opened, issued, closed: later steps change the rest.
SETTLED = {"opened": 7, "issued": 11, "closed": len(LEASE)}
FIRST = ""

_RECORD = f"SELECT {', '.join(RECORD)} FROM records WHERE task = ?"  # noqa: S608 - columns of ours
_OPENING = f"SELECT {', '.join(OPENING)} FROM records WHERE task = ?"  # noqa: S608 - as above
_EVENTS = "SELECT seq, at, state, facts FROM events WHERE task = ? ORDER BY seq"
_LEASE = f"SELECT {', '.join(LEASE)} FROM leases WHERE lease = ?"  # noqa: S608 - columns of ours
_LEASES = f"SELECT {', '.join(LEASE)} FROM leases WHERE task = ? ORDER BY lease"  # noqa: S608 - as above
_TOTALS = "SELECT entries, bytes, dropped, counters, digest FROM egress_totals WHERE task = ?"
_EGRESS = "SELECT seq, at, kind, facts FROM egress WHERE task = ? ORDER BY seq"

# Made once: `json.dumps` with separators makes an encoder for every row.
# A value that no column of ours can hold (who edits the file may put one there) has a form too, which is that of no other.
_form = json.JSONEncoder(separators=(",", ":"), default=repr).encode

Row = tuple[Any, ...]


def digest(form: Sequence[Any]) -> str:
    """The hexadecimal SHA-256 of a row, or of an array of rows."""
    return hashlib.sha256(_form(form).encode()).hexdigest()


def following(before: str, row: Row) -> str:
    """The digest of a log that is one row longer than that of `before`; `FIRST` is that of an empty one."""
    return digest([before, row])


def opening_row(conn: Transaction, task: str) -> Row | None:
    """What a record was opened with, by `OPENING`."""
    found: Row | None = conn.run(_OPENING, (task,)).fetchone()
    return found


def record_row(conn: Transaction, task: str) -> Row | None:
    """A whole record, by `RECORD`."""
    found: Row | None = conn.run(_RECORD, (task,)).fetchone()
    return found


def event_rows(conn: Transaction, task: str) -> list[Row]:
    """A task's timeline: (seq, at, state, facts)."""
    return conn.run(_EVENTS, (task,)).fetchall()


def lease_row(conn: Transaction, lease: str) -> Row | None:
    """One lease, by `LEASE`."""
    found: Row | None = conn.run(_LEASE, (lease,)).fetchone()
    return found


def lease_rows(conn: Transaction, task: str) -> list[Row]:
    """A task's leases, by `LEASE`."""
    return conn.run(_LEASES, (task,)).fetchall()


def lease_names(conn: Transaction, task: str) -> set[str]:
    """The leases that a task has."""
    return {lease for (lease,) in conn.run("SELECT lease FROM leases WHERE task = ?", (task,))}


def egress_totals(conn: Transaction, task: str) -> Row | None:
    """A task's (entries, bytes, dropped, counters, digest); None when it has no log."""
    found: Row | None = conn.run(_TOTALS, (task,)).fetchone()
    return found


def egress_digest(conn: Transaction, task: str) -> str:
    """The digest of a task's log, read from its first entry."""
    known = FIRST
    for row in conn.run(_EGRESS, (task,)):
        known = following(known, row)
    return known
