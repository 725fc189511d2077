"""The verbs about leases, egress and what operators did to all calls at once, from checked fields to rows and back.

`writes` run inside the transaction of a batch and never raise for what a caller got wrong; `reads` inside one of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from fumehood.faults import FumehoodError
from fumehood.sealing import SweepKey
from fumehood.store import egress, leases, operations
from fumehood.store.database import Transaction

WRITES = frozenset({"lease_opened", "lease_issued", "lease_closed", "egress", "operated"})
READS = frozenset({"leases", "egress_of", "operations"})
CLAIM = "leases_claim"
Fields = Mapping[str, Any]


def write(conn: Transaction, verb: str, fields: Fields, *, runtime_id: str, at_s: float) -> bool:
    """Do one of `WRITES`. False when it is not possible."""
    match verb:
        case "lease_opened":
            return leases.open_lease(conn, fields, runtime_id=runtime_id, at_s=at_s)
        case "lease_issued":
            return leases.issue_lease(conn, fields, runtime_id=runtime_id, at_s=at_s)
        case "lease_closed":
            return leases.close_lease(conn, fields, runtime_id=runtime_id, at_s=at_s)
        case "operated":
            return operations.note(conn, fields, at_s=at_s)
        case _:
            return egress.add_egress(conn, fields["task"], fields["entries"], fields["counters"], runtime_id=runtime_id)


def read(conn: Transaction, verb: str, fields: Fields) -> dict[str, Any]:
    """Answer one of `READS`."""
    if verb == "operations":
        return operations.operations(conn)
    if verb == "egress_of":
        return egress.egress_of(conn, fields["task"], after_seq=fields["after_seq"])
    limit = fields["limit"]
    page = {name: fields[name] for name in ("task", "state", "after")}
    return leases.leases(conn, **page, limit=500 if limit is None else limit)


def opened(claimed: list[leases.Claimed], key: Callable[[], SweepKey]) -> list[dict[str, Any]]:
    """Claimed leases as a sweeper gets them: what was sealed is open, or missing and said to be."""
    rows = []
    for one in claimed:
        sealed: dict[str, str] = {}
        problem = None
        if one.sealed is not None:
            try:
                sealed = key().unseal(one.lease, one.sealed)
            except FumehoodError as error:
                problem = error.detail
        rows.append({**asdict(one), "sealed": sealed, "problem": problem})
    return rows
