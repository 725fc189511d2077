"""Servers that stand by: started ahead, each for one call, never for two, and never as what a call does not want (rule 27)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import client, opened

from fumehood.faults import Refused
from fumehood.gateway.pool import FRONT_DOOR, MOST_FAILURES
from fumehood.model import Ask, Deny, Image, Kind, Pool, Result, WorkspaceMode
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio

NOTHING: dict[str, Any] = {"workspace": WorkspaceMode.NONE}
ONE: dict[str, Any] = {"pool": Pool(started=1), **NOTHING}
COUNT = {"name": "count", "arguments": {}}


def said(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


def ready(open_: Any) -> list[str]:
    """The tasks of those that a call could have."""
    places = [place for upstream in open_.front._routes.upstreams for place in upstream._pool._places]
    return [place.standby.task for place in places if place.standby.is_ready]


async def standing(open_: Any, number: int = 1) -> list[str]:
    """The tasks of those that stand by, once they are as many and there is no box but theirs."""
    with anyio.fail_after(15):
        while len(ready(open_)) != number or {*ready(open_)} != {*open_.spine.broker.boxes}:  # noqa: ASYNC110 - no event tells
            await anyio.sleep(0.02)
    return ready(open_)


def calls(open_: Any, kind: Kind) -> list[Any]:
    return [call for call, _ in open_.spine.outcomes if call.kind is kind]


@pytest.mark.parametrize("server", ["modern", "legacy"])
@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_call_gets_a_server_that_stood_by_and_the_next_another(era: str, server: str) -> None:
    async with opened(server, **ONE) as open_:
        mine = client(era)
        await open_.ask("tools/list", mine)
        hosts = []
        for _ in range(3):
            hosts += await standing(open_)
            assert open_.spine.broker.is_frozen(hosts[-1])
            assert said(await open_.ask("tools/call", mine, **COUNT)) == "1"
        assert len({*hosts}) == 3
        assert [call.standby for call in calls(open_, Kind.TOOL)] == hosts
        await standing(open_)
        ended = [(call, outcome) for call, outcome in open_.spine.outcomes if call.kind is Kind.STANDBY]
        assert [call.task for call, _ in ended] == hosts
        assert {(call.front_door, outcome.result) for call, outcome in ended} == {(FRONT_DOOR, Result.OK)}
        assert {call.sender.name for call, _ in ended} == {"fumehood"}, "it was started for no sender"


async def test_a_call_that_finds_none_ready_has_a_box_of_its_own() -> None:
    async with opened("modern", **ONE) as open_:
        assert said(await open_.ask("tools/call", **COUNT)) == "1"
        (call,) = calls(open_, Kind.TOOL)
        assert call.standby is None
        await standing(open_)


async def test_many_calls_at_once_never_share_a_server() -> None:
    async with opened("modern", pool=Pool(started=3), **NOTHING) as open_:
        await open_.ask("tools/list")
        await standing(open_, 3)
        answers: list[str] = []

        async def call() -> None:
            answers.append(said(await open_.ask("tools/call", **COUNT)))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(call)
        assert answers == ["1"] * 8
        used = [call.standby for call in calls(open_, Kind.TOOL) if call.standby is not None]
        assert len(used) == len({*used}) >= 3


async def test_a_client_that_declares_something_else_gets_no_server_that_was_told_otherwise() -> None:
    async with opened("legacy", **ONE) as open_:
        await open_.ask("tools/list")
        (host,) = await standing(open_)
        other = replace(client(), capabilities={"experimental": {"x": {}}})
        assert said(await open_.ask("tools/call", other, **COUNT)) == "1"
        assert [call.standby for call in calls(open_, Kind.TOOL)] == [None]
        with anyio.fail_after(15):
            while host in open_.spine.broker.boxes:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
        await standing(open_)


async def test_a_server_of_2026_that_stands_by_was_told_nothing_and_serves_whoever_declares_what() -> None:
    async with opened("modern", pool=Pool(started=2), **NOTHING) as open_:
        await open_.ask("tools/list")
        hosts = await standing(open_, 2)
        other = replace(client(), capabilities={"experimental": {"x": {}}})
        assert said(await open_.ask("tools/call", other, **COUNT)) == "1"
        (call,) = calls(open_, Kind.TOOL)
        readings = [call for call, _ in open_.spine.outcomes if call.front_door == "catalogue"]
        # Its lists are read for this client from one of them, and its call has the other.
        assert [readings[-1].standby, call.standby] == hosts


async def test_an_image_that_was_built_anew_drains_the_pool() -> None:
    async with opened("modern", **ONE) as open_:
        await open_.ask("tools/list")
        (host,) = await standing(open_)
        newer = Image(name="python", digest="sha256:" + "9" * 64, docker_id=None)
        open_.spine.ports.images.resolve = lambda _name: newer
        assert "tool_changed" in said(await open_.ask("tools/call", **COUNT))
        open_.spine.ledger.accept("count")
        assert said(await open_.ask("tools/call", **COUNT)) == "1"
        assert [call.standby for call in calls(open_, Kind.TOOL)] == [None, None]
        assert host in {call.task for call in calls(open_, Kind.STANDBY)}


@pytest.mark.parametrize("life", [Pool(started=1, age_s=0.3), Pool(started=1, idle_s=0.3)])
async def test_what_nobody_calls_ends_by_its_age_or_for_want_of_calls(life: Pool) -> None:
    async with opened("modern", pool=life, **NOTHING) as open_:
        await open_.ask("tools/list")
        await standing(open_)
        await standing(open_, 0)
        (call,) = calls(open_, Kind.STANDBY)
        assert open_.spine.ledger.closed[call.task].result is Result.OK


async def test_a_call_that_asks_in_the_middle_keeps_the_server_that_it_got() -> None:
    async with opened("modern", **ONE, ask=Ask(elicitation=True)) as open_:
        mine = client(elicitation={})
        await open_.ask("tools/list", mine)
        (host,) = await standing(open_)
        asked = await open_.ask("tools/call", mine, name="who", arguments={})
        assert asked["resultType"] == "input_required"
        state = asked["requestState"]
        answers = {"name": {"action": "accept", "content": {"name": "Ada"}}}
        told = await open_.ask("tools/call", mine, name="who", arguments={}, inputResponses=answers, requestState=state)
        assert "Ada" in said(told)
        assert [call.standby for call in calls(open_, Kind.TOOL)] == [host]


async def test_a_server_that_forks_before_its_call_is_not_offered_and_not_tried_for_ever() -> None:
    async with opened("forking", **ONE) as open_:
        for _ in range(MOST_FAILURES + 1):
            await open_.ask("tools/list")
            with anyio.fail_after(15):
                while open_.spine.broker.boxes:  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.02)
        outcomes = [outcome for call, outcome in open_.spine.outcomes if call.kind is Kind.STANDBY]
        assert [outcome.reason for outcome in outcomes] == [Reason.NOT_QUIET] * MOST_FAILURES
        assert "2 processes" in outcomes[0].detail
        assert said(await open_.ask("tools/call", **COUNT)) == "1"


async def test_what_could_not_begin_is_not_held_against_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("modern", **ONE) as open_:
        await open_.ask("tools/list")
        await standing(open_)
        stopped = Refused(Deny(reason=Reason.STOPPED, rule="stop"))
        make = open_.spine.broker.make

        async def refuse(task: str, frame: Any) -> Any:
            raise stopped if open_.spine.ledger.calls[task].kind is Kind.STANDBY else AssertionError(frame)

        monkeypatch.setattr(open_.spine.broker, "make", refuse)
        for _ in range(MOST_FAILURES + 2):
            for upstream in open_.front._routes.upstreams:
                upstream._pool.drain()
            refused = len(calls(open_, Kind.STANDBY))
            await open_.ask("tools/list")
            with anyio.fail_after(15):
                while len(calls(open_, Kind.STANDBY)) <= refused:  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.02)
        monkeypatch.setattr(open_.spine.broker, "make", make)
        await open_.ask("tools/list")
        await standing(open_)


async def test_a_server_that_writes_before_its_call_is_not_offered() -> None:
    async with opened("chatty", **ONE) as open_:
        await open_.ask("tools/list")
        with anyio.fail_after(15):
            while not calls(open_, Kind.STANDBY):  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
        (outcome,) = [outcome for call, outcome in open_.spine.outcomes if call.kind is Kind.STANDBY]
        assert outcome.reason is Reason.NOT_QUIET


async def test_a_call_cannot_name_a_server_of_its_own_accord() -> None:
    async with opened("modern", **ONE) as open_:
        await open_.ask("tools/list")
        (host,) = await standing(open_)
        for key in ("standby", "fumehood/standby", "fumehood/session"):
            assert said(await open_.ask("tools/call", **COUNT, _meta={**client_meta(), key: host})) == "1"
        asked = [call.standby for call in calls(open_, Kind.TOOL)]
        assert asked.count(host) == 1


def client_meta() -> dict[str, Any]:
    return {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
