"""Questions in mid-call, between every era of client and of server: the box waits, frozen, and nobody else can answer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import Told, client, opened

from fumehood.gateway import protocol
from fumehood.gateway.protocol import GatewayError
from fumehood.lifecycle import State
from fumehood.model import Ask, Result, Sender
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio

ASK = Ask(elicitation=True, sampling=True, most=3, wait_s=10)
ANSWER = {"action": "accept", "content": {"name": "Ada"}}
FORM: dict[str, Any] = {"elicitation": {}, "sampling": {}}
WHO = {"name": "who", "arguments": {}}


@pytest.mark.parametrize("server", ["modern", "legacy"])
async def test_a_newer_client_answers_in_a_second_round_of_the_same_box(server: str) -> None:
    async with opened(server, ask=ASK) as open_:
        mine = client(**FORM)
        first = await open_.ask("tools/call", mine, **WHO)
        assert first["resultType"] == "input_required"
        (name,) = first["inputRequests"]
        question = first["inputRequests"][name]
        assert question["method"] == "elicitation/create"
        assert question["params"]["message"] == "[a] asks:\nYour name?\\u001b[2J", "it says who asks, and drives no terminal"
        task = next(iter(open_.spine.broker.boxes))
        assert open_.spine.broker.is_frozen(task)
        second = await open_.ask(
            "tools/call", mine, **WHO, requestState=first["requestState"], inputResponses={name: {**ANSWER, "_meta": {"x": 1}}}
        )
        assert second["resultType"] == "complete"
        said = json.loads(second["content"][0]["text"])
        if server == "modern":
            assert said == {"name": ANSWER, "roots": {"roots": [{"uri": "file:///workspace", "name": "workspace"}]}}
        else:
            assert said["result"] == ANSWER
        assert second["_meta"][protocol.TASK_KEY] == task
        states = [state for name, state, _ in open_.spine.ledger.events if name == task]
        assert states[states.index(State.RUNNING) :][:4] == [State.RUNNING, State.PARKED, State.RUNNING, State.EXITED]


@pytest.mark.parametrize(
    ("theirs", "shown"),
    [([{"uri": "file:///home/ada/secret"}], [{"uri": "file:///workspace", "name": "workspace"}]), ([], []), ("none of yours", [])],
)
async def test_a_client_that_is_asked_for_its_roots_only_decides_whether_the_workspace_is_shown(theirs: Any, shown: Any) -> None:
    async with opened("modern", ask=replace(ASK, roots=True)) as open_:
        mine = client(**FORM, roots={})
        first = await open_.ask("tools/call", mine, **WHO)
        asked = {each["method"]: name for name, each in first["inputRequests"].items()}
        answers = {asked["elicitation/create"]: ANSWER, asked["roots/list"]: {"roots": theirs if isinstance(theirs, list) else None}}
        second = await open_.ask("tools/call", mine, **WHO, requestState=first["requestState"], inputResponses=answers)
        assert json.loads(second["content"][0]["text"]) == {"name": ANSWER, "roots": {"roots": shown}}


@pytest.mark.parametrize("server", ["modern", "legacy"])
async def test_an_older_client_is_sent_the_question(server: str) -> None:
    async with opened(server, ask=ASK) as open_:
        channel = Told(answers={"elicitation/create": ANSWER, "sampling/createMessage": {"role": "assistant", "model": "m"}})
        mine = client("legacy", **FORM)
        done = await open_.ask("tools/call", mine, channel, **WHO)
        assert "Ada" in done["content"][0]["text"]
        done = await open_.ask("tools/call", mine, channel, name="sample", arguments={})
        assert "assistant" in done["content"][0]["text"]
        assert [method for method, _ in channel.asked] == ["elicitation/create", "sampling/createMessage"]
        assert all(params["_meta"] == {protocol.SERVER_KEY: "a"} for _, params in channel.asked)


@pytest.mark.parametrize("server", ["modern", "legacy"])
@pytest.mark.parametrize(
    ("ask", "declared", "can_ask"),
    [
        (Ask(), FORM, True),
        (Ask(sampling=True), FORM, True),
        (ASK, {}, True),
        (ASK, FORM, False),
    ],
)
async def test_a_question_that_may_not_be_put_is_put_to_nobody(
    server: str, ask: Ask, declared: dict[str, Any], *, can_ask: bool
) -> None:
    async with opened(server, ask=ask) as open_:
        channel = Told(can_ask=can_ask, answers={"elicitation/create": ANSWER})
        done = await open_.ask("tools/call", client("legacy", **declared), channel, **WHO)
        assert channel.asked == []
        if server == "modern":
            assert done["_meta"][protocol.OUTCOME_KEY]["reason"] == Reason.INPUT_REQUIRED
        else:
            assert json.loads(done["content"][0]["text"])["error"]["code"] == protocol.METHOD_NOT_FOUND


async def test_a_server_cannot_ask_without_end() -> None:
    async with opened("modern", ask=ASK) as open_:
        channel = Told(answers={"elicitation/create": ANSWER})
        done = await open_.ask("tools/call", client("legacy", **FORM), channel, name="insist", arguments={})
        assert done["_meta"][protocol.OUTCOME_KEY]["reason"] == Reason.INPUT_REQUIRED
        assert len(channel.asked) == ASK.most


async def test_a_handle_is_good_once_for_its_sender_and_its_request_alone() -> None:
    async with opened("modern", ask=ASK) as open_:
        mine = client(**FORM)
        first = await open_.ask("tools/call", mine, **WHO)
        given = {"requestState": first["requestState"], "inputResponses": dict.fromkeys(first["inputRequests"], ANSWER)}
        stranger = replace(mine, sender=Sender(uid=mine.sender.uid, name="somebody else"))
        for asking, changed in (
            (stranger, {**WHO, **given}),
            (mine, {**WHO, **given, "arguments": {"other": 1}}),
            (mine, {**given, "name": "count", "arguments": {}}),
            (mine, {**WHO, **given, "requestState": "x" * 43}),
            (mine, {**WHO, "requestState": first["requestState"], "inputResponses": {}}),
            (mine, {**WHO, "requestState": 7, "inputResponses": {}}),
        ):
            with pytest.raises(GatewayError) as caught:
                await open_.ask("tools/call", asking, **changed)
            assert caught.value.code == protocol.INVALID_PARAMS
        assert (await open_.ask("tools/call", mine, **WHO, **given))["resultType"] == "complete"
        with pytest.raises(GatewayError):
            await open_.ask("tools/call", mine, **WHO, **given)
        assert len(open_.spine.pids) == 2, "no replay started anything"


async def test_answers_that_nobody_asked_for_go_only_to_a_server_that_may_ask() -> None:
    given = {**WHO, "inputResponses": {"name": ANSWER}}
    async with opened("modern", ask=ASK) as open_:
        with pytest.raises(GatewayError, match="another process"):
            await open_.ask("tools/call", client(**FORM), **given)
    async with opened("modern") as open_:
        with pytest.raises(GatewayError, match="nothing was asked"):
            await open_.ask("tools/call", client(**FORM), **given)
        assert open_.spine.pids == []


async def test_a_box_nobody_comes_back_for_is_killed_at_its_deadline() -> None:
    async with opened("modern", ask=replace(ASK, wait_s=0.3)) as open_:
        mine = client(**FORM)
        first = await open_.ask("tools/call", mine, **WHO)
        with anyio.fail_after(5):
            while open_.spine.broker.boxes:  # noqa: ASYNC110 - a fake has no event for it
                await anyio.sleep(0.02)
        outcome = open_.spine.outcomes[-1][1]
        assert (outcome.result, outcome.reason) == (Result.KILLED, Reason.PARKED)
        answers = dict.fromkeys(first["inputRequests"], ANSWER)
        with pytest.raises(GatewayError):
            await open_.ask("tools/call", mine, **WHO, requestState=first["requestState"], inputResponses=answers)


async def test_a_client_that_gives_up_while_its_call_runs_ends_the_call() -> None:
    async with opened("modern", ask=ASK) as open_:
        with anyio.move_on_after(1):
            await open_.ask("tools/call", client(**FORM), name="nap", arguments={"seconds": 30})
        with anyio.fail_after(5):
            while open_.spine.broker.boxes:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
        assert open_.spine.outcomes[-1][1].reason is Reason.CANCELLED


TASKS = {"extensions": {protocol.TASKS_EXTENSION: {}}}


async def until(open_: Any, task: str, status: str) -> dict[str, Any]:
    with anyio.fail_after(15):
        while True:
            found: dict[str, Any] = await open_.ask("tasks/get", client(**TASKS), taskId=task)
            if found["status"] == status:
                return found
            await anyio.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fumehood.gateway.front.TASK_PATIENCE_S", 0.8)


@pytest.mark.usefixtures("impatient")
async def test_a_call_that_outlives_its_request_becomes_a_task_that_only_its_sender_finds() -> None:
    async with opened("modern") as open_:
        made = await open_.ask("tools/call", client(**TASKS), name="nap", arguments={"seconds": 1.5})
        assert (made["resultType"], made["status"]) == ("task", "working")
        task = made["taskId"]
        assert (await open_.ask("tasks/get", client(**TASKS), taskId=task))["resultType"] == "complete"
        stranger = replace(client(**TASKS), sender=Sender(uid=0, name="somebody else"))
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            with pytest.raises(GatewayError, match="no such task"):
                await open_.ask(method, stranger, taskId=task, inputResponses={})
        found = await until(open_, task, "completed")
        assert found["result"]["content"][0]["text"] == "rested"
        assert found["result"]["_meta"][protocol.TASK_KEY] == task, "its record has the same name"


@pytest.mark.usefixtures("impatient")
async def test_a_short_call_and_a_client_without_the_extension_get_no_task() -> None:
    async with opened("modern") as open_:
        assert (await open_.ask("tools/call", client(**TASKS), name="count", arguments={}))["resultType"] == "complete"
        done = await open_.ask("tools/call", client(), name="nap", arguments={"seconds": 1.5})
        assert done["resultType"] == "complete"


@pytest.mark.usefixtures("impatient")
async def test_a_task_is_cancelled_and_its_box_is_gone() -> None:
    async with opened("modern") as open_:
        made = await open_.ask("tools/call", client(**TASKS), name="nap", arguments={"seconds": 60})
        assert (await open_.ask("tasks/cancel", client(**TASKS), taskId=made["taskId"]))["resultType"] == "complete"
        await until(open_, made["taskId"], "cancelled")
        assert open_.spine.broker.boxes == {}


@pytest.mark.usefixtures("impatient")
async def test_a_task_asks_and_is_answered_by_an_update() -> None:
    async with opened("legacy", ask=ASK) as open_:
        mine = client(**FORM, **TASKS)
        first = await open_.ask("tools/call", mine, **WHO)
        # Asked before it became a task, it is answered in a round; the extension wants that.
        assert first["resultType"] == "input_required"
        done = await open_.ask(
            "tools/call", mine, **WHO, requestState=first["requestState"],
            inputResponses=dict.fromkeys(first["inputRequests"], ANSWER),
        )  # fmt: skip
        assert done["resultType"] == "complete"
        made = await open_.ask("tools/call", mine, name="late_who", arguments={"seconds": 1.5})
        assert made["resultType"] == "task"
        waiting = await until(open_, made["taskId"], "input_required")
        await open_.ask("tasks/update", mine, taskId=made["taskId"], inputResponses={"nonsense": {}})
        await open_.ask(
            "tasks/update", mine, taskId=made["taskId"], inputResponses=dict.fromkeys(waiting["inputRequests"], ANSWER)
        )
        found = await until(open_, made["taskId"], "completed")
        assert "Ada" in found["result"]["content"][0]["text"]
