"""What the ledger writes. Each function runs inside a transaction of `Database.write`.

Invariants: a record is opened once, moves along `lifecycle.NEXT` and no other way, and never changes after it was
closed. Only the runtime that opened a record moves or closes it; any may close the record of a dead one as lost.
None of these raises for what a caller got wrong (one bad request must not undo what others wrote in the same
transaction): they say whether they did it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fumehood.lifecycle import NEXT, State
from fumehood.model import Deny, Result, Usage
from fumehood.reasons import Reason
from fumehood.store.database import Transaction

# A call makes about a dozen events. A worker that was taken over must not fill the disk through one task.
EVENTS_OF_A_TASK = 64
# Of what becomes a column: an engine, a container, a digest.
NAME_CHARS = 256

def _named(fact: str) -> Callable[[Mapping[str, Any]], str | None]:
    """A short text among the facts, or None."""

    def name(facts: Mapping[str, Any]) -> str | None:
        value = facts.get(fact)
        return value if isinstance(value, str) and len(value) <= NAME_CHARS else None

    return name


# Columns that come from facts, by the state these arrive with.
_COLUMNS: dict[State, dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    State.VERIFIED: {"image_digest": _named("image_digest")},
    State.DECIDED: {"rule": _named("rule")},
    State.GRANTED: {"rule": _named("rule")},
    State.MADE: {"engine": _named("engine"), "container": _named("container"), "init_digest": _named("init")},
    State.RUNNING: {"readback": lambda facts: _json(facts.get("readback"))},
    State.REMOVED: {"teardown": lambda facts: _json({name: value for name, value in facts.items() if name != "ms"})},
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a call's timeline."""

    state: State
    at_s: float
    facts: Mapping[str, Any]


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


# The names put into these are columns of ours, never what a caller sent.
def _insert(*columns: str) -> str:
    values = ", ".join(f":{column}" for column in columns)
    return f"INSERT OR IGNORE INTO records ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - as above


def _move(to: State) -> str | None:
    """Moves a runtime's own record to a state, from one that it may follow."""
    before = sorted({f"'{state.value}'" for (state, _), after in NEXT.items() if after is to})
    # A call that is resumed has its read-back already: a new value counts only where there is one.
    columns = "".join(f", {column} = coalesce(:{column}, {column})" for column in _COLUMNS.get(to, {}))
    return (
        f"UPDATE records SET state = '{to.value}'{columns} "  # noqa: S608 - as above
        f"WHERE task = :task AND runtime_id = :runtime_id AND state IN ({', '.join(before)})"
    ) if before else None  # fmt: skip


def _close(*columns: str) -> str:
    # What an event told earlier stays, unless the outcome knows better.
    kept = [f"{column} = coalesce(:{column}, {column})" for column in ("engine", "container", "rule")]
    changes = ", ".join((*kept, *(f"{column} = :{column}" for column in columns)))
    return f"UPDATE records SET {changes} WHERE task = :task AND runtime_id = :runtime_id AND state <> 'closed'"  # noqa: S608


_OPEN = _insert(
    *("task", "tenant", "sender", "sender_uid", "runtime_id", "boot_id", "front_door", "tool", "session", "command"),
    *("profile", "profile_digest", "image", "request_digest", "pin", "proof", "idempotency_key", "state", "detail", "opened_at"),
)
_MOVE = {state: sql for state in State if (sql := _move(state)) is not None}
_CLOSE = _close(
    *("state", "closed_at", "result", "reason", "detail", "exit_code", "signal", "repeats"),
    *(field.name for field in fields(Usage)),
    *("stdout_bytes", "stderr_bytes", "stdout_truncated", "stderr_truncated"),
    *("files", "files_total", "pending", "timings"),
)
_LOSE = """
    UPDATE records SET state = 'closed', closed_at = :closed_at, result = :result, reason = :reason
    WHERE task = :task AND state <> 'closed'
"""
_REFUSE = """
    UPDATE records SET state = 'closed', closed_at = :at, result = 'refused', reason = :reason, rule = :rule, detail = :detail
    WHERE task = :task
"""
_APPEND = """
    INSERT INTO events (task, seq, at, state, facts)
    SELECT :task, seen.seq + 1, :at, :state, :facts
    FROM (SELECT coalesce(max(seq), 0) AS seq FROM events WHERE task = :task) AS seen
    WHERE seen.seq < :most
"""


def open_record(conn: Transaction, given: Mapping[str, Any], *, runtime_id: str, boot_id: str, at_s: float) -> bool:
    """Write a call's record. False when the task already has one."""
    row = {**given, "runtime_id": runtime_id, "boot_id": boot_id, "state": State.OPEN.value, "opened_at": at_s}
    if not _changed(conn, _OPEN, {"detail": "", **row, "proof": _json(given["proof"])}):
        return False
    return _append(conn, given["task"], Step(State.OPEN, at_s, {}))


def close_refused(conn: Transaction, task: str, deny: Deny, *, at_s: float) -> None:
    """Close the record of a call that is refused as it begins, which was opened in this transaction."""
    conn.run(_REFUSE, {"task": task, "at": at_s, "reason": deny.reason, "rule": deny.rule, "detail": deny.detail})
    _append(conn, task, Step(State.CLOSED, at_s, {}))


def add_event(conn: Transaction, task: str, step: Step, *, runtime_id: str) -> bool:
    """Move a record one step. False when it is not ours, not open, or may not go there from where it is."""
    move = _MOVE.get(step.state)
    if move is None:
        return False
    changes = {column: of(step.facts) for column, of in _COLUMNS.get(step.state, {}).items()}
    if not _changed(conn, move, {"task": task, "runtime_id": runtime_id, **changes}):
        return False
    return _append(conn, task, step)


def close_record(conn: Transaction, task: str, given: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Close a record of this runtime. False when it has no such open record."""
    told = {"files": _json(given["files"]), "timings": _json(given["timings"])}
    values = {**given, **told, "state": State.CLOSED.value, "closed_at": at_s, "task": task, "runtime_id": runtime_id}
    if not _changed(conn, _CLOSE, values):
        return False
    return _append(conn, task, Step(State.CLOSED, at_s, {}))


def close_lost(conn: Transaction, task: str, facts: Mapping[str, Any], *, at_s: float) -> bool:
    """Close the record of a call whose runtime died. False when it is no longer open."""
    how = {"result": Result.LOST.value, "reason": Reason.RUNTIME_DIED.value}
    if not _changed(conn, _LOSE, {"task": task, "closed_at": at_s, **how}):
        return False
    return _append(conn, task, Step(State.CLOSED, at_s, facts))


def _append(conn: Transaction, task: str, step: Step) -> bool:
    # The end of a call always finds room.
    most = EVENTS_OF_A_TASK + (step.state is State.CLOSED)
    row = {"task": task, "at": step.at_s, "state": step.state.value, "facts": _json(step.facts), "most": most}
    return _changed(conn, _APPEND, row)


def _changed(conn: Transaction, sql: str, values: Mapping[str, Any]) -> bool:
    """Whether exactly one row was changed."""
    return conn.run(sql, values).rowcount == 1
