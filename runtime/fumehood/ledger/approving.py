"""The verbs about approvals, from checked fields to rows and back, each step attested in the same transaction.

Attack: the worker reads what clients send, and once it is taken over it would approve for people. So a person's word counts when it
comes from a ledger that was started for one command of the operator's, which says by the kernel's word whose command it is; or signed
by an approver's key, which this process verifies itself. What a worker may say is that its own call waits, that its requester takes it
back or confirms it, and that it begins now.

`write` runs inside the transaction of a batch and never raises for what a caller got wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fumehood import wire
from fumehood.approvals import answers
from fumehood.faults import Refused
from fumehood.ledger.attesting import Chain
from fumehood.model import Deny, task_id
from fumehood.reasons import Reason
from fumehood.store import approvals, nonces
from fumehood.store.approvals import Voter
from fumehood.store.database import Transaction

# What makes something of a call begin, or wait.
BEGINS = frozenset({"approval_ask", "approval_spend"})
# What the chain calls each word.
_SAID = {
    "approval_confirm": "confirmed", "approval_withdraw": "withdrawn", "approval_vote": "voted", "approval_answer": "voted",
}  # fmt: skip
WRITES = frozenset({*BEGINS, *_SAID, "approval_told", "approvals_expire"})
READS = frozenset({"approval", "approvals", "approval_state"})
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approving:
    """Who may approve: (name, `uid` or `key`, value), as the operator configured it.

    `uid` and `account` are whose processes these are, and `decides` whether this is a command of theirs and serves nobody else.
    `own`: whether who asked as this user may approve it at a terminal.
    """

    approvers: tuple[tuple[str, str, str], ...] = ()
    audience: str = "fumehood"
    own: bool = True
    uid: int = -1
    account: str = ""
    decides: bool = False
    settled: list[str] = field(default_factory=list)
    """Tasks whose arguments need not be kept any more, once the transaction is on disk."""

    def write(self, conn: Transaction, chain: Chain, verb: str, fields: Fields, *, runtime_id: str, at_s: float) -> dict[str, Any]:
        """Do one of `WRITES`; its reply."""
        self._expire(conn, chain, at_s)
        try:
            return {"ok": self._done(conn, chain, verb, fields, runtime_id, at_s)}
        except Refused as error:
            return wire.reply_of_error(error)

    def _done(self, conn: Transaction, chain: Chain, verb: str, fields: Fields, runtime_id: str, at_s: float) -> Any:
        match verb:
            case "approvals_expire":
                return None
            case "approval_ask":
                name = task_id(int(at_s * 1000), os.urandom(10))
                row, is_new = approvals.ask(conn, fields, runtime_id=runtime_id, approval=name, at_s=at_s)
                if is_new:
                    chain.approval(conn, "asked", row, at_s)
                return {**_state(row), "is_new": is_new}
            case "approval_spend":
                spent = approvals.spend(conn, **fields, runtime_id=runtime_id, at_s=at_s)
                if spent is not None:
                    chain.approval(conn, "spent", spent, at_s)
                return None if spent is None else _state(spent)
            case "approval_told":
                approvals.tell(conn, **fields, runtime_id=runtime_id)
                return None
            case _:
                row = self._said(conn, verb, fields, runtime_id, at_s)
                chain.approval(conn, _SAID[verb], row, at_s)
                if row["state"] != "open":
                    self.settled.append(row["task"])
                return _state(row)

    def _said(self, conn: Transaction, verb: str, fields: Fields, runtime_id: str, at_s: float) -> dict[str, Any]:
        """Take a word about an approval."""
        match verb:
            case "approval_confirm":
                return approvals.confirm(conn, **fields, runtime_id=runtime_id, at_s=at_s)
            case "approval_withdraw":
                return approvals.withdraw(conn, **fields, runtime_id=runtime_id, at_s=at_s)
            case "approval_vote":
                return self._voted(conn, fields, at_s)
            case _:
                return self._answered(conn, fields["answer"], at_s)

    def _voted(self, conn: Transaction, fields: Fields, at_s: float) -> dict[str, Any]:
        """The word of whoever runs this command."""
        name = next((name for name, kind, value in self.approvers if (kind, value) == ("uid", str(self.uid))), None)
        if not self.decides or name is None:
            detail = f"uid {self.uid} is no approver, or does not say it here"
            raise Refused(Deny(reason=Reason.APPROVER_UNFIT, rule="approval.approver", detail=detail))
        at_terminal: bool = fields["at_terminal"]
        voter = Voter(
            approver=name, how="terminal" if at_terminal else "command", uid=self.uid, account=self.account,
            own_counts=at_terminal and self.own,
        )  # fmt: skip
        said = {name: fields[name] for name in ("approves", "reason")}
        return approvals.decide(conn, fields["approval"], fields["binding"], voter, **said, signed=None, at_s=at_s)

    def _answered(self, conn: Transaction, text: str, at_s: float) -> dict[str, Any]:
        """The word of whoever signed it."""
        keys = {name: value for name, kind, value in self.approvers if kind == "key"}
        try:
            answer = answers.opened(text, keys, self.audience, at_s)
        except answers.UnfitError as error:
            raise Refused(Deny(reason=Reason.ANSWER_UNFIT, rule="approval.answer", detail=str(error))) from error
        voter = Voter(approver=answer.approver, how="signed", kid=answer.kid)
        # First: what cannot be taken again must not be taken for an answer that was already.
        refused = nonces.spend(conn, f"approval:{answer.kid}", answer.jti, answer.until_s, at_s=at_s)
        if refused is not None:
            raise Refused(Deny(reason=refused, rule="approval.answer"))
        return approvals.decide(
            conn, answer.approval, answer.binding, voter, approves=answer.approves, reason=answer.reason, signed=text, at_s=at_s
        )

    def _expire(self, conn: Transaction, chain: Chain, at_s: float) -> None:
        for name, task in approvals.expire(conn, at_s):
            chain.approval(conn, "expired", approvals.find(conn, name), at_s)
            self.settled.append(task)


def read(conn: Transaction, verb: str, fields: Fields) -> dict[str, Any]:
    """Answer one of `READS`. Raises Refused."""
    if verb == "approval_state":
        return _state(approvals.find(conn, fields["approval"]))
    if verb == "approval":
        return approvals.named(conn, fields["approval"])
    return approvals.approvals(conn, after=fields["after"], everything=fields["everything"] or False)


def _state(row: Fields) -> dict[str, Any]:
    """What a waiting call wants to know."""
    return {name: row[name] for name in ("id", "task", "binding", "state", "until", "votes", "told")}
