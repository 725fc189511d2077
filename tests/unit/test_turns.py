"""Who gets the next box: tables, and random histories of asking, leaving and being granted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood.turns import Capacity, Need, Turns


def ask(turns: Turns, asked: str, **need: object) -> list[int]:
    """One ticket for each letter, which is its sender's name."""
    return [turns.ask(sender, Need(**need)) for sender in asked]  # type: ignore[arg-type]


def order(turns: Turns, sender_of: dict[int, str]) -> str:
    """The senders in the order in which they are served, one at a time."""
    served = ""
    while turns.waiting:
        for number in [*turns.grant()]:
            served += sender_of[number]
            turns.leave(number)
    return served


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("", ""),
        ("aaa", "aaa"),
        ("aaab", "abaa"),
        ("aaabbb", "ababab"),
        ("aaaabc", "abcaaa"),
        ("abcabc", "abcabc"),
        ("aabbbbcc", "abcabcbb"),
    ],
)
def test_senders_take_turns_and_within_one_the_first_is_first(asked: str, served: str) -> None:
    turns = Turns(Capacity(boxes=1))
    sender_of = dict(zip(ask(turns, asked), asked, strict=True))
    assert order(turns, sender_of) == served


@pytest.mark.parametrize(
    ("capacity", "need", "granted"),
    [
        (Capacity(boxes=3), {}, 3),
        (Capacity(boxes=9, memory_bytes=100), {"memory_bytes": 40}, 2),
        (Capacity(boxes=9, cpu=1.0), {"cpu": 0.1}, 9),
        (Capacity(boxes=9, cpu=1.0), {"cpu": 0.4}, 2),
        (Capacity(boxes=9, pids=100), {"pids": 34}, 2),
        (Capacity(boxes=9), {"profile": "p", "most": 2}, 2),
        (Capacity(boxes=9, memory_bytes=100), {"memory_bytes": 101}, 1),
    ],
)
def test_every_bound_holds_and_one_alone_goes(capacity: Capacity, need: dict[str, object], granted: int) -> None:
    turns = Turns(capacity)
    ask(turns, "abcdefghi", **need)
    assert len([*turns.grant()]) == granted
    assert [*turns.grant()] == []


def test_a_large_box_is_not_starved_by_small_ones() -> None:
    turns = Turns(Capacity(boxes=9, memory_bytes=100))
    (first, second) = ask(turns, "ab", memory_bytes=50)
    assert [*turns.grant()] == [first, second]
    (large,) = ask(turns, "c", memory_bytes=90)
    (small,) = ask(turns, "d", memory_bytes=10)
    turns.leave(first)
    assert [*turns.grant()] == []  # the small one would fit
    turns.leave(second)
    assert [*turns.grant()] == [large, small]


def test_who_waits_for_the_bound_of_its_own_profile_stops_nobody() -> None:
    turns = Turns(Capacity(boxes=9))
    first, second, third = ask(turns, "aab", profile="narrow", most=1)
    (other,) = ask(turns, "a", profile="wide")
    assert [*turns.grant()] == [first, other]
    turns.leave(first)
    assert [*turns.grant()] in ([second], [third])


def test_who_leaves_while_it_waits_takes_no_place() -> None:
    turns = Turns(Capacity(boxes=1))
    first, second, third = ask(turns, "aaa")
    assert [*turns.grant()] == [first]
    turns.leave(second)
    turns.leave(second)
    turns.leave(first)
    assert [*turns.grant()] == [third]
    assert turns.waiting == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abc"), st.integers(1, 60), st.sampled_from([None, 1, 2])),
        st.tuples(st.just("leave"), st.integers(0, 40)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, boxes=st.integers(1, 4), memory_bytes=st.integers(40, 120))
def test_in_any_history_no_bound_is_passed_nobody_is_forgotten_and_all_are_served(
    steps: list[tuple[object, ...]], boxes: int, memory_bytes: int
) -> None:
    turns = Turns(Capacity(boxes=boxes, memory_bytes=memory_bytes))
    asked: list[int] = []
    served: list[int] = []
    gone: set[int] = set()

    def grant() -> None:
        for number in turns.grant():
            assert number not in served
            served.append(number)
        live = turns.live.values()
        assert len(live) <= boxes
        assert len(live) == 1 or sum(need.memory_bytes for need in live) <= memory_bytes
        for profile, count in Counter(need.profile for need in live).items():
            most = next(need.most for need in live if need.profile == profile)
            assert most is None or count <= most

    for step in steps:
        if step[0] == "ask":
            _, sender, memory, most = step
            asked.append(turns.ask(sender, Need(memory_bytes=memory, profile=f"p{most}", most=most)))  # type: ignore[arg-type]
        elif asked:
            number = asked[step[1] % len(asked)]  # type: ignore[operator]
            gone.add(number)
            turns.leave(number)
        grant()
    assert turns.waiting == len(set(asked) - gone - set(turns.live))
    while turns.waiting or turns.live:  # all that hold a box give it up at some time
        assert turns.live, "somebody waits and nobody is served"
        turns.leave(next(iter(turns.live)))
        grant()
    assert set(served) | gone == set(asked)


@settings(max_examples=200, deadline=None)
@given(asked=st.text("abcd", max_size=60))
def test_nobody_is_served_twice_while_another_sender_waits_for_its_first(asked: str) -> None:
    turns = Turns(Capacity(boxes=1))
    sender_of = dict(zip(ask(turns, asked), asked, strict=True))
    left = Counter(asked)
    served = order(turns, sender_of)
    since: Counter[str] = Counter()
    for sender in served:
        since[sender] += 1
        left[sender] -= 1
        waiting = [other for other in left if left[other] > 0 and other != sender]
        assert all(since[sender] - since[other] <= 1 for other in waiting), (asked, served)
    assert Counter(served) == Counter(asked)
