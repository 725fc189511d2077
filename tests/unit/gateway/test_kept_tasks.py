"""How a task ended outlives its gateway, is its sender's alone, and is held in memory by nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import Open, client, opened
from local_runner import FakeSpine

from fakes import call
from fumehood.gateway import ongoing, protocol
from fumehood.gateway.protocol import GatewayError
from fumehood.model import Keeping, Outcome, Oversize, Result, Sender
from fumehood.reasons import Reason

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("impatient")]
TASKS = {"extensions": {protocol.TASKS_EXTENSION: {}}}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fumehood.gateway.front.TASK_PATIENCE_S", 0.1)


async def get(open_: Open, task: str, asking: Any = None) -> dict[str, Any]:
    return await open_.ask("tasks/get", asking or client(**TASKS), taskId=task)


async def ended(open_: Open, task: str) -> dict[str, Any]:
    with anyio.fail_after(15):
        while (found := await get(open_, task))["status"] == "working" or held(open_):  # noqa: ASYNC110 - the gateway has no event for it
            await anyio.sleep(0.02)
    return await get(open_, task) if found["status"] == "working" else found


def held(open_: Open) -> int:
    return len(open_.front._calls._of_task)


async def made(open_: Open, name: str, **arguments: Any) -> str:
    found = await open_.ask("tools/call", client(**TASKS), name=name, arguments=arguments)
    assert found["resultType"] == "task"
    return str(found["taskId"])


async def test_a_later_gateway_tells_how_a_task_ended_and_only_its_sender() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        task = await made(open_, "nap", seconds=0.5)
        first = await ended(open_, task)
        assert (first["status"], first["result"]["content"][0]["text"]) == ("completed", "rested")
        assert held(open_) == 0, "the ledger has it"
    async with opened("modern", spine=spine) as later:
        found = await get(later, task)
        assert found == first
        assert found["ttlMs"] > 0
        assert found["result"]["_meta"][protocol.TASK_KEY] == task
        assert await later.ask("tasks/cancel", client(**TASKS), taskId=task)
        assert await later.ask("tasks/update", client(**TASKS), taskId=task, inputResponses={})
        stranger = replace(client(**TASKS), sender=Sender(uid=0, name="somebody else"))
        for asking, name in ((stranger, task), (client(**TASKS), "0" * 26), (client(**TASKS), "../x"), (client(**TASKS), 7)):
            for method in ("tasks/get", "tasks/cancel", "tasks/update"):
                with pytest.raises(GatewayError) as caught:
                    await later.ask(method, asking, taskId=name, inputResponses={})
                assert caught.value.message == "Invalid params: there is no such task"
        spine.ledger.kept_bytes.clear()  # pruned
        with pytest.raises(GatewayError, match="no such task"):
            await get(later, task)


async def test_an_error_is_kept_like_a_result() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_, opened("modern", spine=spine) as later:
        task = await made(open_, "nap", seconds=0.3)
        await ended(open_, task)
        spine.ledger.kept_bytes[task, Keeping.ANSWER] = b'{"error":{"code":-32011,"message":"m"}}', 5.0
        found = await get(later, task)
        assert (found["status"], found["error"]) == ("failed", {"code": -32011, "message": "m"})


async def test_a_cancelled_task_is_cancelled_for_a_later_gateway() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        task = await made(open_, "nap", seconds=60)
        with anyio.fail_after(10):
            while task not in spine.broker.boxes:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
    async with opened("modern", spine=spine) as later:
        assert (await get(later, task))["status"] == "cancelled"


async def test_a_task_of_a_runtime_that_died_has_failed_and_says_why() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        dead = replace(call(), sender=client().sender, front_door="gateway")
        await spine.ledger.open(dead)
        assert (await get(open_, dead.task))["status"] == "working", "another gateway may carry it"
        await spine.ledger.close(Outcome(task=dead.task, result=Result.LOST, reason=Reason.RUNTIME_DIED))
        found = await get(open_, dead.task)
        assert found["status"] == "failed"
        assert found["error"]["data"]["reason"] == Reason.RUNTIME_DIED
        other = replace(call(), sender=client().sender, front_door="run")
        await spine.ledger.open(other)
        await spine.ledger.close(Outcome(task=other.task, result=Result.LOST, reason=Reason.RUNTIME_DIED))
        with pytest.raises(GatewayError, match="no such task"):
            await get(open_, other.task)


async def test_a_result_that_cannot_be_kept_is_held_only_when_it_is_small() -> None:
    async with opened("modern") as open_:
        open_.spine.ledger.room_bytes = 10
        small = await made(open_, "nap", seconds=0.3)
        with anyio.fail_after(10):
            while (found := await get(open_, small))["status"] != "completed":  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
        assert found["result"]["content"][0]["text"] == "rested"
        large = await made(open_, "late_big", seconds=0.3, bytes=ongoing.MAX_HELD_BYTES)
        with anyio.fail_after(10):
            while (found := await get(open_, large))["status"] != "failed":  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
        assert found["error"]["message"].startswith("fumehood: result_not_kept: ")


async def test_a_spilled_result_of_a_task_is_linked_to_in_what_is_kept_of_the_task() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine, results=Oversize.SPILL, result_bytes=20_000) as open_:
        task = await made(open_, "late_big", seconds=0.3, bytes=200_000)
        await ended(open_, task)
    async with opened("modern", spine=spine, results=Oversize.SPILL, result_bytes=20_000) as later:
        link = (await get(later, task))["result"]["content"][1]
        read = await later.ask("resources/read", uri=link["uri"])
        assert len(read["contents"][0]["text"]) == link["size"] > 200_000
