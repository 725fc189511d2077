"""What clients hear without asking: how their tasks go, and that a server's lists are others now."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from front_client import SERVER, Open, Told, client, opened
from local_gateway import gateway_of, served
from local_runner import FakeSpine

from fumehood.gateway import listening, protocol, renewal
from fumehood.gateway.events import Event
from fumehood.gateway.peer import Client
from fumehood.gateway.protocol import GatewayError
from fumehood.model import Ask, Result, Sender

pytestmark = pytest.mark.anyio

TASKS: dict[str, Any] = {"extensions": {protocol.TASKS_EXTENSION: {}}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fumehood.gateway.front.TASK_PATIENCE_S", 0.5)
    monkeypatch.setattr(renewal, "SETTLE_S", 0.1)
    monkeypatch.setattr(renewal, "REST_S", 1.0)
    return iter([None])


@asynccontextmanager
async def heard(open_: Open, mine: Client, **asked: Any) -> AsyncIterator[Told]:
    """What a listening client is told, from its acknowledgement on."""
    told = Told()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listening.listen, open_.front, mine, 7, asked, told)
        await told_of(told, "notifications/subscriptions/acknowledged")
        yield told
        tasks.cancel_scope.cancel()


async def told_of(told: Told, method: str, found: Callable[[Any], bool] = bool) -> dict[str, Any]:
    with anyio.fail_after(20):
        while True:
            for each, params in told.notes:
                if each == method and found(params):
                    return dict(params)
            await anyio.sleep(0.02)


async def test_a_task_is_told_as_tasks_get_would_tell_it_and_only_to_its_sender() -> None:
    async with opened("legacy", ask=Ask(elicitation=True, most=3, wait_s=10)) as open_:
        mine = client(elicitation={}, **TASKS)
        made = await open_.ask("tools/call", mine, name="late_who", arguments={"seconds": 1.5})
        task = made["taskId"]
        stranger = replace(mine, sender=Sender(uid=0, name="somebody else"))
        wanted = {"taskIds": [task, "unknown", task]}
        async with heard(open_, mine, **wanted) as told, heard(open_, stranger, **wanted) as theirs:
            assert told.notes[0][1]["notifications"] == {"taskIds": [task]}
            assert theirs.notes[0][1]["notifications"] == {}
            waiting = await told_of(told, "notifications/tasks", lambda params: params["status"] == "input_required")
            answers = {name: {"action": "accept", "content": {"name": "Ada"}} for name in waiting["inputRequests"]}
            await open_.ask("tasks/update", mine, taskId=task, inputResponses=answers)
            done = await told_of(told, "notifications/tasks", lambda params: params["status"] == "completed")
            shown = await open_.ask("tasks/get", mine, taskId=task)
            assert done.pop("_meta") == {"io.modelcontextprotocol/subscriptionId": 7}
            assert done == {name: value for name, value in shown.items() if name not in {"resultType", "_meta"}}
            assert len(theirs.notes) == 1
        # It is over: whoever begins to listen now would wait for ever.
        async with heard(open_, mine, taskIds=[task]) as told:
            assert (await told_of(told, "notifications/tasks"))["status"] == "completed"


async def test_a_cancelled_task_is_told() -> None:
    async with opened("modern") as open_:
        made = await open_.ask("tools/call", client(**TASKS), name="nap", arguments={"seconds": 60})
        async with heard(open_, client(**TASKS), taskIds=[made["taskId"]]) as told:
            await open_.ask("tasks/cancel", client(**TASKS), taskId=made["taskId"])
            await told_of(told, "notifications/tasks", lambda params: params["status"] == "cancelled")


@pytest.mark.parametrize("ids", ["t", [1], ["t"] * (listening.MAX_NAMED + 1)])
async def test_a_list_of_tasks_that_is_none_or_endless_is_refused(ids: Any) -> None:
    async with opened("modern") as open_:
        with pytest.raises(GatewayError, match="taskIds is a list"):
            await listening.listen(open_.front, client(**TASKS), 1, {"taskIds": ids}, Told())


@asynccontextmanager
async def relisting(tmp_path: Path) -> AsyncIterator[tuple[Open, Path, list[Event]]]:
    """A server whose list is a file's, with what its clients hear."""
    words, events = tmp_path / "words", list[Event]()
    words.write_text("first")
    spine = FakeSpine()
    async with gateway_of([served((sys.executable, SERVER, "modern", str(words)))], spine) as front:
        front.events.subscribe(events.append)
        await front.answer(client(), "tools/list", {}, Told())
        yield Open(front, spine), words, events


def readings(open_: Open) -> int:
    return sum(call.front_door == "catalogue" for call, _ in open_.spine.outcomes)


async def until(found: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not found():  # noqa: ASYNC110 - other tasks are waited for
            await anyio.sleep(0.02)


async def names(open_: Open) -> set[str]:
    return {tool["name"] for tool in (await open_.ask("tools/list"))["tools"]}


async def test_a_server_that_says_its_lists_changed_is_read_again_in_a_box_of_its_own(tmp_path: Path) -> None:
    async with relisting(tmp_path) as (open_, words, events):
        words.write_text("second")
        assert "first" in await names(open_), "what is pinned stays until the server says so"
        await open_.ask("tools/call", name="relist", arguments={})
        await until(lambda: bool(events))
        assert events == [Event("tools")], "of its prompts and resources nothing is another"
        assert {"second"} == await names(open_) & {"first", "second"}
        assert readings(open_) == 2
        assert len(set(open_.spine.pids)) == 3
        with pytest.raises(GatewayError, match="tool_unknown"):
            await open_.ask("tools/call", name="first", arguments={})


async def test_a_flood_of_hints_is_few_readings_and_one_that_finds_nothing_new_tells_nobody(tmp_path: Path) -> None:
    async with relisting(tmp_path) as (open_, _, events):
        await open_.ask("tools/call", name="relist", arguments={"times": 500})
        await until(lambda: readings(open_) == 2)
        for _ in range(4):
            await open_.ask("tools/call", name="relist", arguments={"times": 500})
        assert readings(open_) == 2, "it is read again seldom"
        await until(lambda: readings(open_) == 3)
        await anyio.sleep(renewal.REST_S + 3 * renewal.SETTLE_S)
        assert readings(open_) == 3
        assert events == []


async def test_a_reading_that_fails_leaves_what_was_pinned(tmp_path: Path) -> None:
    async with relisting(tmp_path) as (open_, words, events):
        words.write_text("broken")
        await open_.ask("tools/call", name="relist", arguments={})
        await until(lambda: sum(outcome.result is not Result.OK for _, outcome in open_.spine.outcomes) >= 2)
        assert "first" in await names(open_)
        assert events == []
