"""Budgets: reserved when a call begins, settled when it ends, and never a call too many."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood.store import budgets
from fumehood.store.database import Transaction


def conn() -> Transaction:
    from fakes import _pins

    return _pins()


def charge(amount: float = 1.0, **fields: Any) -> dict[str, Any]:
    return {"budget": "b", "key": "[]", "unit": "calls", "amount": amount, "most": 3.0, "per_s": 60.0, "ask": False, **fields}


def test_open_calls_count_at_their_worst_and_ended_ones_at_what_they_used() -> None:
    db = conn()
    cpu = charge(30.0, unit="cpu", most=60.0)
    assert budgets.take(db, "a", [cpu], at_s=0.0) == []
    assert budgets.take(db, "b", [cpu], at_s=0.0) == []
    (over,) = budgets.take(db, "c", [cpu], at_s=0.0)
    assert over["budget"] == "b"
    budgets.settle(db, "a", {"cpu": 1.5}, ran=True, at_s=0.0)
    budgets.settle(db, "b", {"cpu": None}, ran=True, at_s=0.0)
    assert budgets.listed(db, 0.0) == [{"budget": "b", "key": "[]", "used": 31.5}]
    assert budgets.take(db, "d", [charge(28.5, unit="cpu", most=60.0)], at_s=0.0) == []


def test_a_call_that_never_ran_gives_all_of_it_back() -> None:
    db = conn()
    for name in "abcdef":
        assert budgets.take(db, name, [charge()], at_s=0.0) == []
        budgets.settle(db, name, {}, ran=False, at_s=0.0)
    assert budgets.listed(db, 0.0) == []


def test_it_says_when_there_is_room_again_and_there_is() -> None:
    db = conn()
    for name in "abc":
        budgets.take(db, name, [charge()], at_s=10.0)
        budgets.settle(db, name, {}, ran=True, at_s=10.0)
    (over,) = budgets.take(db, "d", [charge()], at_s=20.0)
    assert 70.0 <= over["free_at_s"] <= 71.0
    assert budgets.take(db, "d", [charge()], at_s=over["free_at_s"] - 0.1) != []
    assert budgets.take(db, "d", [charge()], at_s=over["free_at_s"]) == []


def test_one_call_that_is_more_than_all_of_it_never_has_room() -> None:
    (over,) = budgets.take(conn(), "a", [charge(4.0)], at_s=0.0)
    assert over["free_at_s"] is None


def test_a_call_that_one_budget_denies_takes_nothing_of_the_others() -> None:
    db = conn()
    assert budgets.take(db, "a", [charge(), charge(9.0, budget="c")], at_s=0.0) != []
    assert budgets.listed(db, 0.0) == []


def test_a_call_that_is_asked_about_takes_what_it_is_asked_for() -> None:
    db = conn()
    assert budgets.take(db, "a", [charge(9.0, ask=True)], at_s=0.0) != []
    assert budgets.listed(db, 0.0)[0]["used"] == 9.0


def test_budgets_are_counted_by_their_keys() -> None:
    db = conn()
    assert budgets.take(db, "a", [charge(3.0)], at_s=0.0) == []
    assert budgets.take(db, "b", [charge(3.0, key="[1]")], at_s=0.0) == []
    assert budgets.take(db, "c", [charge(1.0)], at_s=0.0) != []


@given(steps=st.lists(st.tuples(st.floats(0.0, 40.0), st.booleans(), st.booleans()), max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_stretch_of_its_time_holds_more_than_a_budget_allows(steps: list[tuple[float, bool, bool]]) -> None:
    db = conn()
    now, begun = 0.0, []
    for number, (later, ends, ran) in enumerate(steps):
        now += later
        if budgets.take(db, str(number), [charge()], at_s=now) == []:
            if ends:
                budgets.settle(db, str(number), {}, ran=ran, at_s=now)
            if ran or not ends:
                begun.append((now, ends))
        assert sum(1 for at, ended in begun if at > now - 60.0 or not ended) <= 3


@pytest.mark.parametrize("calls", [200])
def test_rows_do_not_grow_with_the_calls(calls: int) -> None:
    db = conn()
    for number in range(calls):
        budgets.take(db, str(number), [charge(most=1e6)], at_s=float(number))
        budgets.settle(db, str(number), {}, ran=True, at_s=float(number))
    assert db.run("SELECT count(*) FROM spent").fetchone()[0] <= 62
    assert db.run("SELECT count(*) FROM charges").fetchone()[0] == 0
