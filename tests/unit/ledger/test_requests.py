"""A worker that was taken over may send the ledger anything; only what has its shape gets in."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import call
from fumehood.evidence.client import closing, opening
from fumehood.faults import Refused
from fumehood.ledger.requests import SHAPES, checked
from fumehood.model import Outcome, Result
from fumehood.reasons import Reason

TASK = "0" * 26
LEASE: dict[str, Any] = {"lease": TASK, "task": TASK, "credential": "c", "provider": "p", "handle": {}, "until": 1.0}
CLOSED: dict[str, Any] = {"lease": TASK, "revoked": {"gone": True, "asked": "a", "answer": "b"}, "error": None}
ENTRY: dict[str, Any] = {"at": 1.0, "kind": "dns", "facts": {}}
LOG: dict[str, Any] = {"task": TASK, "entries": [ENTRY], "counters": {"dns": 1}}
DEFINITION: dict[str, Any] = {"tool": "t", "text": "{}", "trusted": True}
SEEN: dict[str, Any] = {"server": "s", "profile": "p", "capabilities": "c", "declared": "[]", "definitions": [DEFINITION]}
EVENT: dict[str, Any] = {"task": TASK, "state": "made", "at": 1.0, "facts": {}}


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("drop", {}),
        (7, {}),
        (["open"], {}),
        ("ping", []),
        ("ping", {"extra": 1}),
        ("event", {**EVENT, "task": "../../etc"}),
        ("event", {**EVENT, "task": TASK + "0"}),
        ("event", {**EVENT, "task": "U" * 26}),
        ("event", {**EVENT, "state": "open"}),
        ("event", {**EVENT, "state": "closed"}),
        ("event", {**EVENT, "state": "flying"}),
        ("event", {**EVENT, "at": float("inf")}),
        ("event", {**EVENT, "at": True}),
        ("event", {**EVENT, "facts": []}),
        ("event", {**EVENT, "facts": {"x": "y" * 40_000}}),
        ("event", {name: value for name, value in EVENT.items() if name != "at"}),
        ("close", {**closing(Outcome(task=TASK, result=Result.OK)), "result": "open"}),
        ("close", {**closing(Outcome(task=TASK, result=Result.OK)), "reason": "because"}),
        ("close", {**closing(Outcome(task=TASK, result=Result.OK)), "exit_code": 2**63}),
        ("close", {**closing(Outcome(task=TASK, result=Result.OK)), "memory_peak_bytes": "1"}),
        ("close", {**closing(Outcome(task=TASK, result=Result.OK)), "runtime_id": "another's"}),
        ("open", {**opening(call()), "runtime_id": "another's"}),
        ("open", {**opening(call()), "tool": "\ud800"}),
        ("open", {**opening(call()), "profile": None}),
        ("task", {"task": "01h"}),
        ("task", {"task": "%" * 10}),
        ("tasks", {}),
        ("tasks", {"limit": 1, "tool": {"$ne": 1}}),
        ("lease_opened", {**LEASE, "lease": "x"}),
        ("lease_opened", {**LEASE, "runtime_id": "another's"}),
        ("lease_opened", {**LEASE, "handle": {"x": "y" * 5000}}),
        ("lease_opened", {name: value for name, value in LEASE.items() if name != "until"}),
        ("lease_issued", {"lease": TASK, "until": 1.0, "sealed": {"token": "in clear"}, "facts": {}}),
        ("lease_issued", {"lease": TASK, "until": 1.0, "sealed": "x" * 9000, "facts": {}}),
        ("lease_closed", {**CLOSED, "revoked": {"gone": 1, "asked": "a", "answer": "b"}}),
        ("lease_closed", {**CLOSED, "revoked": {"gone": True, "asked": "a"}}),
        ("lease_closed", {**CLOSED, "revoked": {"gone": True, "asked": "a", "answer": "b", "at": 0.0}}),
        ("lease_closed", {**CLOSED, "error": "x" * 2000}),
        ("leases", {"state": "issued"}),
        ("leases_claim", {"lease": None, "task": None, "after": None, "orphaned": None, "limit": 1}),
        ("leases_claim", {}),
        ("egress", {**LOG, "entries": [{**ENTRY, "facts": {"x": "y" * 3000}}]}),
        ("egress", {**LOG, "entries": [{**ENTRY, "seq": 1}]}),
        ("egress", {**LOG, "entries": [ENTRY] * 2000}),
        ("egress", {**LOG, "entries": [[]]}),
        ("egress", {**LOG, "counters": {"dns": "1"}}),
        ("egress", {**LOG, "counters": {"dns": 1.5}}),
        ("egress", {**LOG, "counters": {str(number): 0 for number in range(2000)}}),
        ("egress_of", {"task": "../x"}),
        ("spend", {"key": "k", "nonce": "n"}),
        ("spend", {"key": "k", "nonce": "n" * 257, "until": 1.0}),
        ("spend", {"key": "k", "nonce": "n", "until": float("nan")}),
        ("open", {**opening(call()), "pin_of": {"server": "s"}}),
        ("open", {**opening(call()), "pin_of": {"server": "s", "capabilities": "x" * 300}}),
        ("pins_seen", {**SEEN, "definitions": [{**DEFINITION, "pin": "sha256:mine"}]}),
        ("pins_seen", {**SEEN, "definitions": [{**DEFINITION, "text": "x" * 70_000}]}),
        ("pins_seen", {**SEEN, "definitions": [{**DEFINITION, "text": "é" * 40_000}]}),
        ("pins_seen", {**SEEN, "definitions": [{**DEFINITION, "text": "\ud800"}]}),
        ("pins_seen", {**SEEN, "definitions": [{**DEFINITION, "trusted": 1}]}),
        ("pins_seen", {**SEEN, "definitions": [DEFINITION] * 3000}),
        ("pins_seen", {**SEEN, "definitions": DEFINITION}),
        ("pins_seen", {**SEEN, "review": False}),
        ("pins_seen", {**SEEN, "declared": "x" * 2000}),
        ("pin_accept", {"server": "s", "profile": "p", "tool": "t"}),
        ("pin_accept", {"server": "s", "profile": "p", "tool": "t", "pin": None}),
        ("pins", {"after": {"server": "s"}}),
        ("pins", {"after": "s"}),
    ],
)
def test_what_has_not_its_shape_is_refused(verb: object, args: object) -> None:
    with pytest.raises(Refused) as refused:
        checked(verb, args)
    assert refused.value.deny.reason is Reason.BAD_REQUEST


def test_a_reader_may_leave_out_what_it_does_not_want() -> None:
    assert checked("open_tasks", {}) == ("open_tasks", {"runtime_id": None, "after_task": None})
    assert checked("tasks", {"limit": 5})[1]["result"] is None


@given(
    st.sampled_from(sorted(SHAPES)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["task", "facts", "state", "limit"]), inner, max_size=4)
        ),
        max_leaves=8,
    ),
)
def test_anything_is_either_checked_or_refused(verb: str, args: object) -> None:
    with suppress(Refused):
        assert set(checked(verb, args)[1]) == set(SHAPES[verb])
