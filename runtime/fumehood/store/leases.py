"""The lease journal: how each credential is revoked, on disk before it is issued (rule 19). Each function runs inside a transaction.

Invariants: a lease belongs to an open record of the runtime that opens it; it goes from `opened` over `issued` to `closed` and never
back, and a closed one keeps its proof; only its own runtime, or a sweeper that holds a claim on it, closes it or notes a failed
try. A claim is taken in one write transaction, so that of two sweepers only one has it, and lapses after `CLAIM_S`. A try that
failed is not repeated by a sweeper before a pause that doubles with each.

`handle` is what revokes a lease even if the answer to its issue was lost, and holds no secret; `sealed` what else it takes, readable
with the sweep key alone, and forgotten with the revocation; `claimed_at` is when a sweeper last took it, or anybody last tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fumehood.store.database import Transaction
from fumehood.store.paging import PAGE_BYTES, PAGE_ROWS, fitting

CLAIM_S = 120.0
LONGEST_PAUSE_S = 600.0
# A call holds a few, and as many again each time that it is parked. A worker that was taken over must not fill the disk.
LEASES_OF_A_TASK = 512
CLAIMED_AT_ONCE = 16

_OPEN = """
    INSERT OR IGNORE INTO leases (lease, task, runtime_id, credential, provider, handle, until, state, opened_at, tries)
    SELECT :lease, :task, :runtime_id, :credential, :provider, :handle, :until, 'opened', :at, 0
    WHERE EXISTS (SELECT 1 FROM records WHERE task = :task AND runtime_id = :runtime_id AND state <> 'closed')
    AND (SELECT count(*) FROM leases WHERE task = :task) < :most
"""
_ISSUE = """
    UPDATE leases SET state = 'issued', issued_at = :at, until = coalesce(:until, until), sealed = :sealed, facts = :facts
    WHERE lease = :lease AND runtime_id = :runtime_id AND state = 'opened'
"""
_FAILED = """
    UPDATE leases SET tries = tries + 1, error = :error, claimed_by = NULL, claimed_at = :at WHERE lease = :lease
"""
_CLOSE = """
    UPDATE leases SET tries = tries + 1, error = :error, claimed_by = NULL, claimed_at = :at,
      state = 'closed', closed_at = :at, sealed = NULL, proof = :proof
    WHERE lease = :lease
"""
_ABANDON = "UPDATE leases SET abandoned = 1 WHERE runtime_id = ? AND state <> 'closed'"
_LET_GO = "UPDATE leases SET claimed_by = NULL, claimed_at = NULL WHERE claimed_by = ? AND state <> 'closed'"
_CLAIMABLE = """
    SELECT lease, task, credential, provider, handle, sealed, opened_at, issued_at IS NOT NULL, until, tries, claimed_by, claimed_at
    FROM leases
    WHERE state <> 'closed' AND (claimed_by IS NULL OR claimed_at < :lapsed)
    AND (:lease IS NULL OR lease = :lease) AND (:task IS NULL OR task = :task) AND lease > :after
    AND (NOT :orphaned OR abandoned OR task IN (SELECT task FROM records WHERE state = 'closed'))
    ORDER BY lease
"""
_CLAIM = "UPDATE leases SET claimed_by = ?, claimed_at = ? WHERE lease = ?"
_SHOWN = (
    *("lease", "task", "runtime_id", "credential", "provider", "handle", "facts", "state", "opened_at", "issued_at"),
    *("closed_at", "until", "tries", "error", "proof", "claimed_by"),
)
_WHOSE = ("tenant", "sender", "tool", "profile")
_LIST = f"""
    SELECT {", ".join(f"leases.{name}" for name in _SHOWN)}, {", ".join(f"records.{name}" for name in _WHOSE)}
    FROM leases JOIN records ON records.task = leases.task
    WHERE (:task IS NULL OR leases.task = :task) AND leases.lease > :after
    AND (:state IS NULL OR (leases.state = 'closed') = (:state = 'closed'))
    ORDER BY leases.lease LIMIT :limit
"""  # noqa: S608 - the names are columns of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """One lease for a sweeper to revoke. `sealed` is as it was stored: only the ledger can open it."""

    lease: str
    task: str
    credential: str
    provider: str
    handle: Mapping[str, Any]
    sealed: str | None
    opened_at: float
    issued: bool
    until: float | None
    tries: int


def open_lease(conn: Transaction, given: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Write that a credential is about to be issued. False when its task has no open record here, or too many leases."""
    row = {**given, "handle": json.dumps(given["handle"]), "runtime_id": runtime_id, "at": at_s, "most": LEASES_OF_A_TASK}
    return conn.run(_OPEN, row).rowcount == 1


def issue_lease(conn: Transaction, given: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Write what else revoking it takes, once. False when it is not a lease of this runtime that was just opened."""
    row = {**given, "facts": json.dumps(given["facts"]), "runtime_id": runtime_id, "at": at_s}
    return conn.run(_ISSUE, row).rowcount == 1


def close_lease(conn: Transaction, given: Mapping[str, Any], *, runtime_id: str, at_s: float) -> bool:
    """Write how a revocation went. Closing what is closed changes nothing. False when it is not the asker's to close."""
    query = "SELECT state, runtime_id, claimed_by FROM leases WHERE lease = ?"
    found = conn.run(query, (given["lease"],)).fetchone()
    if found is None or runtime_id not in found[1:]:
        return False
    if found[0] == "closed":
        return True
    told = {"lease": given["lease"], "error": given["error"], "at": at_s}
    if given["revoked"] is None:
        conn.run(_FAILED, told)
    else:
        conn.run(_CLOSE, {**told, "proof": json.dumps({**given["revoked"], "at": at_s})})
    return True


def claim_leases(
    conn: Transaction, *, lease: str | None, task: str | None, after: str | None, orphaned: bool, limit: int,
    runtime_id: str, at_s: float,
) -> list[Claimed]:  # fmt: skip
    """Take leases to revoke, oldest first; all that a living sweeper does not hold, or the one, or those of the task.

    `orphaned` are those whose record is closed or whose worker is gone, so that nobody else will do it, and whose last try is not too
    recent.
    """
    wanted = {"lease": lease, "task": task, "after": after or "", "orphaned": orphaned, "lapsed": at_s - CLAIM_S}
    most = max(1, min(limit, CLAIMED_AT_ONCE))
    taken: list[Claimed] = []
    for name, of_task, credential, provider, handle, sealed, opened_at, issued, until, tries, by, tried_s in conn.run(
        _CLAIMABLE, wanted
    ).fetchall():
        # One that was claimed and never told of is not resting.
        resting = orphaned and by is None and tried_s is not None and tried_s > at_s - min(LONGEST_PAUSE_S, 2.0 ** min(tries, 16))
        if len(taken) < most and not resting:
            taken.append(
                Claimed(
                    lease=name, task=of_task, credential=credential, provider=provider, handle=json.loads(handle),
                    sealed=sealed, opened_at=opened_at, issued=bool(issued), until=until, tries=tries,
                )
            )  # fmt: skip
    for one in taken:
        conn.run(_CLAIM, (runtime_id, at_s, one.lease))
    return taken


def abandon_leases(conn: Transaction, runtime_id: str) -> None:
    """Leave the open leases of a runtime, and those it was sweeping, to whoever sweeps: its worker is gone."""
    conn.run(_ABANDON, (runtime_id,))
    conn.run(_LET_GO, (runtime_id,))


def anything_to_claim(conn: Transaction) -> bool:
    """Whether any lease is open at all: asked before every claim, because a write transaction is dear."""
    return conn.run("SELECT 1 FROM leases WHERE state <> 'closed' LIMIT 1").fetchone() is not None


def leases(conn: Transaction, *, task: str | None, state: str | None, after: str | None, limit: int) -> dict[str, Any]:
    """`{"leases": [...], "more": bool}`, oldest first, with whose call each was; without what is sealed. Ask again with `after`."""
    most = max(1, min(limit, PAGE_ROWS))
    found = conn.run(_LIST, {"task": task, "state": state, "after": after or "", "limit": most + 1})
    page, more = fitting((_as_json(row) for row in found), most, PAGE_BYTES)
    return {"leases": page, "more": more}


def _as_json(row: tuple[Any, ...]) -> dict[str, Any]:
    shown = dict(zip((*_SHOWN, *_WHOSE), row, strict=True))
    return {**shown, **{name: json.loads(shown[name]) for name in ("handle", "facts", "proof") if shown[name] is not None}}


def prune_leases(conn: Transaction, before_s: float) -> int:
    """Forget closed leases that old; how many."""
    return conn.run("DELETE FROM leases WHERE state = 'closed' AND closed_at <= ?", (before_s,)).rowcount
