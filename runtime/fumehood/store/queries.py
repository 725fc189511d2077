"""What people ask the ledger. Each answer is JSON and fits one message: lists come in pages.

Each function runs inside `Database.read`. Records are named in the order of their task ids, which sort by time. Importing this
imports SQLAlchemy; what our own processes ask in the course of a call is in `lookups.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, select

from fumehood.lifecycle import State
from fumehood.store.database import Transaction
from fumehood.store.paging import PAGE_BYTES, PAGE_ROWS, fitting
from fumehood.store.tables import EVENTS, IS_OPEN, RECORDS, USAGE

_LONG = ("readback", "teardown", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records: None means any. `result` may be `open`; `since` and `until` are seconds since the epoch."""

    limit: int
    tool: str | None = None
    result: str | None = None
    profile: str | None = None
    session: str | None = None
    front_door: str | None = None
    since: float | None = None
    until: float | None = None
    before_task: str | None = None


_TESTS: dict[str, Callable[[Any], ColumnElement[bool]]] = {
    "tool": lambda name: (RECORDS.c.tool == name) | (RECORDS.c.command == name),
    "result": lambda result: IS_OPEN if result == State.OPEN.value else RECORDS.c.result == result,
    "profile": lambda name: RECORDS.c.profile == name,
    "session": lambda task: RECORDS.c.session == task,
    "front_door": lambda name: RECORDS.c.front_door == name,
    "since": lambda at_s: RECORDS.c.opened_at >= at_s,
    "until": lambda at_s: RECORDS.c.opened_at < at_s,
    "before_task": lambda task: RECORDS.c.task < task,
}


def tasks(conn: Transaction, wanted: Wanted) -> dict[str, Any]:
    """`{"tasks": [...], "more": bool}`, newest first; ask again with `before_task` of the last one."""
    limit = max(1, min(wanted.limit, PAGE_ROWS))
    columns = [column for column in RECORDS.c if column.name not in _LONG]
    query = select(*columns).order_by(RECORDS.c.task.desc()).limit(limit + 1)
    for name, test in _TESTS.items():
        if (value := getattr(wanted, name)) is not None:
            query = query.where(test(value))
    with conn.core.execute(query) as found:  # read as far as the page goes
        page, more = fitting((as_json(row) for row in found.mappings()), limit, PAGE_BYTES)
    return {"tasks": page, "more": more}


def tasks_named(conn: Transaction, prefix: str) -> list[str]:
    """Up to two task ids that begin with `prefix`."""
    # "{" follows "z", the last letter of a task id: a range, because LIKE would not use the index.
    query = select(RECORDS.c.task).where(RECORDS.c.task >= prefix, RECORDS.c.task < prefix + "{")
    return list(conn.core.execute(query.order_by(RECORDS.c.task).limit(2)).scalars())


def task(conn: Transaction, name: str, *, after_seq: int | None) -> dict[str, Any]:
    """`{"record": {...} | None, "events": [...], "more": bool}`; the record comes with the first page only."""
    record, room = None, PAGE_BYTES
    if after_seq is None:
        record = as_json(conn.core.execute(select(RECORDS).where(RECORDS.c.task == name)).mappings().one())
        room -= len(json.dumps(record))
    query = select(EVENTS.c.seq, EVENTS.c.at, EVENTS.c.state, EVENTS.c.facts).where(EVENTS.c.task == name)
    query = query.where(EVENTS.c.seq > (after_seq or 0)).order_by(EVENTS.c.seq)
    with conn.core.execute(query) as found:
        page, more = fitting((dict(row) for row in found.mappings()), PAGE_ROWS, room)
    return {"record": record, "events": page, "more": more}


def as_json(row: RowMapping) -> dict[str, Any]:
    """A record as machines read it: usage grouped, the rest by column."""
    record = {name: value for name, value in row.items() if name not in (*USAGE, "timings")}
    return {**record, "usage": {name: row[name] for name in USAGE}, "timings_ms": row["timings"]}
