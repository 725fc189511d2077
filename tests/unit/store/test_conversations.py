"""What conversations hold: what ended well, what taints them and the workspaces, and that a call which never ran leaves nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from fakes import call
from fumehood.evidence.client import closing, opening
from fumehood.ledger import booking
from fumehood.ledger.requests import checked
from fumehood.model import Outcome, Result, Sender, ToolCall
from fumehood.policies.known import Account, Booked, Seen
from fumehood.store import conversations
from fumehood.store.database import Transaction

KEPT_S = 100.0
ALICE, BOB = Sender(uid=0, name="http:alice"), Sender(uid=0, name="http:bob")


@pytest.fixture
def conn() -> Transaction:
    from fakes import _pins

    return _pins()


def begun(
    conn: Transaction, tool: str = "git/diff", *taints: str, sender: Sender = ALICE, at_s: float = 10.0, workspace: Seen | None = None
) -> tuple[ToolCall, Booked]:
    one = replace(call(), sender=sender)
    account = Account(kept_s=KEPT_S, tool=tool, taints=taints, workspace=workspace)
    said = booking.opened(conn, opening(one, account), at_s=at_s)
    assert said is not None
    return one, Booked.of(said)


def ended(conn: Transaction, one: ToolCall, result: Result = Result.OK, at_s: float = 10.0) -> None:
    booking.closed(conn, one.task, closing(Outcome(task=one.task, result=result)), at_s=at_s)


def done(conn: Transaction, tool: str = "git/diff", *taints: str, result: Result = Result.OK, **fields: Any) -> Booked:
    one, booked = begun(conn, tool, *taints, **fields)
    ended(conn, one, result)
    return booked


def taint(conn: Transaction, **fields: Any) -> set[str]:
    one, booked = begun(conn, "other/tool", **fields)
    ended(conn, one, Result.REFUSED)
    return set(booked.conversation.taint)


def test_what_ended_well_is_done_and_since_ends_where_the_tool_itself_last_did(conn: Transaction) -> None:
    done(conn, "git/diff", result=Result.FAILED)
    assert done(conn, "git/commit").conversation.done == frozenset()
    done(conn, "git/diff")
    assert done(conn, "git/commit").conversation.since == {"git/diff"}
    again = done(conn, "git/commit").conversation
    assert (again.done, again.since) == ({"git/diff", "git/commit"}, frozenset())
    done(conn, "git/diff")
    assert done(conn, "git/commit").conversation.since == {"git/diff"}
    assert done(conn, "git/commit", sender=BOB).conversation.done == frozenset()
    assert done(conn, "git/commit", at_s=10.0 + KEPT_S).conversation.done == frozenset()


def test_a_call_taints_its_senders_conversation_from_its_beginning(conn: Transaction) -> None:
    begun(conn, "web/fetch", "untrusted")
    assert taint(conn) == {"untrusted"}
    assert taint(conn, sender=BOB) == set()
    assert taint(conn, sender=replace(ALICE, tenant="other")) == set()


@pytest.mark.parametrize("result", [Result.REFUSED, Result.REPEATED])
def test_a_call_that_never_ran_taints_nothing(conn: Transaction, result: Result) -> None:
    done(conn, "web/fetch", "untrusted", result=result)
    assert taint(conn) == set()


@pytest.mark.parametrize("result", [Result.OK, Result.FAILED, Result.KILLED, Result.LOST])
def test_a_call_that_may_have_run_taints(conn: Transaction, result: Result) -> None:
    done(conn, "web/fetch", "untrusted", result=result)
    assert taint(conn) == {"untrusted"}


def test_a_refused_call_takes_no_taint_away_that_another_left(conn: Transaction) -> None:
    first, _ = begun(conn, "web/fetch", "untrusted")
    second, _ = begun(conn, "web/fetch", "untrusted")
    ended(conn, first)
    ended(conn, second, Result.REFUSED)
    assert taint(conn) == {"untrusted"}


def test_rows_do_not_grow_with_the_calls(conn: Transaction) -> None:
    for _ in range(50):
        done(conn, "web/fetch", "untrusted", "private")
    for table, most in (("taints", 2), ("accounts", 0), ("tools_done", 1)):
        assert conn.run(f"SELECT count(*) FROM {table}").fetchone()[0] <= most  # noqa: S608 - one of three names


def test_taint_ends_with_the_time_that_a_conversation_is_kept_counted_from_the_last_call(conn: Transaction) -> None:
    done(conn, "web/fetch", "untrusted")
    done(conn, "web/fetch", "untrusted")
    assert taint(conn, at_s=10.0 + KEPT_S - 1) == {"untrusted"}
    assert taint(conn, at_s=10.0 + KEPT_S) == set()


def at(path: str, inode: int = 1, *, writes: bool = False) -> Seen:
    return Seen(path=path, device=7, inode=inode, writes=writes)


@pytest.mark.parametrize(
    ("written", "read", "carried"),
    [
        (at("/w/a", 1), at("/w/a", 1), True),
        (at("/w/a", 1), at("/elsewhere", 1), True),
        (at("/w/a", 1), at("/w/a", 2), True),
        (at("/w/a", 1), at("/w", 2), True),
        (at("/w/a", 1), at("/", 2), True),
        (at("/w/a", 1), at("/w/a/b/c", 2), True),
        (at("/w/a", 1), at("/w/ab", 2), False),
        (at("/w/a", 1), at("/w/b", 2), False),
        (at("", 1), at("/w/b", 2), False),
        (at("", 1), at("", 1), True),
    ],
)
def test_a_workspace_carries_taint_to_who_sees_it_or_what_lies_around_it(conn: Transaction, written: Seen, read: Seen, carried: bool) -> None:
    done(conn, "web/save", "untrusted", workspace=replace(written, writes=True))
    assert taint(conn, sender=BOB, workspace=read) == ({"untrusted"} if carried else set())


def test_a_workspace_that_is_only_read_is_not_tainted_but_taints(conn: Transaction) -> None:
    done(conn, "web/fetch", "untrusted", workspace=at("/w"))
    assert taint(conn, sender=BOB, workspace=at("/w")) == set()
    done(conn, "web/fetch", "untrusted", workspace=at("/w", writes=True))
    done(conn, "files/read", sender=BOB, workspace=at("/w"))
    assert taint(conn, sender=BOB) == {"untrusted"}


def test_an_operator_can_end_a_conversation_and_no_call_under_way_is_forgotten(conn: Transaction) -> None:
    done(conn, "web/fetch", "untrusted")
    done(conn, "web/fetch", "private", sender=BOB)
    assert conversations.forget(conn, "http:alice") == 2
    assert (taint(conn), taint(conn, sender=BOB)) == (set(), {"private"})
    begun(conn, "web/fetch", "untrusted")
    conversations.forget(conn, "http:alice")
    assert taint(conn) == {"untrusted"}


def test_an_account_is_written_as_it_is_read() -> None:
    account = Account(tool="a/b", taints=("untrusted",), workspace=at("/w"))
    assert checked("open", json.loads(json.dumps(opening(call(), account))))[1]["account"] == {**asdict(account), "taints": ["untrusted"], "charges": []}
