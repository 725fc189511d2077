"""What a receipt says, member by member, from the rows of a call."""

from __future__ import annotations

import json
from typing import Any

from fumehood.ledger import receipt
from fumehood.ledger.receipt import Told
from fumehood.store.digests import LEASE, RECORD

COVERS = {"record": "r", "events": "e", "leases": "l", "egress": "g"}


def told(**given: Any) -> Told:
    record = {
        **dict.fromkeys(RECORD),
        "task": "t", "tenant": "local", "sender": "root", "sender_uid": 0, "runtime_id": "r1", "boot_id": "b1",
        "front_door": "gateway", "tool": "git_log", "profile": "git", "profile_digest": "sha256:11", "image": "python",
        "image_digest": "sha256:22", "init_digest": "sha256:33", "request_digest": "sha256:" + "4" * 64, "pin": "sha256:55",
        "proof": json.dumps({"method": "jws", "key": "k", "nonce": "n", "until": 9.0}), "rule": "owner", "state": "closed",
        "result": "ok", "detail": "", "exit_code": 0, "opened_at": 1.0, "closed_at": 2.0, "stdout_truncated": 1,
        "stderr_truncated": 0, "readback": '{"seccomp": "equal"}', "teardown": '{"cgroup": "gone"}', "session": "s",
        "files": '[{"path": "a", "kind": "added"}]', "files_total": 1, "pending": 0, "timings": '{"total": 5.0}',
        **given.pop("record", {}),
    }  # fmt: skip
    lease = {
        **dict.fromkeys(LEASE),
        "lease": "x", "credential": "db", "provider": "postgres", "state": "closed", "opened_at": 1.1, "issued_at": 1.2,
        "closed_at": 1.9, "sealed": "SEALED", "handle": '{"role": "SECRETISH"}', "proof": '{"gone": true, "asked": "DROP ROLE"}',
    }  # fmt: skip
    events = [
        (1, 1.0, "open", "{}"),
        (2, 1.0, "decided", '{"ms": 1.0, "decision": "allow", "rule": "owner"}'),
        (3, 1.0, "planned", '{"ms": 2.0, "engine": "oci", "accept_risk": ["cve-1"]}'),
        (4, 1.2, "made", '{"ms": 2.5, "standby": "h"}'),
        (5, 1.5, "settled", '{"ms": 3.0, "committed": 1}'),
    ]
    fields = {
        "record": record, "events": events, "leases": [lease], "egress": (3, 90, 2, '{"connections": 4}', "d"), "refused": 1,
        "earlier": ["t0"], "covers": COVERS, "place": {"runtime": "r1", "seq": 7, "prev": "p"},
    }  # fmt: skip
    return Told(**{**fields, **given})


def said(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(receipt.statement(told(**given)))
    return found


def test_every_member_comes_from_its_row() -> None:
    assert said() == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "task:t", "digest": {"sha256": "4" * 64}}],
        "predicateType": receipt.PREDICATE,
        "predicate": {
            "task": "t",
            "result": "ok",
            "reason": None,
            "detail": "",
            "exit_code": 0,
            "signal": None,
            "request": {
                "digest": "sha256:" + "4" * 64, "front_door": "gateway", "tool": "git_log", "command": None, "pin": "sha256:55",
                "idempotency_key": None,
                "repeats": None,
            },
            "sender": {"uid": 0, "name": "root", "tenant": "local", "proof": {"method": "jws", "key": "k", "nonce": "n", "until": 9.0}},
            "profile": {"name": "git", "digest": "sha256:11"},
            "image": {"name": "python", "digest": "sha256:22"},
            "init": "sha256:33",
            "decision": {"decision": "allow", "rule": "owner", "approvals": []},
            "plan": {"engine": "oci", "accept_risk": ["cve-1"]},
            "accept_risks": ["cve-1"],
            "box": {"engine": None, "container": None, "stood_by": "h"},
            "enforced": {"seccomp": "equal"},
            "egress": {"counters": {"connections": 4}, "entries": 3, "refused": 1, "not_logged": 2},
            "files": {"listed": [{"path": "a", "kind": "added"}], "total": 1, "pending": False, "settled": {"committed": 1}},
            "leases": [
                {
                    "lease": "x", "credential": "db", "provider": "postgres", "state": "closed", "opened": 1.1, "issued": 1.2, "closed": 1.9,
                    "until": None, "proof": {"gone": True, "asked": "DROP ROLE"}, "error": None,
                }
            ],
            "usage": dict.fromkeys(receipt._USAGE),
            "output": {"stdout_bytes": None, "stderr_bytes": None, "stdout_truncated": True, "stderr_truncated": False},
            "teardown": {"cgroup": "gone"},
            "session": {"task": "s", "earlier": ["t0"]},
            "times": {"opened": 1.0, "closed": 2.0, "spent_ms": {"total": 5.0}},
            "runtime": {"id": "r1", "boot": "b1"},
            "covers": {"version": 1, **COVERS},
            "chain": {"runtime": "r1", "seq": 7, "prev": "p"},
        },
    }  # fmt: skip


def test_a_receipt_names_the_approval_and_whose_it_was() -> None:
    agreed = {"id": "a", "binding": "sha256:b", "votes": [{"approver": "alice", "identity": "key:k", "how": "signed"}]}
    events = [(1, 1.0, "decided", '{"decision": "ask"}'), (2, 1.0, "granted", json.dumps({"ms": 1.0, "approval": agreed}))]
    decision = said(events=events)["predicate"]["decision"]
    assert (decision["decision"], decision["approvals"]) == ("ask", [agreed])


def test_a_call_of_which_little_is_known_has_a_receipt_too() -> None:
    bare = dict.fromkeys(("request_digest", "proof", "session", "readback", "teardown", "files", "timings", "pending", "rule"))
    found = said(record=bare, events=[], leases=[], egress=None, refused=0)
    assert len(found["subject"][0]["digest"]["sha256"]) == 64
    predicate = found["predicate"]
    assert (predicate["egress"], predicate["session"], predicate["enforced"], predicate["plan"]) == (None, None, None, None)
    assert (predicate["accept_risks"], predicate["files"]["listed"]) == ([], [])


def test_what_a_lease_is_revoked_with_stays_in_the_ledger() -> None:
    assert "SEALED" not in receipt.statement(told())
    assert "SECRETISH" not in receipt.statement(told())


def test_the_same_rows_give_the_same_bytes() -> None:
    assert receipt.statement(told()) == receipt.statement(told())
