"""What the ledger writes. Each function runs inside a transaction of `Database.write`.

Invariants: a record is opened once, moves along `lifecycle.NEXT` and no other way, and never changes after it was
closed. Only the runtime that opened a record moves or closes it; any may close the record of a dead one as lost.
None of these raises for what a caller got wrong (one bad request must not undo what others wrote in the same
transaction): they say whether they did it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Update,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    update,
)

from fumehood.lifecycle import NEXT, State
from fumehood.model import Result
from fumehood.reasons import Reason
from fumehood.store.tables import EVENTS, IS_OPEN, RECORDS, USAGE

# A call makes about a dozen events. A worker that was taken over must not fill the disk through one task.
EVENTS_OF_A_TASK = 64
# Of what becomes a column: an engine, a container, a digest.
NAME_CHARS = 256

_BEFORE: dict[State, tuple[str, ...]] = {
    state: tuple(sorted({before.value for (before, _), after in NEXT.items() if after is state})) for state in State
}


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
    State.MADE: {"engine": _named("engine"), "container": _named("container"), "init_digest": _named("init")},
    State.RUNNING: {"readback": lambda facts: facts.get("readback")},
    State.REMOVED: {"teardown": lambda facts: {name: value for name, value in facts.items() if name != "ms"}},
}
# Columns that come with the outcome.
_OUTCOME = (
    *("state", "closed_at", "result", "reason", "detail", "exit_code", "signal"),
    *USAGE,
    *("stdout_bytes", "stderr_bytes", "stdout_truncated", "stderr_truncated"),
    *("files", "files_total", "pending", "timings"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a call's timeline."""

    state: State
    at_s: float
    facts: Mapping[str, Any]


class _Prepared:
    """A statement as SQL and the order of its values, made at its first run.

    A call runs about twenty of these: SQLAlchemy takes longer to look up and bind what it has compiled than SQLite to run it.
    """

    def __init__(self, statement: Insert | Update, *, columns: bool = False) -> None:
        """With `columns`, the columns of an insert are those that its first run has values for."""
        self._statement = statement
        self._columns = columns
        self._sql = ""
        self._binds: list[tuple[str, bool, Any, Callable[[Any], Any] | None]] = []

    def run(self, conn: Connection, values: Mapping[str, Any]) -> bool:
        """Whether exactly one row was changed."""
        if not self._sql:
            self._prepare(conn, list(values))
        row = tuple(
            value if process is None else process(value)
            for value, process in (
                (values[name] if required else fixed, process) for name, required, fixed, process in self._binds
            )
        )
        return conn.exec_driver_sql(self._sql, row).rowcount == 1

    def _prepare(self, conn: Connection, names: list[str]) -> None:
        made = self._statement.compile(dialect=conn.dialect, column_keys=names if self._columns else None)
        for name in made.positiontup or ():
            bind = made.binds[name]
            process = bind.type.dialect_impl(conn.dialect).bind_processor(conn.dialect)
            self._binds.append((name, bind.required, bind.value, process))
        self._sql = str(made)


def _kept(column: str) -> ColumnElement[Any]:
    """The new value where there is one: a call that is resumed has its read-back already."""
    return func.coalesce(bindparam(column, type_=RECORDS.c[column].type), RECORDS.c[column])


_OPEN = _Prepared(insert(RECORDS).prefix_with("OR IGNORE"), columns=True)
_IS_MINE = (RECORDS.c.task == bindparam("of_task"), RECORDS.c.runtime_id == bindparam("of_runtime"))
_MOVE = {
    state: _Prepared(
        update(RECORDS)
        .where(*_IS_MINE, RECORDS.c.state.in_([literal_column(f"'{name}'") for name in before]))
        .values(state=state.value, **{column: _kept(column) for column in _COLUMNS.get(state, {})})
    )
    for state, before in _BEFORE.items()
    if before
}
_CLOSE = _Prepared(
    update(RECORDS)
    .where(*_IS_MINE, IS_OPEN)
    .values(
        # What an event told earlier stays, unless the outcome knows better.
        **{name: func.coalesce(bindparam(name), RECORDS.c[name]) for name in ("engine", "container", "rule")},
        **{name: bindparam(name) for name in _OUTCOME},
    )
)
_LOSE = _Prepared(
    update(RECORDS)
    .where(RECORDS.c.task == bindparam("of_task"), IS_OPEN)
    .values(
        state=State.CLOSED.value,
        closed_at=bindparam("closed_at"),
        result=Result.LOST.value,
        reason=Reason.RUNTIME_DIED.value,
    )
)
_COUNT = select(func.coalesce(func.max(EVENTS.c.seq), 0).label("seq")).where(EVENTS.c.task == bindparam("of_task"))
_SEEN = _COUNT.subquery()
_APPEND = _Prepared(
    insert(EVENTS).from_select(
        ["task", "seq", "at", "state", "facts"],
        select(
            bindparam("of_task", type_=EVENTS.c.task.type),
            _SEEN.c.seq + 1,
            bindparam("at", type_=EVENTS.c.at.type),
            bindparam("state", type_=EVENTS.c.state.type),
            bindparam("facts", type_=EVENTS.c.facts.type),
        ).where(_SEEN.c.seq < bindparam("most", type_=EVENTS.c.seq.type)),
    )
)


def open_record(conn: Connection, fields: Mapping[str, Any], *, runtime_id: str, boot_id: str, at_s: float) -> bool:
    """Write a call's record. False when the task already has one."""
    row = {**fields, "runtime_id": runtime_id, "boot_id": boot_id, "state": State.OPEN.value, "opened_at": at_s}
    if not _OPEN.run(conn, {"detail": "", **row}):
        return False
    _append(conn, fields["task"], Step(State.OPEN, at_s, {}))
    return True


def add_event(conn: Connection, task: str, step: Step, *, runtime_id: str) -> bool:
    """Move a record one step. False when it is not ours, not open, or may not go there from where it is."""
    move = _MOVE.get(step.state)
    if move is None:
        return False
    changes = {column: of(step.facts) for column, of in _COLUMNS.get(step.state, {}).items()}
    if not move.run(conn, {"of_task": task, "of_runtime": runtime_id, **changes}):
        return False
    return _append(conn, task, step)


def close_record(conn: Connection, task: str, fields: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Close a record of this runtime. False when it has no such open record."""
    values = {**fields, "state": State.CLOSED.value, "closed_at": at_s, "of_task": task, "of_runtime": runtime_id}
    if not _CLOSE.run(conn, values):
        return False
    return _append(conn, task, Step(State.CLOSED, at_s, {}))


def close_lost(conn: Connection, task: str, facts: Mapping[str, Any], *, at_s: float) -> bool:
    """Close the record of a call whose runtime died. False when it is no longer open."""
    if not _LOSE.run(conn, {"of_task": task, "closed_at": at_s}):
        return False
    return _append(conn, task, Step(State.CLOSED, at_s, facts))


def _append(conn: Connection, task: str, step: Step) -> bool:
    # The end of a call always finds room.
    most = EVENTS_OF_A_TASK + (step.state is State.CLOSED)
    row = {"of_task": task, "at": step.at_s, "state": step.state.value, "facts": step.facts, "most": most}
    return _APPEND.run(conn, row)
