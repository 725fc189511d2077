"""The verbs about who sends: nonces that are taken once, and the public keys whose signatures are accepted.

`write` runs inside the transaction of a batch and never raises for what a caller got wrong; `read` inside one of its own.

Only an operator's own command may say who sends. Its ledger is told so by whoever forked it, while still in possession of the
operator's rights; the ledger of a runtime that carries calls never is, so a worker that was taken over cannot make itself a sender.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fumehood import wire
from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.store import nonces, senders
from fumehood.store.database import Transaction

BEGINS = frozenset({"spend"})
WRITES = frozenset({*BEGINS, "sender_add", "sender_revoke"})
READS = frozenset({"sender", "senders"})
Fields = Mapping[str, Any]


def write(conn: Transaction, verb: str, fields: Fields, *, at_s: float, takes_senders: bool) -> dict[str, Any]:
    """Do one of `WRITES`, and the reply."""
    if verb == "spend":
        # In this transaction: a key that is revoked now takes no other request, whatever was read of it before.
        revoked = Reason.SENDER_REVOKED if senders.is_revoked(conn, fields["key"]) else None
        refused = revoked or nonces.spend(conn, fields["key"], fields["nonce"], fields["until"], at_s=at_s)
        return {"ok": None} if refused is None else _refused(refused, "ledger.spend")
    if not takes_senders:
        return _refused(Reason.BAD_REQUEST, "ledger.senders", "the ledger of a runtime that carries calls is not told who sends")
    if verb == "sender_revoke":
        return {"ok": senders.revoke_sender(conn, fields["named"], at_s=at_s)}
    kid = senders.add_sender(conn, fields, at_s=at_s)
    if kid is None:
        detail = f"this key is known already, revoked or not, or there are {senders.SENDERS}"
        return _refused(Reason.BAD_REQUEST, "ledger.senders", detail)
    return {"ok": kid}


def read(conn: Transaction, verb: str, fields: Fields) -> dict[str, Any] | None:
    """Answer one of `READS`."""
    return senders.find_sender(conn, fields["kid"]) if verb == "sender" else senders.senders(conn, after=fields["after"])


def _refused(reason: Reason, rule: str, detail: str = "") -> dict[str, Any]:
    return wire.reply_of_error(Refused(Deny(reason=reason, rule=rule, detail=detail)))
