"""`scope: session`: one box for the calls of one client, frozen between them, and nobody else's (rule 10)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import Told, client, opened

from fumehood.gateway import protocol
from fumehood.gateway.protocol import GatewayError
from fumehood.gateway.sessions import MAX_SESSIONS_OF_A_SENDER
from fumehood.model import Ask, Kind, Result, Scope, Sender, SessionLife
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio

LIFE = SessionLife(idle_s=30, lifetime_s=60)
STATEFUL: dict[str, Any] = {"scope": Scope.SESSION, "session": LIFE}
COUNT = {"name": "count", "arguments": {}}


def said(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


def session_of(open_: Any) -> str:
    """The task of the one session."""
    (task,) = open_.spine.broker.boxes
    return str(task)


async def gone(open_: Any) -> None:
    with anyio.fail_after(10):
        while open_.spine.broker.boxes:  # noqa: ASYNC110 - the fake has no event for it
            await anyio.sleep(0.02)


@pytest.mark.parametrize("server", ["modern", "legacy"])
@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_state_lasts_between_the_calls_of_a_connection_and_each_call_has_a_record(era: str, server: str) -> None:
    async with opened(server, **STATEFUL, prompts=None) as open_:
        mine = client(era)
        assert [said(await open_.ask("tools/call", mine, **COUNT)) for _ in range(3)] == ["1", "2", "3"]
        assert (await open_.ask("prompts/get", mine, name="greet"))["messages"]
        task = session_of(open_)
        visits = [(call, outcome) for call, outcome in open_.spine.outcomes if call.session is not None]
        assert [call.session for call, _ in visits] == [task] * 4
        assert len({outcome.container for _, outcome in visits}) == 1
        assert len({call.task for call, _ in visits}) == 4
        assert open_.spine.broker.is_frozen(task)
        await open_.front.ended("c1")
        assert open_.spine.broker.boxes == {}
        hosted = next(outcome for call, outcome in open_.spine.outcomes if call.kind is Kind.SESSION)
        assert (hosted.result, hosted.task) == (Result.OK, task)
        assert (task, "discard") in open_.spine.broker.settled, "a scratch is thrown away, once, at the end"


async def test_the_server_stands_still_between_calls() -> None:
    async with opened("modern", **STATEFUL) as open_:
        first = int(said(await open_.ask("tools/call", name="ticks", arguments={})))
        await open_.ask("tools/call", name="nap", arguments={"seconds": 0.3})
        before = int(said(await open_.ask("tools/call", name="ticks", arguments={})))
        await anyio.sleep(1)
        after = int(said(await open_.ask("tools/call", name="ticks", arguments={})))
        assert before - first >= 10
        assert after - before <= 10, "a second passed outside in which its thread did not run"


async def test_two_connections_and_two_senders_have_two_boxes() -> None:
    async with opened("modern", **STATEFUL) as open_:
        other = replace(client(connection="c2"), sender=client().sender)
        stranger = replace(client(connection="c1"), sender=Sender(uid=client().sender.uid, name="somebody else"))
        assert said(await open_.ask("tools/call", client(connection="c1"), **COUNT)) == "1"
        assert said(await open_.ask("tools/call", other, **COUNT)) == "1"
        assert said(await open_.ask("tools/call", stranger, **COUNT)) == "1"
        assert said(await open_.ask("tools/call", client(connection="c1"), **COUNT)) == "2"
        assert len(open_.spine.broker.boxes) == 3


async def test_without_a_connection_a_handle_is_given_out_that_only_its_sender_can_use() -> None:
    async with opened("modern", **STATEFUL) as open_:
        mine = client(connection=None)
        first = await open_.ask("tools/call", mine, **COUNT)
        handle = first["_meta"][protocol.SESSION_KEY]
        assert len(handle) >= 43
        second = await open_.ask("tools/call", mine, **COUNT, _meta={protocol.SESSION_KEY: handle})
        assert said(second) == "2"
        assert protocol.SESSION_KEY not in second["_meta"]
        stranger = replace(mine, sender=Sender(uid=mine.sender.uid, name="somebody else"))
        task = session_of(open_)
        for asking, given in ((stranger, handle), (mine, handle[:-1]), (mine, task), (mine, "")):
            with pytest.raises(GatewayError, match="no such session"):
                await open_.ask("tools/call", asking, **COUNT, _meta={protocol.SESSION_KEY: given})
        assert said(await open_.ask("tools/call", mine, **COUNT)) == "1", "no handle: a new one"


async def test_calls_of_one_session_take_turns() -> None:
    async with opened("modern", **STATEFUL) as open_:
        got: list[str] = []

        async def one() -> None:
            got.append(said(await open_.ask("tools/call", **COUNT)))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)
        assert sorted(got) == ["1", "2", "3", "4", "5"]
        assert len(open_.spine.pids) == 2, "one reading, one session"


async def test_a_session_ends_when_it_is_idle_for_too_long() -> None:
    async with opened("modern", scope=Scope.SESSION, session=SessionLife(idle_s=0.5, lifetime_s=60)) as open_:
        assert said(await open_.ask("tools/call", **COUNT)) == "1"
        await gone(open_)
        assert open_.spine.outcomes[-1][1].result is Result.OK
        assert said(await open_.ask("tools/call", **COUNT)) == "1", "the next call begins a new one"


async def test_a_session_ends_when_it_is_too_old_however_busy() -> None:
    async with opened("modern", scope=Scope.SESSION, session=SessionLife(idle_s=0.9, lifetime_s=1)) as open_:
        began = anyio.current_time()
        seen: list[str] = []
        while anyio.current_time() - began < 2:
            seen.append(said(await open_.ask("tools/call", **COUNT)))
        assert seen.count("1") >= 2


async def test_a_call_that_takes_too_long_ends_the_session_with_it() -> None:
    async with opened("modern", **STATEFUL, wall_s=1) as open_:
        slow = await open_.ask("tools/call", name="nap", arguments={"seconds": 30})
        assert slow["_meta"][protocol.OUTCOME_KEY]["reason"] == Reason.WALL
        await gone(open_)
        assert said(await open_.ask("tools/call", **COUNT)) == "1"


async def test_a_server_that_dies_in_a_call_fails_it_and_the_next_call_gets_a_new_one() -> None:
    async with opened("modern", **STATEFUL) as open_:
        assert said(await open_.ask("tools/call", **COUNT)) == "1"
        died = await open_.ask("tools/call", name="fall", arguments={})
        assert died["_meta"][protocol.OUTCOME_KEY]["reason"] == Reason.SERVER_DIED
        await gone(open_)
        hosted = [outcome for call, outcome in open_.spine.outcomes if call.kind is Kind.SESSION]
        assert hosted[0].result is Result.FAILED
        assert said(await open_.ask("tools/call", **COUNT)) == "1"


async def test_a_cancelled_call_leaves_the_session_frozen_and_usable() -> None:
    async with opened("modern", **STATEFUL) as open_:
        assert said(await open_.ask("tools/call", **COUNT)) == "1"
        with anyio.move_on_after(0.3):
            await open_.ask("tools/call", name="nap", arguments={"seconds": 1})
        assert open_.spine.broker.is_frozen(session_of(open_))
        assert said(await open_.ask("tools/call", **COUNT)) == "2"


async def test_a_sender_cannot_open_sessions_without_end() -> None:
    async with opened("modern", **STATEFUL) as open_:
        for number in range(MAX_SESSIONS_OF_A_SENDER):
            await open_.ask("tools/call", client(connection=f"c{number}"), **COUNT)
        with pytest.raises(GatewayError) as caught:
            await open_.ask("tools/call", client(connection="one more"), **COUNT)
        assert caught.value.code == protocol.TOO_MANY_REQUESTS


async def test_a_question_in_a_session_parks_it_and_the_answer_goes_to_the_same_server() -> None:
    async with opened("modern", **STATEFUL, ask=Ask(elicitation=True)) as open_:
        mine = client(elicitation={})
        first = await open_.ask("tools/call", mine, name="who", arguments={})
        assert open_.spine.broker.is_frozen(session_of(open_))
        answers = {name: {"action": "decline"} for name in first["inputRequests"]}
        done = await open_.ask(
            "tools/call", mine, name="who", arguments={}, requestState=first["requestState"], inputResponses=answers
        )
        assert "decline" in said(done)
        assert said(await open_.ask("tools/call", mine, **COUNT)) == "1"


async def test_a_server_that_does_not_come_up_says_why() -> None:
    async with opened("modern", **STATEFUL) as open_:
        await open_.ask("tools/list")
        open_.spine.broker.fail_next = True
        died = await open_.ask("tools/call", **COUNT)
        assert died["isError"]
        assert open_.spine.broker.boxes == {}


async def test_closing_the_gateway_ends_every_session() -> None:
    async with opened("legacy", **STATEFUL) as open_:
        await open_.ask("tools/call", client(connection=None), Told(), **COUNT)
        await open_.ask("tools/call", client("legacy"), Told(), **COUNT)
        spine = open_.spine
    assert spine.broker.boxes == {}
    assert {outcome.result for call, outcome in spine.outcomes if call.kind is Kind.SESSION} == {Result.OK}
