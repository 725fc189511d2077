"""Calls that wait for a person, and what persons said. Each function runs inside a transaction.

    open -> approved -> spent
    open -> denied | withdrawn | expired        approved -> expired

Invariants: an approval is for one binding, of one sender; an equal request attaches to it instead of asking again, so a client that
timed out and a gateway that was started anew lose nothing, and a denial holds until it is out of date; only what is approved and not
out of date is spent, once, by one open call of that sender's. One word counts for each identity, and a single no ends it. The yes of
whoever asked does not count, by whatever name. How many wait is bounded, for one sender and in all. Of what was decided the arguments
and the profile's sentences are forgotten; their digests stay.

A function that refuses (raises `Refused`) has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.permission import Vote
from fumehood.reasons import Reason
from fumehood.store.database import Transaction
from fumehood.store.paging import PAGE_BYTES, PAGE_ROWS, fitting

OF_A_SENDER = 16
IN_ALL = 256
FURTHEST_S = 7 * 86_400.0
TOLD_CHARS = 256
REQUESTER = "requester"

_COLUMNS = (
    *("approval", "task", "binding", "tenant", "sender", "sender_uid", "sender_key", "approvers", "count", "requester"),
    *("question", "state", "opened_at", "until", "decided_at", "spent_by", "told"),
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM approvals"  # noqa: S608 - columns of ours
# To the letter as in the partial index: SQLite uses that only for a condition it can read when it plans.
_LIVE = "state IN ('open', 'approved', 'denied')"
_WHOSE = "tenant = :tenant AND sender = :sender AND sender_uid = :sender_uid"
_CALL = "SELECT tenant, sender, sender_uid, proof FROM records WHERE task = ? AND runtime_id = ? AND state <> 'closed'"
_ATTACH = f"{_SELECT} WHERE binding = :binding AND {_LIVE} AND until > :at AND {_WHOSE} ORDER BY approval LIMIT 1"
_WAITING = f"SELECT count(*), coalesce(sum({_WHOSE}), 0) FROM approvals WHERE {_LIVE} AND state <> 'denied'"  # noqa: S608 - as above
_PUT = f"INSERT INTO approvals ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"  # noqa: S608 - as above
_EXPIRE = f"""
    UPDATE approvals SET state = 'expired', decided_at = coalesce(decided_at, until),
      question = json_remove(question, '$.arguments', '$.may')
    WHERE {_LIVE} AND state <> 'denied' AND until <= ? RETURNING approval, task
"""  # noqa: S608 - as above
_DECIDE = """
    UPDATE approvals SET state = :state, decided_at = :at, question = json_remove(question, '$.arguments', '$.may')
    WHERE approval = :approval AND state = 'open'
"""
_SPEND = """
    UPDATE approvals SET state = 'spent', spent_by = :task
    WHERE approval = :approval AND binding = :binding AND state = 'approved' AND until > :at
"""
_VOTE = """
    INSERT INTO approval_votes (approval, identity, approver, approves, how, reason, at, signed)
    VALUES (:approval, :identity, :approver, :approves, :how, :reason, :at, :signed)
"""
_VOTES = "SELECT approver, identity, approves, how, reason, at FROM approval_votes WHERE approval = ? ORDER BY at, identity"
_NAMED = f"{_SELECT} WHERE approval >= ? AND approval < ? ORDER BY approval LIMIT 2"
_LIST = f"{_SELECT} WHERE approval > :after AND (:everything OR {_LIVE} AND state <> 'denied') ORDER BY approval LIMIT :most"

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """Who says something. `uid` and `account` are the kernel's word of a person on this host, `kid` the key that signed.

    `own_counts`: at a terminal of the host, and the operator lets it be, this is not the client that asked under the same account.
    """

    approver: str
    how: str
    uid: int | None = None
    account: str = ""
    kid: str | None = None
    own_counts: bool = False

    @property
    def identity(self) -> str:
        """What counts as one person."""
        return f"uid:{self.uid}" if self.kid is None else f"key:{self.kid}"

    def asked_for(self, row: Fields) -> bool:
        """Whether this is whoever asked."""
        if self.kid is not None:
            return bool(row["sender_key"] == self.kid)
        return not self.own_counts and (row["sender_uid"], row["sender"]) == (self.uid, self.account)


def ask(conn: Transaction, given: Fields, *, runtime_id: str, approval: str, at_s: float) -> tuple[dict[str, Any], bool]:
    """The approval that an open call of this runtime waits for, and whether it is a new one. Raises Refused."""
    whose = _caller(conn, given["task"], runtime_id)
    row = {**whose, "binding": given["binding"], "at": at_s}
    found = conn.run(_ATTACH, row).fetchone()
    if found is not None:
        return _as_json(conn, found), False
    total, own = conn.run(_WAITING, whose).fetchone()
    if own >= OF_A_SENDER or total >= IN_ALL:
        detail = f"{own} calls of this sender's wait" if own >= OF_A_SENDER else f"{total} calls wait"
        raise Refused(Deny(reason=Reason.APPROVALS_FULL, rule="approval.bound", detail=detail))
    need = given["need"]
    approvers = None if need["approvers"] is None else json.dumps(sorted(need["approvers"]))
    conn.run(_PUT, {
        **whose, "approval": approval, "task": given["task"], "binding": given["binding"], "approvers": approvers,
        "count": need["count"], "requester": need["requester"], "question": json.dumps(given["question"]), "state": "open",
        "opened_at": at_s, "until": min(given["until"], at_s + FURTHEST_S), "decided_at": None, "spent_by": None, "told": None,
    })  # fmt: skip
    return find(conn, approval), True


def decide(
    conn: Transaction, approval: str, binding: str, voter: Voter, *, approves: bool, reason: str, signed: str | None, at_s: float
) -> dict[str, Any]:
    """Take an approver's word. Raises Refused."""
    row = _open(conn, approval, binding, at_s)
    approvers = row["need"]["approvers"]
    if approvers is not None and voter.approver not in approvers:
        raise _unfit(f"{voter.approver} is not among those whose approval it needs")
    if approves and voter.asked_for(row):
        raise _unfit(f"{voter.approver} asked for it")
    if any(voter.identity == vote["identity"] or voter.approver == vote["approver"] for vote in row["votes"]):
        raise _unfit(f"{voter.approver} has decided already")
    vote = Vote(
        approver=voter.approver, identity=voter.identity, approves=approves, how=voter.how, reason=reason, at_s=at_s
    )
    _put_vote(conn, approval, vote, signed)
    agreed = sum(each["approves"] for each in row["votes"]) + approves
    if not approves or agreed >= row["need"]["count"]:
        conn.run(_DECIDE, {"approval": approval, "state": "approved" if approves else "denied", "at": at_s})
    return find(conn, approval)


def confirm(conn: Transaction, approval: str, task: str, *, runtime_id: str, at_s: float) -> dict[str, Any]:
    """Take the requester's own confirmation where that is enough, as what it is. Raises Refused."""
    row = _open(conn, approval, None, at_s)
    whose = _own(conn, row, task, runtime_id)
    if not row["need"]["requester"]:
        raise _unfit("the requester's own answer is not enough here")
    vote = Vote(approver=whose["sender"], identity=REQUESTER, approves=True, how="requester-confirmed", reason="", at_s=at_s)
    if all(each["identity"] != REQUESTER for each in row["votes"]):
        _put_vote(conn, approval, vote, None)
    conn.run(_DECIDE, {"approval": approval, "state": "approved", "at": at_s})
    return find(conn, approval)


def withdraw(conn: Transaction, approval: str, task: str, *, runtime_id: str, at_s: float) -> dict[str, Any]:
    """Let nobody decide what its requester does not want any more. Raises Refused."""
    row = _open(conn, approval, None, at_s)
    _own(conn, row, task, runtime_id)
    conn.run(_DECIDE, {"approval": approval, "state": "withdrawn", "at": at_s})
    return find(conn, approval)


def spend(conn: Transaction, approval: str, binding: str, task: str, *, runtime_id: str, at_s: float) -> dict[str, Any] | None:
    """Use an approval up for one call; None when it is not to be had: used, out of date, for something else. Raises Refused."""
    row = _found(conn, approval)
    _own(conn, row, task, runtime_id)
    done = conn.run(_SPEND, {"approval": approval, "binding": binding, "task": task, "at": at_s}).rowcount
    return find(conn, approval) if done else None


def expire(conn: Transaction, at_s: float) -> list[tuple[str, str]]:
    """Say of what nobody decided, or used, in time that it is over: (approval, task) of each."""
    return [(approval, task) for approval, task in conn.run(_EXPIRE, (at_s,)).fetchall()]


def tell(conn: Transaction, approval: str, task: str, told: str, *, runtime_id: str) -> None:
    """Note what became of telling approvers about it."""
    _own(conn, _found(conn, approval), task, runtime_id)
    conn.run("UPDATE approvals SET told = ? WHERE approval = ?", (told, approval))


def find(conn: Transaction, approval: str) -> dict[str, Any]:
    """One approval whole. Raises Refused."""
    return _found(conn, approval)


def named(conn: Transaction, prefix: str) -> dict[str, Any]:
    """The approval whose id begins so. Raises Refused."""
    found = conn.run(_NAMED, (prefix, prefix + "{")).fetchall()
    if len(found) != 1:
        what = f"{prefix} begins the names of several" if found else f"no approval is named {prefix}"
        raise Refused(Deny(reason=Reason.APPROVAL_UNKNOWN, rule="ledger.approvals", detail=what))
    return _as_json(conn, found[0])


def approvals(conn: Transaction, *, after: str | None, everything: bool) -> dict[str, Any]:
    """`{"approvals": [...], "more": bool}`, oldest first, without their questions' long parts; only what waits, or `everything`."""
    rows = conn.run(_LIST, {"after": after or "", "everything": everything, "most": PAGE_ROWS + 1}).fetchall()
    page, more = fitting((_short(_as_json(conn, row)) for row in rows), PAGE_ROWS, PAGE_BYTES)
    return {"approvals": page, "more": more}


def attested(row: Fields) -> dict[str, Any]:
    """What the chain says of an approval at each of its steps."""
    votes = [{name: vote[name] for name in ("identity", "approver", "approves", "how", "reason")} for vote in row["votes"]]
    return {"approval": row["id"], "binding": row["binding"], "state": row["state"], "votes": votes}


def everything(conn: Transaction) -> Iterator[dict[str, Any]]:
    """All that there are, as the chain should say it."""
    for row in conn.run(f"{_SELECT} ORDER BY approval").fetchall():
        yield attested(_as_json(conn, row))


def _caller(conn: Transaction, task: str, runtime_id: str) -> dict[str, Any]:
    """Whose an open call of this runtime is, by its record. Raises Refused."""
    row = conn.run(_CALL, (task, runtime_id)).fetchone()
    if row is None:
        raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="ledger.request", detail=f"approval: not possible for task {task}"))
    tenant, sender, uid, proof = row
    return {
        "tenant": tenant, "sender": sender, "sender_uid": uid, "sender_key": None if proof is None else json.loads(proof)["key"],
    }


def _own(conn: Transaction, row: Fields, task: str, runtime_id: str) -> dict[str, Any]:
    """The caller, if it is whose approval this is. Raises Refused: to others it does not exist."""
    whose = _caller(conn, task, runtime_id)
    if any(whose[name] != row[name] for name in ("tenant", "sender", "sender_uid")):
        raise _unknown(row["id"])
    return whose


def _open(conn: Transaction, approval: str, binding: str | None, at_s: float) -> dict[str, Any]:
    row = _found(conn, approval)
    if row["state"] == "expired" or (row["state"] == "open" and row["until"] <= at_s):
        raise Refused(Deny(reason=Reason.APPROVAL_EXPIRED, rule="approval.expiry", detail=f"{approval} is out of date"))
    if row["state"] != "open":
        raise Refused(Deny(reason=Reason.APPROVAL_UNKNOWN, rule="approval.state", detail=f"{approval} is {row['state']} already"))
    if binding is not None and binding != row["binding"]:
        raise Refused(Deny(reason=Reason.APPROVAL_CHANGED, rule="approval.binding", detail=f"{approval} is bound to {row['binding']}"))
    return row


def _found(conn: Transaction, approval: str) -> dict[str, Any]:
    row = conn.run(f"{_SELECT} WHERE approval = ?", (approval,)).fetchone()
    if row is None:
        raise _unknown(approval)
    return _as_json(conn, row)


def _put_vote(conn: Transaction, approval: str, vote: Vote, signed: str | None) -> None:
    conn.run(_VOTE, {
        "approval": approval, "identity": vote.identity, "approver": vote.approver, "approves": vote.approves, "how": vote.how,
        "reason": vote.reason, "at": vote.at_s, "signed": signed,
    })  # fmt: skip


def _as_json(conn: Transaction, row: Sequence[Any]) -> dict[str, Any]:
    found = dict(zip(_COLUMNS, row, strict=True))
    approvers = found.pop("approvers")
    need = {
        "approvers": None if approvers is None else json.loads(approvers), "count": found.pop("count"),
        "requester": bool(found.pop("requester")),
    }  # fmt: skip
    votes = [
        {"approver": approver, "identity": identity, "approves": bool(approves), "how": how, "reason": reason, "at_s": at_s}
        for approver, identity, approves, how, reason, at_s in conn.run(_VOTES, (found["approval"],))
    ]
    return {"id": found.pop("approval"), **found, "question": json.loads(found["question"]), "need": need, "votes": votes}


def _short(row: dict[str, Any]) -> dict[str, Any]:
    question = {name: value for name, value in row["question"].items() if name not in ("arguments", "may")}
    return {**row, "question": question}


def _unknown(approval: str) -> Refused:
    return Refused(Deny(reason=Reason.APPROVAL_UNKNOWN, rule="ledger.approvals", detail=f"there is no approval {approval}"))


def _unfit(detail: str) -> Refused:
    return Refused(Deny(reason=Reason.APPROVER_UNFIT, rule="approval.approver", detail=detail))
