"""Tasks that wait for a box: the deadline, the bound, cancellation, and when the host is asked."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from fumehood.faults import Refused
from fumehood.places import Places
from fumehood.reasons import Reason
from fumehood.turns import Capacity, Need

pytestmark = pytest.mark.anyio
ONE = Need(memory_bytes=10)


async def hold(places: Places, sender: str, held: list[str], until: anyio.Event) -> None:
    async with places.hold(sender, ONE):
        held.append(sender)
        await until.wait()


async def test_a_free_place_is_had_at_once_and_nobody_is_asked_what_the_host_has() -> None:
    async def capacity() -> Capacity:
        raise AssertionError

    async with Places(2, capacity=capacity).hold("a", ONE) as place:
        assert place.waited_s is None


async def test_the_host_is_asked_once_when_two_want_a_box_and_what_it_says_holds() -> None:
    asked: list[int] = []
    held: list[str] = []

    async def capacity() -> Capacity:
        asked.append(1)
        await anyio.lowlevel.checkpoint()
        return Capacity(boxes=9, memory_bytes=20)

    places, over = Places(5, capacity=capacity), anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for sender in "abcde":
                tasks.start_soon(hold, places, sender, held, over)
            await anyio.wait_all_tasks_blocked()
            assert (len(held), len(asked)) == (2, 1)
            over.set()
    assert sorted(held) == [*"abcde"]


async def test_who_waits_has_the_place_when_it_is_left() -> None:
    places, over, held = Places(1), anyio.Event(), []  # type: ignore[var-annotated]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, places, "a", held, over)
            await anyio.wait_all_tasks_blocked()
            over.set()
            async with places.hold("b", ONE) as place:
                assert place.waited_s is not None
    assert held == ["a"]


async def test_at_the_deadline_the_refusal_says_how_long_to_stay_away() -> None:
    places = Places(1, wait_s=0.01)
    async with places.hold("a", ONE):
        with pytest.raises(Refused) as refused:
            async with places.hold("b", ONE):
                pytest.fail("there was no place")
    deny = refused.value.deny
    assert (deny.reason, deny.rule) == (Reason.BUSY, "queue.wait")
    assert deny.retry_after_s is not None
    assert deny.retry_after_s >= 1
    async with places.hold("b", ONE) as place:
        assert place.waited_s is None


async def test_no_more_wait_than_may() -> None:
    places, over, held = Places(1, most=2), anyio.Event(), []  # type: ignore[var-annotated]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for sender in "abc":
                tasks.start_soon(hold, places, sender, held, over)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Refused) as refused:
                async with places.hold("d", ONE):
                    pytest.fail("there was no place")
            assert refused.value.deny.rule == "queue.most"
            over.set()
    assert held == [*"abc"]


async def test_who_is_cancelled_while_it_waits_is_forgotten() -> None:
    places, over, held = Places(1), anyio.Event(), []  # type: ignore[var-annotated]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, places, "a", held, over)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(hold, places, "b", held, over)
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            over.set()
            async with places.hold("c", ONE):
                pass
    assert held == ["a"]


async def test_a_body_that_fails_leaves_its_place() -> None:
    places = Places(1)
    with pytest.raises(ValueError, match="its own"):
        async with places.hold("a", ONE):
            raise ValueError("its own")
    async with places.hold("a", ONE) as place:
        assert place.waited_s is None
