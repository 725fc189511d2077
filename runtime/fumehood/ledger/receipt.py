"""What a receipt says of one call: an in-toto Statement v1, built from the rows that the call left. Pure, standard library only.

The subject is the call, by the digest of its request (by that of its record's opening where the front door took none). The predicate
repeats what the record, its timeline, its leases and its gate's counters say, and `covers` has the digests of those very rows, so that
whoever holds the ledger can tell whether they are still what was signed. `chain` is where the statement's own digest stands: the
entry of that place, and the head that it follows.

Nothing here judges. What a worker sent is told as what it sent: it was checked for its shape alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fumehood.lifecycle import State
from fumehood.store import digests

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "tag:fumehood,2026:receipt/v1"
_STEPS = frozenset({State.DECIDED, State.GRANTED, State.PLANNED, State.MADE, State.SETTLED})
_USAGE = (
    *("cpu_user_s", "cpu_system_s", "cpu_throttled_s", "memory_peak_bytes", "pids_peak", "oom_kills", "pids_limit_hits"),
    *("io_read_bytes", "io_write_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The rows of one call. `record` and `leases` by column, JSON as its text; `events` as (seq, at, state, facts)."""

    record: Mapping[str, Any]
    events: Sequence[tuple[Any, ...]]
    leases: Sequence[Mapping[str, Any]]
    egress: tuple[Any, ...] | None
    refused: int
    earlier: Sequence[str]
    covers: Mapping[str, str | None]
    place: Mapping[str, Any]


def statement(told: Told) -> str:
    """The text that is digested, stored and signed."""
    record = told.record
    # The rest of the timeline says nothing that is not in the record.
    facts = {state: json.loads(text) for _, _, state, text in told.events if state in _STEPS}
    plan = _without_time(facts.get("planned"))
    said = {
        "_type": STATEMENT,
        "subject": [{"name": f"task:{record['task']}", "digest": {"sha256": _subject(record)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "task": record["task"],
            "result": record["result"],
            "reason": record["reason"],
            "detail": record["detail"],
            "exit_code": record["exit_code"],
            "signal": record["signal"],
            "request": {
                "digest": record["request_digest"],
                "front_door": record["front_door"],
                "tool": record["tool"],
                "command": record["command"],
                "pin": record["pin"],
                "idempotency_key": record["idempotency_key"],
                "repeats": record["repeats"],
            },
            "sender": {
                "uid": record["sender_uid"], "name": record["sender"], "tenant": record["tenant"],
                "proof": _json(record["proof"]),
            },
            "profile": {"name": record["profile"], "digest": record["profile_digest"]},
            "image": {"name": record["image"], "digest": record["image_digest"]},
            "init": record["init_digest"],
            "decision": {
                "decision": facts.get("decided", {}).get("decision"), "rule": record["rule"],
                "approvals": [agreed] if (agreed := facts.get("granted", {}).get("approval")) else [],
            },
            "plan": plan,
            "accept_risks": (plan or {}).get("accept_risk", []),
            "box": {
                "engine": record["engine"], "container": record["container"], "stood_by": facts.get("made", {}).get("standby"),
            },
            "enforced": _json(record["readback"]),
            "egress": _egress(told),
            "files": {
                "listed": _json(record["files"]) or [],
                "total": record["files_total"],
                "pending": None if record["pending"] is None else bool(record["pending"]),
                "settled": _without_time(facts.get("settled")),
            },
            "leases": [_lease(lease) for lease in told.leases],
            "usage": {name: record[name] for name in _USAGE},
            "output": {
                **{name: record[name] for name in ("stdout_bytes", "stderr_bytes")},
                **{name: bool(record[name]) for name in ("stdout_truncated", "stderr_truncated")},
            },
            "teardown": _json(record["teardown"]),
            "session": None if record["session"] is None else {"task": record["session"], "earlier": list(told.earlier)},
            "times": {
                "opened": record["opened_at"], "closed": record["closed_at"], "spent_ms": _json(record["timings"]),
            },
            "runtime": {"id": record["runtime_id"], "boot": record["boot_id"]},
            "covers": {"version": digests.VERSION, **told.covers},
            "chain": dict(told.place),
        },
    }  # fmt: skip
    return json.dumps(said, separators=(",", ":"))


def _subject(record: Mapping[str, Any]) -> str:
    asked: str | None = record["request_digest"]
    if asked is not None and asked.startswith("sha256:"):
        return asked.removeprefix("sha256:")
    return digests.digest([record[name] for name in digests.OPENING])


def _egress(told: Told) -> dict[str, Any] | None:
    if told.egress is None:
        return None
    entries, _, dropped, counters, _ = told.egress
    return {"counters": json.loads(counters), "entries": entries, "refused": told.refused, "not_logged": dropped}


def _lease(lease: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "lease": lease["lease"],
        "credential": lease["credential"],
        "provider": lease["provider"],
        "state": lease["state"],
        "opened": lease["opened_at"],
        "issued": lease["issued_at"],
        "closed": lease["closed_at"],
        "until": lease["until"],
        "proof": _json(lease["proof"]),
        "error": lease["error"],
    }


def _without_time(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if facts is None else {name: value for name, value in facts.items() if name != "ms"}


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
