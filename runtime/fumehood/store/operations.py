"""What an operator did to all calls at once, and when: `fumehood stop --all` and `fumehood start`. Each runs inside a transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fumehood.store.database import Transaction

# Each at most 6 KiB: the last twenty fit one message.
SHOWN = 20
MOST = 10_000
_NOTE = """
    INSERT INTO operations (at, action, who, uid, why, facts)
    SELECT :at, :action, :who, :uid, :why, :facts WHERE (SELECT count(*) FROM operations) < :most
"""
_COLUMNS = ("at", "action", "who", "uid", "why", "facts")


def note(conn: Transaction, given: Mapping[str, Any], *, at_s: float) -> bool:
    """Write down that it was done; whether that was possible: a worker that was taken over must not fill the disk with it."""
    row = {**given, "facts": json.dumps(given["facts"]), "at": at_s, "most": MOST}
    return conn.run(_NOTE, row).rowcount == 1


def operations(conn: Transaction) -> dict[str, Any]:
    """The last of them, newest first, at most `SHOWN`, as `operations`."""
    found = conn.run(f"SELECT {', '.join(_COLUMNS)} FROM operations ORDER BY number DESC LIMIT {SHOWN}")  # noqa: S608 - columns of ours
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in found]
    return {"operations": [{**row, "facts": json.loads(row["facts"])} for row in rows]}
