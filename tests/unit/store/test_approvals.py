"""An approval is for one binding, of one sender, counted by person, used once, and bounded in number and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import call, new_task
from fumehood.evidence.client import opening
from fumehood.faults import Refused
from fumehood.model import Proof, Sender
from fumehood.reasons import Reason
from fumehood.store import approvals, records
from fumehood.store.approvals import Voter
from fumehood.store.database import Transaction, opened

NEED = {"approvers": None, "count": 1, "requester": False}
ALICE = Voter(approver="alice", how="signed", kid="a" * 43)
BOB = Voter(approver="bob", how="signed", kid="b" * 43)
OPERATOR = Voter(approver="root", how="terminal", uid=0, account="root", own_counts=True)
QUESTION = {"tool": "t", "arguments": "{}", "arguments_sha256": "d", "may": []}


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Transaction]:
    with opened(tmp_path / "ledger") as database, database.write(durable=False) as found:
        yield found


def begin(conn: Transaction, runtime: str = "r1", **changed: Any) -> str:
    one = replace(call(), **changed)
    assert records.open_record(conn, opening(one), runtime_id=runtime, boot_id="b1", at_s=1.0)
    return one.task


def ask(conn: Transaction, task: str, binding: str = "sha256:x", at_s: float = 1.0, runtime: str = "r1", **need: Any) -> dict[str, Any]:
    given = {"task": task, "binding": binding, "need": {**NEED, **need}, "question": QUESTION, "until": at_s + 100}
    return approvals.ask(conn, given, runtime_id=runtime, approval=new_task(), at_s=at_s)[0]


def decide(conn: Transaction, row: dict[str, Any], voter: Voter = ALICE, *, yes: bool = True, at_s: float = 2.0, reason: str = "") -> str:
    state: str = approvals.decide(
        conn, row["id"], row["binding"], voter, approves=yes, reason=reason, signed=None, at_s=at_s
    )["state"]
    return state


def spend(conn: Transaction, row: dict[str, Any], task: str, at_s: float = 3.0, runtime: str = "r1", binding: str | None = None) -> bool:
    found = approvals.spend(conn, row["id"], binding or row["binding"], task, runtime_id=runtime, at_s=at_s)
    return found is not None


def refused(reason: Reason) -> Any:
    return pytest.raises(Refused, match=f"^{reason.value}:")


def test_an_equal_request_attaches_also_from_another_runtime_and_one_of_them_spends_it(conn: Transaction) -> None:
    first, second = begin(conn), begin(conn, runtime="r2")
    row = ask(conn, first)
    assert ask(conn, second, runtime="r2")["id"] == row["id"]
    assert not spend(conn, row, first), "nobody has said yes"
    assert decide(conn, row) == "approved"
    assert ask(conn, second, runtime="r2")["state"] == "approved"
    assert spend(conn, row, second, runtime="r2")
    assert not spend(conn, row, first)
    assert ask(conn, first)["id"] != row["id"], "an approval that was used is asked for anew"


def test_another_binding_or_another_senders_equal_request_is_another_approval(conn: Transaction) -> None:
    row = ask(conn, begin(conn))
    assert ask(conn, begin(conn), binding="sha256:y")["id"] != row["id"]
    stranger = begin(conn, sender=Sender(uid=0, name="http:mallory"))
    assert ask(conn, stranger)["id"] != row["id"]
    decide(conn, row)
    with refused(Reason.APPROVAL_UNKNOWN):
        spend(conn, row, stranger)
    assert not spend(conn, row, begin(conn), binding="sha256:y")


def test_a_call_that_is_closed_or_of_another_runtime_spends_nothing(conn: Transaction) -> None:
    task = begin(conn)
    row = ask(conn, task)
    decide(conn, row)
    with refused(Reason.BAD_REQUEST):
        spend(conn, row, task, runtime="r2")
    records.close_lost(conn, task, {}, at_s=2.0)
    with refused(Reason.BAD_REQUEST):
        spend(conn, row, task)


def test_a_denial_ends_it_and_holds_for_equal_requests_until_it_is_out_of_date(conn: Transaction) -> None:
    row = ask(conn, begin(conn), count=2)
    assert decide(conn, row) == "open"
    assert decide(conn, row, BOB, yes=False, reason="no") == "denied"
    again = ask(conn, begin(conn), at_s=50)
    assert (again["id"], again["state"], again["votes"][-1]["reason"]) == (row["id"], "denied", "no")
    with refused(Reason.APPROVAL_UNKNOWN):
        decide(conn, row, OPERATOR)
    assert ask(conn, begin(conn), at_s=102)["id"] != row["id"]


@pytest.mark.parametrize("twice", [ALICE, replace(ALICE, approver="alice2"), replace(BOB, approver="alice")])
def test_two_of_three_is_two_persons_by_key_and_by_name(conn: Transaction, twice: Voter) -> None:
    row = ask(conn, begin(conn), count=2)
    assert decide(conn, row) == "open"
    with refused(Reason.APPROVER_UNFIT):
        decide(conn, row, twice)
    assert decide(conn, row, BOB) == "approved"


def test_only_who_is_named_counts(conn: Transaction) -> None:
    row = ask(conn, begin(conn), approvers=["bob"])
    with refused(Reason.APPROVER_UNFIT):
        decide(conn, row)
    assert decide(conn, row, BOB) == "approved"


def test_whoever_asked_does_not_approve_by_key_by_command_or_where_the_operator_forbids_it(conn: Transaction) -> None:
    row = ask(conn, begin(conn, proof=Proof(method="jws", key="a" * 43, nonce="n", until_s=9.0)))
    with refused(Reason.APPROVER_UNFIT):
        decide(conn, row, ALICE)
    for own in (replace(OPERATOR, how="command", own_counts=False), replace(OPERATOR, own_counts=False)):
        with refused(Reason.APPROVER_UNFIT):
            decide(conn, row, own)
    other = ask(conn, begin(conn, proof=Proof(method="jws", key="a" * 43, nonce="n", until_s=9.0)), binding="sha256:y")
    assert decide(conn, other, ALICE, yes=False) == "denied", "a no is anybody's to say"
    assert decide(conn, row, OPERATOR) == "approved", "a person at a terminal is not the client of the same account"


def test_the_operator_is_not_the_requester_of_what_a_client_with_a_token_asked(conn: Transaction) -> None:
    row = ask(conn, begin(conn, sender=Sender(uid=0, name="http:agent")))
    assert decide(conn, row, replace(OPERATOR, how="command", own_counts=False)) == "approved"


def test_what_was_looked_at_is_what_is_decided(conn: Transaction) -> None:
    row = ask(conn, begin(conn))
    with refused(Reason.APPROVAL_CHANGED):
        decide(conn, {**row, "binding": "sha256:other"})


def test_after_its_expiry_it_is_neither_approved_nor_spent(conn: Transaction) -> None:
    task = begin(conn)
    late, early = ask(conn, task), ask(conn, task, binding="sha256:y")
    decide(conn, early)
    with refused(Reason.APPROVAL_EXPIRED):
        decide(conn, late, at_s=101)
    assert not spend(conn, early, task, at_s=101)
    assert sorted(name for name, _ in approvals.expire(conn, 101)) == sorted((late["id"], early["id"]))
    assert {approvals.find(conn, row["id"])["state"] for row in (late, early)} == {"expired"}
    assert approvals.expire(conn, 200) == []


def test_of_what_is_decided_the_arguments_are_forgotten_and_their_digest_stays(conn: Transaction) -> None:
    row = ask(conn, begin(conn))
    assert row["question"]["arguments"] == "{}"
    decide(conn, row)
    question = approvals.find(conn, row["id"])["question"]
    assert "arguments" not in question
    assert question["arguments_sha256"] == "d"


def test_the_requesters_own_word_counts_only_where_the_rule_says_so_and_is_told_as_that(conn: Transaction) -> None:
    task = begin(conn)
    row = ask(conn, task)
    with refused(Reason.APPROVER_UNFIT):
        approvals.confirm(conn, row["id"], task, runtime_id="r1", at_s=2.0)
    row = ask(conn, task, binding="sha256:y", requester=True)
    with refused(Reason.APPROVAL_UNKNOWN):
        approvals.confirm(conn, row["id"], begin(conn, sender=Sender(uid=1, name="other")), runtime_id="r1", at_s=2.0)
    done = approvals.confirm(conn, row["id"], task, runtime_id="r1", at_s=2.0)
    assert (done["state"], done["votes"][0]["how"], done["votes"][0]["identity"]) == ("approved", "requester-confirmed", "requester")


def test_only_its_sender_withdraws_it_and_only_while_it_is_open(conn: Transaction) -> None:
    task = begin(conn)
    row = ask(conn, task)
    with refused(Reason.APPROVAL_UNKNOWN):
        approvals.withdraw(conn, row["id"], begin(conn, sender=Sender(uid=1, name="other")), runtime_id="r1", at_s=2.0)
    assert approvals.withdraw(conn, row["id"], task, runtime_id="r1", at_s=2.0)["state"] == "withdrawn"
    with refused(Reason.APPROVAL_UNKNOWN):
        decide(conn, row)


def test_one_sender_cannot_flood_the_queue_for_the_others(conn: Transaction) -> None:
    task = begin(conn)
    for number in range(approvals.OF_A_SENDER):
        ask(conn, task, binding=f"sha256:{number}")
    with refused(Reason.APPROVALS_FULL):
        ask(conn, task, binding="sha256:more")
    assert ask(conn, task, binding="sha256:3")["state"] == "open", "an equal request takes no place"
    ask(conn, begin(conn, sender=Sender(uid=1, name="other")), binding="sha256:theirs")


def test_all_senders_together_are_bounded(conn: Transaction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "IN_ALL", 3)
    for uid in range(3):
        ask(conn, begin(conn, sender=Sender(uid=uid, name="s")))
    with refused(Reason.APPROVALS_FULL):
        ask(conn, begin(conn, sender=Sender(uid=9, name="s")))


def test_a_list_has_what_waits_and_the_whole_is_found_by_its_beginning(conn: Transaction) -> None:
    row, other = ask(conn, begin(conn)), ask(conn, begin(conn), binding="sha256:y")
    decide(conn, other, yes=False)
    page = approvals.approvals(conn, after=None, everything=False)
    assert [each["id"] for each in page["approvals"]] == [row["id"]]
    assert len(approvals.approvals(conn, after=None, everything=True)["approvals"]) == 2
    assert approvals.named(conn, row["id"])["question"] == QUESTION
    with refused(Reason.APPROVAL_UNKNOWN):
        approvals.named(conn, "zzzzzz")
