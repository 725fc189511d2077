"""What senders' conversations hold: which tools ended well, and what taints them and the workspaces that they wrote.

Each function runs inside a transaction. Invariants: a conversation is its sender's, over whatever connections; what a call taints is
written when its record is opened, before it runs, in the transaction that tells it what there was, so that of two calls at once one
sees the other; a call that never ran leaves nothing. A row says which call it is of, and of those that have ended the last is enough.

A workspace is its directory by number, and by name: what lies in it, or around it, is the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from fumehood.store.database import Transaction

_FRESH = "SELECT DISTINCT label FROM taints WHERE (place = ? OR (place > ? AND place < ?)) AND (at > ? OR settled = 0)"
_TAINT = "INSERT OR IGNORE INTO taints (place, label, task, at, settled) VALUES (?, ?, ?, ?, 0)"
_DROP = "DELETE FROM taints WHERE task = ?"
_OLDER = """
    DELETE FROM taints WHERE settled = 1 AND EXISTS (
      SELECT 1 FROM taints AS mine WHERE mine.task = :task AND mine.place = taints.place AND mine.label = taints.label
    ) AND place IN (SELECT place FROM taints WHERE task = :task)
"""
_SETTLE = "UPDATE taints SET settled = 1, at = :at WHERE task = :task"
_DONE = "SELECT tool, number FROM tools_done WHERE sender = ? AND at > ?"
_END = """
    INSERT INTO tools_done (sender, tool, number, at)
    VALUES (:sender, :tool, (SELECT coalesce(max(number), 0) + 1 FROM tools_done WHERE sender = :sender), :at)
    ON CONFLICT (sender, tool) DO UPDATE SET number = excluded.number, at = excluded.at
"""
_BOOK = "INSERT INTO accounts (task, sender, tool) VALUES (?, ?, ?)"
_BOOKED = "DELETE FROM accounts WHERE task = ? RETURNING sender, tool"


def whose(record: Mapping[str, Any]) -> str:
    """The conversation of a record's sender."""
    return json.dumps([record["tenant"], record["sender"], record["sender_uid"]])


def begin(conn: Transaction, record: Mapping[str, Any], account: Mapping[str, Any], *, at_s: float) -> dict[str, list[str]]:
    """Book a call whose record is being opened; what there was before it."""
    sender, tool, since_s = whose(record), account["tool"], at_s - account["kept_s"]
    done = dict(conn.run(_DONE, (sender, since_s)).fetchall())
    workspace = account["workspace"]
    conversation = f"sender:{sender}"
    taint = set(_labels(conn, conversation, since_s))
    if workspace is not None:
        for place in _around(workspace):
            taint |= set(_labels(conn, place, since_s))
        taint |= set(_labels(conn, f"path:{workspace['path']}", since_s, within=True)) if workspace["path"] else set()
    held = taint | set(account["taints"])
    places = [conversation, *(_own(workspace) if workspace is not None and workspace["writes"] else ())]
    for place in places:
        for label in sorted(held):
            conn.run(_TAINT, (place, label, record["task"], at_s))
    conn.run(_BOOK, (record["task"], sender, tool))
    after = done.get(tool, -1)
    return {
        "done": sorted(done), "since": sorted(name for name, number in done.items() if number > after and name != tool),
        "taint": sorted(taint),
    }  # fmt: skip


def end(conn: Transaction, task: str, *, ran: bool, well: bool, at_s: float) -> None:
    """Book the end of a call: whether its tool ran at all, and whether it ended well."""
    found = conn.run(_BOOKED, (task,)).fetchone()
    if found is None:
        return
    if not ran:
        conn.run(_DROP, (task,))
        return
    conn.run(_OLDER, {"task": task})
    conn.run(_SETTLE, {"task": task, "at": at_s})
    if well:
        conn.run(_END, {"sender": found[0], "tool": found[1], "at": at_s})


def forget(conn: Transaction, sender: str) -> int:
    """End the conversations of senders of this name; how many rows that were. What workspaces hold stays."""
    count = 0
    for (place,) in conn.run("SELECT DISTINCT place FROM taints WHERE place > 'sender:' AND place < 'sender;'").fetchall():
        if json.loads(place.removeprefix("sender:"))[1] == sender:
            count += conn.run("DELETE FROM taints WHERE place = ? AND settled = 1", (place,)).rowcount
    for (each,) in conn.run("SELECT DISTINCT sender FROM tools_done").fetchall():
        if json.loads(each)[1] == sender:
            count += conn.run("DELETE FROM tools_done WHERE sender = ?", (each,)).rowcount
    return count


def listed(conn: Transaction) -> list[dict[str, Any]]:
    """What is tainted, by place and label, with when it last was."""
    rows = conn.run("SELECT place, label, max(at) FROM taints GROUP BY place, label ORDER BY place, label LIMIT 1000").fetchall()
    return [{"place": place, "label": label, "at": at} for place, label, at in rows]


def _labels(conn: Transaction, place: str, since_s: float, *, within: bool = False) -> Iterator[str]:
    """The labels of a place, and of those below it."""
    # `0` is what follows `/`: all that begins with the place and a slash lies between the two.
    below = (f"{place}/", f"{place}0") if within and place != "path:/" else ("path:/", "path:0") if within else ("", "")
    yield from (label for (label,) in conn.run(_FRESH, (place, *below, since_s)).fetchall())


def _own(workspace: Mapping[str, Any]) -> list[str]:
    numbered = f"inode:{workspace['device']}:{workspace['inode']}"
    return [numbered, f"path:{workspace['path']}"] if workspace["path"] else [numbered]


def _around(workspace: Mapping[str, Any]) -> list[str]:
    """A workspace's own places, and the directories that it lies in."""
    outer = [f"path:{folder}" for folder in PurePosixPath(workspace["path"]).parents] if workspace["path"] else []
    return [*_own(workspace), *outer]
