"""Budgets: how much calls used of what an operator gave them, in any stretch of a given time. Each function runs in a transaction.

Invariants: a call takes its worst case when its record is opened, in the transaction that looks whether there is room, so that of
fifty at once not one too many begins; at its end that becomes what it used, and nothing if it never ran. A call that a budget is to
deny takes nothing of any.

What has ended is summed up in sixtieths of a budget's time, each counted until its last moment is that long ago: a budget may be
free a sixtieth late, never early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fumehood.store.database import Transaction

_PARTS = 60
_UNDER_WAY = "SELECT coalesce(sum(amount), 0.0) FROM charges WHERE budget = ? AND key = ?"
_ENDED = "SELECT until, amount FROM spent WHERE budget = ? AND key = ? AND until > ? ORDER BY until"
_FORGET = "DELETE FROM spent WHERE budget = ? AND key = ? AND until <= ?"
_TAKE = "INSERT INTO charges (task, budget, key, unit, amount, per) VALUES (:task, :budget, :key, :unit, :amount, :per_s)"
_GIVE_BACK = "DELETE FROM charges WHERE task = ? RETURNING budget, key, unit, amount, per"
_SPEND = """
    INSERT INTO spent (budget, key, until, amount) VALUES (?, ?, ?, ?)
    ON CONFLICT (budget, key, until) DO UPDATE SET amount = amount + excluded.amount
"""


def take(conn: Transaction, task: str, charges: Sequence[Mapping[str, Any]], *, at_s: float) -> list[dict[str, Any]]:
    """Reserve what a call may use; the budgets that it would exceed."""
    spent = [over for charge in charges if (over := _over(conn, charge, at_s)) is not None]
    if all(each["ask"] for each in spent):
        for charge in charges:
            conn.run(_TAKE, {"task": task, **charge})
    return spent


def settle(conn: Transaction, task: str, used: Mapping[str, float | None], *, ran: bool, at_s: float) -> None:
    """Turn what a call reserved into what it used, by unit; None where nobody knows, which is all of it."""
    for budget, key, unit, amount, per_s in conn.run(_GIVE_BACK, (task,)).fetchall():
        conn.run(_FORGET, (budget, key, at_s))
        known = used.get(unit)
        if ran and (spent := amount if known is None else known) > 0:
            part_s = per_s / _PARTS
            conn.run(_SPEND, (budget, key, (math.floor(at_s / part_s) + 1) * part_s + per_s, spent))


def listed(conn: Transaction, at_s: float) -> list[dict[str, Any]]:
    """What is used of each budget now, by whom it is counted for."""
    rows = conn.run(
        "SELECT budget, key, sum(amount) FROM (SELECT budget, key, amount FROM charges UNION ALL"
        " SELECT budget, key, amount FROM spent WHERE until > ?) GROUP BY budget, key ORDER BY budget, key LIMIT 1000",
        (at_s,),
    ).fetchall()
    return [{"budget": budget, "key": key, "used": used} for budget, key, used in rows]


def _over(conn: Transaction, charge: Mapping[str, Any], at_s: float) -> dict[str, Any] | None:
    place = (charge["budget"], charge["key"])
    ended = conn.run(_ENDED, (*place, at_s)).fetchall()
    used = conn.run(_UNDER_WAY, place).fetchone()[0] + math.fsum(amount for _, amount in ended)
    over = used + charge["amount"] - charge["most"]
    if over <= 0:
        return None
    free_at_s = None
    if charge["amount"] <= charge["most"]:
        for until_s, amount in ended:
            over -= amount
            free_at_s = until_s
            if over <= 0:
                break
        else:
            free_at_s = at_s + charge["per_s"]  # it depends on calls that are under way
    return {"budget": charge["budget"], "ask": charge["ask"], "free_at_s": free_at_s}
