"""Arguments that are too long, too many or too deep, and a sender whose calls are slow to judge."""

from __future__ import annotations

from typing import Any

import pytest

from fumehood.gateway.bounds import excess
from fumehood.gateway.patience import BURST_S, MOST_SENDERS, RATE, SLOW_S, Patience
from fumehood.model import ArgumentBounds, Sender

SMALL = ArgumentBounds(string_bytes=8, items=3, depth=3, values=10)
SENDER, OTHER = Sender(uid=1, name="one"), Sender(uid=1, name="other")


@pytest.mark.parametrize(
    ("arguments", "place", "bound"),
    [
        ({"a": "x" * 9}, "$.a", "arguments.string"),
        ({"a": "é" * 5}, "$.a", "arguments.string"),
        ({"x" * 9: 1}, "$", "arguments.string"),
        ({"a": [1, 2, 3, 4]}, "$.a", "arguments.items"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "$", "arguments.items"),
        ({"a": [{"b": 1}, {"b": {}}]}, "$.a[1].b", "arguments.depth"),
        ({"a": [[1, 2, 3], [1, 2, 3], [1, 2, 3]]}, "$", "arguments.values"),
    ],
)
def test_what_is_over_a_bound_is_named_with_its_place(arguments: dict[str, Any], place: str, bound: str) -> None:
    found = excess(arguments, SMALL)
    assert found is not None
    assert found.startswith(f"{place}: ")
    assert bound in found


@pytest.mark.parametrize("arguments", [{}, {"a": "x" * 8, "b": "é" * 4}, {"a": [{"b": 1}]}, {"a": [1, 2, 3], "b": [1, 2, 3]}])
def test_what_is_within_the_bounds_passes(arguments: dict[str, Any]) -> None:
    assert excess(arguments, SMALL) is None


def test_a_place_is_one_printable_line() -> None:
    found = excess({"\u202ea\n" * 100: "x" * 2000}, ArgumentBounds(string_bytes=1000))
    assert found is not None
    assert found.isprintable()


class Time:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sender_that_has_slow_calls_judged_one_after_the_other_has_to_wait_and_nobody_else() -> None:
    now = Time()
    patience = Patience(now)
    judged = 0
    for _ in range(1000):  # as fast as it can, for a hundred seconds
        if not patience.is_spent(SENDER):
            judged += 1
            patience.charge(SENDER, 0.1)
        assert not patience.is_spent(OTHER)
        now.now_s += 0.1
    assert judged * 0.1 < BURST_S + RATE * 100 + 0.2
    now.now_s += BURST_S / RATE
    assert not patience.is_spent(SENDER)


def test_quick_judgements_are_free() -> None:
    patience = Patience(Time())
    for _ in range(10_000):
        patience.charge(SENDER, SLOW_S / 2)
    assert not patience.is_spent(SENDER)


def test_senders_that_owe_nothing_are_forgotten() -> None:
    now = Time()
    patience = Patience(now)
    for number in range(10 * MOST_SENDERS):
        patience.charge(Sender(uid=number, name=""), SLOW_S)
        now.now_s += 1
    assert len(patience._debts) <= MOST_SENDERS
