"""How calls are booked: their conversation, what they taint and what they use, in the transactions that open and close records."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from fumehood.faults import Refused
from fumehood.model import Deny, Result
from fumehood.policies.known import Unit
from fumehood.reasons import Reason
from fumehood.store import budgets, conversations
from fumehood.store.database import Database, Transaction

VERBS = frozenset({"conversations", "conversation_forget"})
_EGRESS = "SELECT counters FROM egress_totals WHERE task = ?"
_NEVER_RAN = (Result.REFUSED, Result.REPEATED)


def opened(conn: Transaction, record: Mapping[str, Any], *, at_s: float) -> dict[str, Any] | None:
    """Book a call whose record is being opened; what there was before it, and what it would exceed."""
    account = record["account"]
    if account is None:
        return None
    known = conversations.begin(conn, record, account, at_s=at_s)
    return {**known, "spent": budgets.take(conn, record["task"], account["charges"], at_s=at_s)}


def closed(conn: Transaction, task: str, given: Mapping[str, Any], *, at_s: float) -> None:
    """Book the end of a call, by what its record is closed with."""
    ran = Result(given["result"]) not in _NEVER_RAN
    conversations.end(conn, task, ran=ran, well=given["result"] == Result.OK, at_s=at_s)
    user_s, system_s = given.get("cpu_user_s"), given.get("cpu_system_s")
    found = conn.run(_EGRESS, (task,)).fetchone()
    used: dict[str, float | None] = {
        Unit.CPU: None if user_s is None or system_s is None else user_s + system_s,
        Unit.EGRESS: None if found is None else json.loads(found[0]).get("bytes_out"),
    }
    budgets.settle(conn, task, used, ran=ran, at_s=at_s)


def answer(database: Database, verb: str, fields: Mapping[str, Any], *, decides: bool) -> Any:
    """Answer one of `VERBS`: people ask. A conversation is ended by an operator's own command alone. Raises FumehoodError."""
    if verb == "conversations":
        with database.read() as conn:
            return {"taints": conversations.listed(conn), "budgets": budgets.listed(conn, time.time())}
    if not decides:
        detail = "a conversation is ended by an operator's own command alone"
        raise Refused(Deny(reason=Reason.NOT_ALLOWED, rule="policy.forget", detail=detail))
    with database.write(durable=True) as conn:
        return {"forgotten": conversations.forget(conn, fields["sender"])}
