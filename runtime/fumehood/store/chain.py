"""The chain's rows: appended, and read in the order in which they were committed. Each function runs inside a transaction.

Invariant: nothing here changes or removes an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fumehood.store.database import Transaction

_LAST = "SELECT runtime_id, seq, hash FROM chain ORDER BY number DESC LIMIT 1"
_HEAD = "SELECT runtime_id, seq, hash FROM chain WHERE runtime_id = ? ORDER BY seq DESC LIMIT 1"
_APPEND = "INSERT INTO chain (runtime_id, seq, kind, task, body, hash, statement) VALUES (?, ?, ?, ?, ?, ?, ?)"
_ROWS = "SELECT number, runtime_id, seq, kind, task, body, hash, statement FROM chain ORDER BY number"
_FIND = "SELECT number, runtime_id, seq, kind, task, body, hash, statement FROM chain WHERE runtime_id = ? AND seq = ?"
_ENDING = """
    SELECT number, runtime_id, seq, kind, task, body, hash, statement FROM chain
    WHERE task = ? AND kind IN ('closed', 'lost') ORDER BY number DESC LIMIT 1
"""
_CHAIN_FROM = """
    SELECT number, runtime_id, seq, kind, task, body, hash, statement FROM chain WHERE runtime_id = ? AND seq >= ? ORDER BY seq
"""
_HEADS = """
    SELECT chain.runtime_id, chain.seq, chain.hash, chain.kind,
      (SELECT max(seq) FROM checkpoints WHERE checkpoints.runtime_id = chain.runtime_id)
    FROM chain JOIN (SELECT runtime_id, max(number) AS newest FROM chain GROUP BY runtime_id) ON number = newest
    ORDER BY number DESC
"""
_UNCHAINED = "SELECT task, opened_at FROM records WHERE task NOT IN (SELECT task FROM chain WHERE task IS NOT NULL) ORDER BY task"
_UNSIGNED_ENDS = """
    SELECT runtime_id, seq, hash FROM chain WHERE kind = 'ended'
    AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE checkpoints.runtime_id = chain.runtime_id AND checkpoints.seq = chain.seq)
    ORDER BY number
"""
# The newest entry of a chain counts as if it were signed: what comes after the last checkpoint is a stretch too.
_STRETCHES = """
    SELECT runtime_id, seq, before FROM (
      SELECT runtime_id, seq, lag(seq, 1, 0) OVER (PARTITION BY runtime_id ORDER BY seq) AS before
      FROM (SELECT runtime_id, seq FROM checkpoints UNION SELECT runtime_id, max(seq) FROM chain GROUP BY runtime_id)
    ) WHERE seq - before > ?
"""
_SIGN = "INSERT INTO checkpoints (runtime_id, seq, envelope) VALUES (?, ?, ?)"
_CHECKPOINTS = "SELECT number, runtime_id, seq, envelope FROM checkpoints ORDER BY number"
_TELL = """
    INSERT INTO witnesses (name, told_at, runtime_id, seq) VALUES (:name, :at, :runtime_id, :seq)
    ON CONFLICT (name) DO UPDATE SET told_at = :at, runtime_id = :runtime_id, seq = :seq, failed_at = NULL, error = NULL
"""
_FAIL = """
    INSERT INTO witnesses (name, failed_at, error) VALUES (:name, :at, :error)
    ON CONFLICT (name) DO UPDATE SET failed_at = coalesce(failed_at, :at), error = :error
"""


@dataclass(frozen=True, slots=True)
class Link:
    """An entry as others name it."""

    runtime_id: str
    seq: int
    hash: str


class Entry(NamedTuple):
    """One row. `body` is the text that `hash` was taken over; the columns before it repeat some of its members."""

    number: int
    runtime_id: str
    seq: int
    kind: str
    task: str | None
    body: str
    hash: str
    statement: str | None


def last(conn: Transaction) -> Link | None:
    """The entry that was committed last, whosever it is."""
    found = conn.run(_LAST).fetchone()
    return None if found is None else Link(*found)


def head(conn: Transaction, runtime_id: str) -> Link | None:
    """The newest entry of one chain."""
    found = conn.run(_HEAD, (runtime_id,)).fetchone()
    return None if found is None else Link(*found)


def append(conn: Transaction, link: Link, kind: str, task: str | None, body: str, statement: str | None) -> None:
    """Add one entry."""
    conn.run(_APPEND, (link.runtime_id, link.seq, kind, task, body, link.hash, statement))


def entries(conn: Transaction) -> Iterator[Entry]:
    """All entries in the order of their commits."""
    yield from map(Entry._make, conn.run(_ROWS))


def chain_from(conn: Transaction, runtime_id: str, seq: int) -> Iterator[Entry]:
    """One chain's entries from a place on."""
    for row in conn.run(_CHAIN_FROM, (runtime_id, seq)):
        yield Entry(*row)


def find(conn: Transaction, runtime_id: str, seq: int) -> Entry | None:
    """One entry by its place."""
    row = conn.run(_FIND, (runtime_id, seq)).fetchone()
    return None if row is None else Entry(*row)


def ending(conn: Transaction, task: str) -> Entry | None:
    """The entry of a call's end, which has its statement."""
    row = conn.run(_ENDING, (task,)).fetchone()
    return None if row is None else Entry(*row)


def heads(conn: Transaction) -> Iterator[tuple[Link, str, int]]:
    """Each chain's newest entry with its kind, and up to where the chain is signed; the newest chain first."""
    for runtime_id, seq, known, kind, signed in conn.run(_HEADS):
        yield Link(runtime_id, seq, known), kind, signed or 0


def prunings(conn: Transaction, until: int) -> list[str]:
    """The bodies of the entries about what was forgotten, up to a number."""
    return [body for (body,) in conn.run("SELECT body FROM chain WHERE kind = 'pruned' AND number <= ?", (until,))]


def unchained(conn: Transaction) -> Iterator[tuple[str, float]]:
    """Records that no entry speaks of: (task, opened_at)."""
    yield from conn.run(_UNCHAINED)


def count_records(conn: Transaction) -> tuple[int, str | None]:
    """How many records there are, and the newest one's task."""
    found: tuple[int, str | None] = conn.run("SELECT count(*), max(task) FROM records").fetchone()
    return found


def count_egress(conn: Transaction, known: str) -> int:
    """How many entries the egress log of a task has."""
    (found,) = conn.run("SELECT count(*) FROM egress WHERE task = ?", (known,)).fetchone()
    return int(found)


def unsigned_ends(conn: Transaction) -> Iterator[Link]:
    """Last entries of chains that ended, without a checkpoint of their own."""
    for row in conn.run(_UNSIGNED_ENDS):
        yield Link(*row)


def unsigned_stretches(conn: Transaction, most: int) -> Iterator[tuple[str, int, int]]:
    """Where a chain has more than `most` entries between two checkpoints: (runtime_id, from seq, to seq)."""
    for runtime_id, seq, before in conn.run(_STRETCHES, (most,)):
        yield runtime_id, before + 1, seq


def sign(conn: Transaction, link: Link, envelope: str) -> None:
    """Keep a signed checkpoint."""
    conn.run(_SIGN, (link.runtime_id, link.seq, envelope))


def signed_up_to(conn: Transaction, runtime_id: str) -> int:
    """The newest checkpoint's seq; 0 without one."""
    (found,) = conn.run("SELECT max(seq) FROM checkpoints WHERE runtime_id = ?", (runtime_id,)).fetchone()
    return found or 0


def checkpoints(conn: Transaction) -> Iterator[tuple[int, str, int, str]]:
    """All checkpoints: (number, runtime_id, seq, envelope)."""
    yield from conn.run(_CHECKPOINTS)


def checkpoint_at(conn: Transaction, runtime_id: str, seq: int) -> str | None:
    """The envelope of the checkpoint of one entry."""
    row = conn.run("SELECT envelope FROM checkpoints WHERE runtime_id = ? AND seq = ?", (runtime_id, seq)).fetchone()
    return None if row is None else str(row[0])


def tasks_named(conn: Transaction, prefix: str) -> list[str]:
    """Up to two task ids that begin with `prefix`: "{" follows "z", the last letter of one."""
    query = "SELECT task FROM records WHERE task >= ? AND task < ? ORDER BY task LIMIT 2"
    return [task for (task,) in conn.run(query, (prefix, prefix + "{"))]


def newest_checkpoint(conn: Transaction) -> tuple[str, int, str] | None:
    """The checkpoint that was made last: (runtime_id, seq, envelope)."""
    found: tuple[str, int, str] | None = conn.run(
        "SELECT runtime_id, seq, envelope FROM checkpoints ORDER BY number DESC LIMIT 1"
    ).fetchone()
    return found


def told(conn: Transaction, name: str, runtime_id: str, seq: int, at_s: float) -> None:
    """Note that a witness has a checkpoint."""
    conn.run(_TELL, {"name": name, "runtime_id": runtime_id, "seq": seq, "at": at_s})


def failed(conn: Transaction, name: str, error: str, at_s: float) -> None:
    """Note that a witness could not be told."""
    conn.run(_FAIL, {"name": name, "error": error, "at": at_s})


def witnesses(conn: Transaction) -> list[dict[str, Any]]:
    """What is known of each witness."""
    names = ("name", "told_at", "runtime_id", "seq", "failed_at", "error")
    return [dict(zip(names, row, strict=True)) for row in conn.run(f"SELECT {', '.join(names)} FROM witnesses ORDER BY name")]  # noqa: S608
