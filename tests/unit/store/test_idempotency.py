"""A key is of one sender, one request and one set of rules; it is given back only where nothing ran, and forgotten only when it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import call, new_task
from fumehood.evidence.client import closing, opening
from fumehood.faults import Refused
from fumehood.lifecycle import State
from fumehood.model import Outcome, Result, Sender, ToolCall
from fumehood.reasons import Reason
from fumehood.store import idempotency, records
from fumehood.store.database import Transaction, opened
from fumehood.store.records import Step

KEY = "f3c1a7be-0000-4000-8000-000000000001"
PATH = (State.VERIFIED, State.DECIDED, State.GRANTED, State.PLANNED, State.MADE, State.BOUND, State.RUNNING)


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Transaction]:
    with opened(tmp_path / "ledger") as database, database.write(durable=False) as found:
        yield found


def request(**changed: Any) -> ToolCall:
    return replace(call(), **{"idempotency_key": KEY, "request_digest": "sha256:a", "pin": "sha256:b", **changed})


def open_one(conn: Transaction, runtime: str = "r1", **changed: Any) -> str:
    one = request(**changed)
    assert records.open_record(conn, opening(one), runtime_id=runtime, boot_id="b1", at_s=1.0)
    return one.task


def claim(conn: Transaction, task: str, policy: str = "p/1", runtime: str = "r1", at_s: float = 1.0) -> str | None:
    return idempotency.claim_key(conn, task, policy, runtime_id=runtime, at_s=at_s, until_s=at_s + 100)


def close(conn: Transaction, task: str, *states: State, result: Result = Result.OK, until_s: float = 100.0) -> None:
    for state in states:
        assert records.add_event(conn, task, Step(state, 2.0, {}), runtime_id="r1")
    fields = closing(Outcome(task=task, result=result))
    del fields["task"]
    assert records.close_record(conn, task, fields, runtime_id="r1", at_s=9.0)
    idempotency.settle_key(conn, task, until_s=until_s)


def refusal(conn: Transaction, task: str, *args: Any, **named: Any) -> tuple[Reason, str]:
    with pytest.raises(Refused) as caught:
        claim(conn, task, *args, **named)
    return caught.value.reason, caught.value.detail


def test_the_first_has_the_key_and_every_other_is_told_who_has_it(conn: Transaction) -> None:
    first, second = open_one(conn), open_one(conn)
    assert claim(conn, first) is None
    assert claim(conn, first) is None, "asked again, it is still its own"
    assert claim(conn, second) == first
    close(conn, first, *PATH)
    assert claim(conn, second) == first


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"tool": "other"}, "another tool"),
        ({"request_digest": "sha256:x"}, "another request"),
        ({"request_digest": None}, "another request"),
        ({"pin": "sha256:x"}, "another definition of the tool"),
        ({"pin": None}, "another definition of the tool"),
    ],
)
def test_a_key_of_another_request_is_refused_and_stays_its_owners(conn: Transaction, changed: dict[str, Any], what: str) -> None:
    first = open_one(conn)
    claim(conn, first)
    other = open_one(conn, **changed)
    reason, detail = refusal(conn, other)
    assert (reason, detail) == (Reason.KEY_REUSED, f"task {first} has it, for {what}")
    assert claim(conn, open_one(conn)) == first


def test_a_key_under_another_profile_or_policy_is_refused(conn: Transaction) -> None:
    first = open_one(conn)
    claim(conn, first)
    profile = replace(call().profile, digest="sha256:other")
    assert "another version of the profile" in refusal(conn, open_one(conn, profile=profile))[1]
    assert "another policy" in refusal(conn, open_one(conn), "p/2")[1]


@pytest.mark.parametrize(
    "stranger",
    [Sender(uid=1, name="root"), Sender(uid=0, name="ada"), Sender(uid=0, name="root", tenant="other")],
)
def test_another_senders_key_is_another_key(conn: Transaction, stranger: Sender) -> None:
    first = open_one(conn)
    claim(conn, first)
    theirs = open_one(conn, sender=stranger, request_digest="sha256:theirs")
    assert claim(conn, theirs) is None


def test_only_an_open_call_of_ones_own_with_a_key_can_claim_it(conn: Transaction) -> None:
    """A worker that was taken over asks for other runtimes' calls, for none, and for what is over."""
    theirs = open_one(conn, runtime="r2")
    bare = open_one(conn, idempotency_key=None)
    over = open_one(conn)
    close(conn, over, *PATH)
    for task in (theirs, bare, over, new_task()):
        assert refusal(conn, task)[0] is Reason.BAD_REQUEST
    assert conn.run("SELECT count(*) FROM keys").fetchone() == (0,)


@pytest.mark.parametrize(
    ("states", "result", "given_back"),
    [
        ((), Result.REFUSED, True),
        (PATH[:5], Result.FAILED, True),
        (PATH[:5], Result.KILLED, True),
        (PATH[:6], Result.REFUSED, True),
        (PATH[:6], Result.FAILED, False),
        (PATH[:6], Result.KILLED, False),
        (PATH, Result.FAILED, False),
        (PATH, Result.KILLED, False),
        (PATH, Result.OK, False),
    ],
)
def test_a_key_is_given_back_where_the_tool_cannot_have_been_started(
    conn: Transaction, states: tuple[State, ...], result: Result, *, given_back: bool
) -> None:
    first = open_one(conn)
    claim(conn, first)
    close(conn, first, *states, result=result)
    assert claim(conn, open_one(conn)) == (None if given_back else first)


def test_a_lost_call_keeps_its_key_however_far_it_was_seen_to_come(conn: Transaction) -> None:
    """A power cut may take the last steps of a timeline: what the record does not show may have happened."""
    first = open_one(conn)
    claim(conn, first)
    assert records.close_lost(conn, first, {}, at_s=9.0)
    assert claim(conn, open_one(conn)) == first


def test_a_key_is_forgotten_after_its_time_and_never_before_its_call_has_ended(conn: Transaction) -> None:
    first = open_one(conn)
    claim(conn, first, at_s=1.0)
    assert claim(conn, open_one(conn), at_s=5000.0) == first, "it still runs"
    close(conn, first, *PATH, until_s=6000.0)
    assert claim(conn, open_one(conn), at_s=5999.0) == first
    again = open_one(conn, request_digest="sha256:other")
    assert claim(conn, again, at_s=6001.0) is None
    assert claim(conn, open_one(conn, request_digest="sha256:other"), at_s=6001.0) == again


def test_a_sender_with_too_many_keys_is_refused_and_no_key_is_forgotten_for_it(
    conn: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "KEYS_OF_A_SENDER", 3)
    tasks = [open_one(conn, idempotency_key=f"{KEY}-{number}") for number in range(4)]
    assert [claim(conn, task) for task in tasks[:3]] == [None] * 3
    assert refusal(conn, tasks[3])[0] is Reason.KEYS_FULL
    assert claim(conn, open_one(conn, idempotency_key=f"{KEY}-0")) == tasks[0]
    stranger = open_one(conn, sender=Sender(uid=1, name="ada"))
    assert claim(conn, stranger) is None, "the others have room of their own"
    close(conn, tasks[0], *PATH, until_s=50.0)
    assert claim(conn, tasks[3], at_s=200.0) is None, "what is over its time makes room"
