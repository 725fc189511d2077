"""A request that is sent again is answered again, and nothing runs twice, by attack: others' keys, other requests, other rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import Open, client, opened
from local_runner import FakeSpine

import fakes
from fumehood.execution import Command
from fumehood.gateway import protocol
from fumehood.gateway.protocol import GatewayError
from fumehood.lifecycle import State
from fumehood.model import Ask, Outcome, Oversize, Result, Scope, Sender
from fumehood.policies.cedar import Source
from fumehood.policies.config import PolicyConfig
from fumehood.policies.policy import made
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio

KEY = "f3c1a7be-0000-4000-8000-000000000001"
NAP = {"name": "nap", "arguments": {"seconds": 0.3}}
# As over HTTP: a stream may be lost there.
STATELESS = replace(client(connection=None), has_left=lambda: True)


async def call(open_: Open, key: Any = KEY, asking: Any = None, method: str = "tools/call", **params: Any) -> dict[str, Any]:
    meta = {} if key is None else {protocol.IDEMPOTENCY_KEY: key}
    return await open_.ask(method, asking, **(params or NAP), _meta=meta)


def runs(spine: FakeSpine) -> int:
    """How many calls came to a running server, beside the readings of its lists."""
    of_clients = {task for task, one in spine.ledger.calls.items() if one.front_door == "gateway"}
    return len({task for task, state, _ in spine.ledger.events if state == State.RUNNING} & of_clients)


def reason_of(result: dict[str, Any]) -> str:
    return str(result["_meta"][protocol.OUTCOME_KEY]["reason"])


def outcome_of(spine: FakeSpine, result: dict[str, Any]) -> Outcome:
    return spine.ledger.closed[result["_meta"][protocol.TASK_KEY]]


@pytest.mark.parametrize("again", ["modern", "legacy"])
async def test_a_request_that_is_sent_again_gets_the_answer_of_the_first_and_a_record_of_its_own(again: str) -> None:
    async with opened("modern") as open_:
        first = await call(open_)
        second = await call(open_, asking=client(again))
        assert second["content"] == first["content"]
        assert runs(open_.spine) == 1
        assert second["_meta"][protocol.REPEATS_KEY] == first["_meta"][protocol.TASK_KEY] != second["_meta"][protocol.TASK_KEY]
        assert protocol.REPEATS_KEY not in first["_meta"]
        told = outcome_of(open_.spine, second)
        assert (told.result, told.reason) == (Result.REPEATED, Reason.REPEATED)
        assert told.repeats is not None
        assert told.repeats.result is Result.OK


async def test_equal_requests_without_a_key_are_meant_twice() -> None:
    async with opened("modern") as open_:
        await call(open_, None)
        await call(open_, None)
        assert runs(open_.spine) == 2


async def test_twenty_at_once_run_once() -> None:
    async with opened("modern") as open_:
        answers: list[dict[str, Any]] = []

        async def one() -> None:
            answers.append(await call(open_))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)
        assert runs(open_.spine) == 1
        assert len(answers) == 20
        assert all(answer["content"] == answers[0]["content"] for answer in answers)
        assert sum(protocol.REPEATS_KEY not in answer["_meta"] for answer in answers) == 1


@pytest.mark.parametrize(
    "stranger",
    [Sender(uid=0, name="somebody else"), Sender(uid=1, name="tester"), Sender(uid=0, name="tester", tenant="other")],
)
async def test_the_key_of_another_sender_is_another_key(stranger: Sender) -> None:
    async with opened("modern") as open_:
        first = await call(open_)
        mine = replace(client(), sender=stranger)
        theirs = await call(open_, asking=mine, name="nap", arguments={"seconds": 0.1})
        assert protocol.REPEATS_KEY not in theirs["_meta"], "neither an answer nor a refusal tells that somebody has that key"
        if stranger.uid == client().sender.uid:
            assert theirs["content"] == first["content"]
            assert runs(open_.spine) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"name": "nap", "arguments": {"seconds": 0.4}},
        {"name": "nap", "arguments": {"seconds": 0.3, "x": None}},
        {"name": "count", "arguments": {"seconds": 0.3}},
        {"name": "nap", "arguments": {"seconds": 0.3}, "inputResponses": {}},
    ],
)
async def test_a_key_is_of_one_request_only(other: dict[str, Any]) -> None:
    async with opened("modern", ask=Ask(elicitation=True)) as open_:
        await call(open_)
        refused = await call(open_, **other)
        assert reason_of(refused) == Reason.KEY_REUSED
        assert outcome_of(open_.spine, refused).result is Result.REFUSED
        assert runs(open_.spine) == 1


async def test_what_is_written_in_another_way_is_the_same_request() -> None:
    async with opened("modern") as open_:
        await call(open_, name="nap", arguments={"seconds": 0, "a": [1.0]})
        again = await call(open_, arguments={"a": [1], "seconds": 0.0}, name="nap")
        assert protocol.REPEATS_KEY in again["_meta"]


async def test_a_key_under_another_profile_gives_neither_the_old_answer_nor_a_second_run() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        await call(open_)
    async with opened("modern", spine=spine) as later:
        upstream = later.front._routes.upstreams[0]
        upstream.served = replace(upstream.served, profile=replace(upstream.profile, digest="sha256:" + "9" * 64))
        refused = await call(later)
        assert reason_of(refused) == Reason.KEY_REUSED
        assert "profile" in refused["content"][0]["text"]
    assert runs(spine) == 1


async def test_a_key_under_another_policy_gives_neither_the_old_answer_nor_a_second_run() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        await call(open_)
        never = Source(name="a.cedar", text='forbid (principal, action, resource == Tool::"another/tool");')
        spine.ports.policies.adopt(made(PolicyConfig(), [never]))
        refused = await call(open_)
        assert reason_of(refused) == Reason.KEY_REUSED
        assert "another policy" in refused["content"][0]["text"]
    assert runs(spine) == 1


async def test_a_tool_that_is_no_longer_allowed_is_refused_and_its_old_answer_not_given() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        await call(open_)
    async with opened("modern", spine=spine, tools=frozenset({"count"})) as later:
        with pytest.raises(GatewayError, match=Reason.TOOL_NOT_ALLOWED):
            await call(later)


async def test_a_sender_that_may_no_longer_call_is_refused_and_gets_no_old_answer() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        await call(open_)
        spine.ports = replace(spine.ports, owner_uid=spine.ports.owner_uid + 1)
        refused = await call(open_)
        assert reason_of(refused) == Reason.SENDER_DENIED
        assert "rested" not in str(refused)


async def test_a_refusal_does_not_use_up_a_key() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        await open_.ask("tools/list")
        spine.broker.fail_next = True
        failed = await call(open_)
        assert reason_of(failed) == Reason.BOX_FAILED, "no box could be made, so nothing ran"
        done = await call(open_)
        assert done["content"][0]["text"] == "rested"
        assert protocol.REPEATS_KEY not in done["_meta"]


async def test_an_error_of_the_tool_and_a_failure_are_answers_too() -> None:
    async with opened("modern", wall_s=1) as open_:
        first = await call(open_, name="nap", arguments={"seconds": 30})
        assert reason_of(first) == Reason.WALL
        again = await call(open_, name="nap", arguments={"seconds": 30})
        assert again["content"] == first["content"], "word for word"
        assert again["_meta"][protocol.REPEATS_KEY] == first["_meta"][protocol.TASK_KEY]
        assert runs(open_.spine) == 1


async def test_an_error_without_a_result_is_repeated_as_an_error() -> None:
    async with opened("modern", resources=None) as open_:
        errors = []
        for _ in range(2):
            with pytest.raises(GatewayError) as caught:
                await call(open_, method="resources/read", uri="none://x")
            errors.append((caught.value.code, caught.value.message, caught.value.data))
        assert errors[0] == errors[1] == (protocol.RESOURCE_NOT_FOUND, "no such resource", {"uri": "none://x"})
        assert runs(open_.spine) == 1


async def test_what_was_pruned_is_said_to_be_gone_and_does_not_run_again() -> None:
    async with opened("modern") as open_:
        first = await call(open_)
        open_.spine.ledger.kept_bytes.clear()
        for _ in range(2):
            refused = await call(open_)
            assert reason_of(refused) == Reason.RESULT_GONE
            assert first["_meta"][protocol.TASK_KEY] in refused["content"][0]["text"]
        assert runs(open_.spine) == 1


async def test_a_result_that_cannot_be_kept_is_given_once_and_said_to_be_gone_after() -> None:
    async with opened("modern") as open_:
        await open_.ask("tools/list")
        open_.spine.ledger.room_bytes = 1
        first = await call(open_)
        assert first["content"][0]["text"] == "rested"
        assert "cannot be repeated" in outcome_of(open_.spine, first).detail
        assert reason_of(await call(open_)) == Reason.RESULT_GONE


async def test_a_call_that_was_lost_is_lost_for_whoever_asks_again() -> None:
    spine = FakeSpine()
    async with opened("modern", spine=spine) as open_:
        first = await call(open_)
        task = first["_meta"][protocol.TASK_KEY]
        spine.ledger.closed[task] = Outcome(task=task, result=Result.LOST, reason=Reason.RUNTIME_DIED)
        again = await call(open_)
        assert reason_of(again) == Reason.RUNTIME_DIED
        assert again["_meta"][protocol.OUTCOME_KEY]["result"] == Result.LOST
        assert "rested" not in str(again), "even if its result was on disk: nobody knows whether it was whole"
        assert runs(spine) == 1


async def test_a_lost_stream_does_not_end_a_call_with_a_key_and_the_next_request_has_its_answer() -> None:
    async with opened("modern") as open_:
        await open_.ask("tools/list")
        with anyio.move_on_after(0.1) as lost:
            await call(open_, asking=STATELESS, name="nap", arguments={"seconds": 0.6})
        assert lost.cancelled_caught
        again = await call(open_, asking=STATELESS, name="nap", arguments={"seconds": 0.6})
        assert again["content"][0]["text"] == "rested"
        assert runs(open_.spine) == 1


async def test_a_request_that_is_cancelled_on_its_connection_ends_its_call_with_a_key_or_without() -> None:
    async with opened("modern") as open_:
        await open_.ask("tools/list")
        with anyio.move_on_after(0.1):
            await call(open_, name="nap", arguments={"seconds": 30})
        again = await call(open_, name="nap", arguments={"seconds": 30})
        assert reason_of(again) == Reason.CANCELLED
        assert runs(open_.spine) == 1


async def test_cancelling_a_repeat_does_not_cancel_the_call_that_it_waits_for() -> None:
    async with opened("modern") as open_:
        await open_.ask("tools/list")
        answers: list[dict[str, Any]] = []

        async def first() -> None:
            answers.append(await call(open_, name="nap", arguments={"seconds": 1}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await anyio.sleep(0.3)
            with anyio.move_on_after(0.1):
                await call(open_, name="nap", arguments={"seconds": 1})
        assert answers[0]["content"][0]["text"] == "rested"


async def test_a_repeat_waits_no_longer_than_it_may_run_and_starts_nothing() -> None:
    async with opened("modern", wall_s=3) as open_:
        await open_.ask("tools/list")
        upstream = open_.front._routes.upstreams[0]

        async def first() -> None:
            with anyio.move_on_after(2):
                await call(open_, name="nap", arguments={"seconds": 30})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await anyio.sleep(0.3)
            limits = replace(upstream.profile.limits, wall_s=0.3)
            upstream.served = replace(upstream.served, profile=replace(upstream.profile, limits=limits))
            refused = await call(open_, name="nap", arguments={"seconds": 30})
            assert reason_of(refused) == Reason.IN_PROGRESS
        assert runs(open_.spine) == 1


async def test_the_rounds_of_one_request_are_one_call() -> None:
    async with opened("modern", ask=Ask(elicitation=True)) as open_:
        mine = client(elicitation={})
        first = await call(open_, asking=mine, name="who", arguments={})
        (name,) = first["inputRequests"]
        answers = {name: {"action": "decline"}}
        second = await open_.ask(
            "tools/call", mine, name="who", arguments={}, requestState=first["requestState"], inputResponses=answers,
            _meta={protocol.IDEMPOTENCY_KEY: KEY},
        )  # fmt: skip
        again = await call(open_, asking=mine, name="who", arguments={})
        assert again["content"] == second["content"], "who lost the last answer begins again, and is asked nothing"
        assert runs(open_.spine) == 1


async def test_a_repeat_of_a_task_is_a_task_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fumehood.gateway.front.TASK_PATIENCE_S", 0.05)
    async with opened("modern") as open_:
        mine = client(extensions={protocol.TASKS_EXTENSION: {}})
        tasks = [(await call(open_, asking=mine, name="nap", arguments={"seconds": 0.5}))["taskId"] for _ in range(2)]
        assert tasks[0] != tasks[1]
        found = []
        with anyio.fail_after(10):
            for task in tasks:
                while (shown := await open_.ask("tasks/get", mine, taskId=task))["status"] == "working":  # noqa: ASYNC110 - as the client polls
                    await anyio.sleep(0.02)
                found.append(shown["result"])
        assert found[0]["content"] == found[1]["content"]
        assert runs(open_.spine) == 1


async def test_a_kept_server_is_not_asked_twice() -> None:
    async with opened("modern", scope=Scope.SESSION) as open_:
        first = await call(open_, name="count", arguments={})
        again = await call(open_, name="count", arguments={})
        after = await call(open_, None, name="count", arguments={})
        texts = [each["content"][0]["text"] for each in (first, again, after)]
        assert texts == ["1", "1", "2"]


async def test_a_result_over_the_limit_is_linked_to_where_the_first_call_left_it() -> None:
    async with opened("modern", results=Oversize.SPILL, result_bytes=65536) as open_:
        first = await call(open_, name="big", arguments={"bytes": 200_000})
        again = await call(open_, name="big", arguments={"bytes": 200_000})
        assert first["content"][1]["type"] == "resource_link"
        assert again["content"] == first["content"]
        read = await open_.ask("resources/read", uri=again["content"][1]["uri"])
        assert len(read["contents"][0]["text"]) > 200_000


@pytest.mark.parametrize(
    "key", ["", "1", "k" * 15, "k" * 129, "k" * 100_000, "a key with blanks in it", "ключ-" * 5, "k" * 20 + "\n", 7, 2.0**60, True, [], {}]
)
async def test_what_is_no_key_is_refused_before_anything_is_done(key: Any) -> None:
    async with opened("modern") as open_:
        with pytest.raises(GatewayError) as caught:
            await call(open_, key)
        assert caught.value.code == protocol.INVALID_PARAMS
        assert runs(open_.spine) == 0


async def test_a_request_without_a_canonical_form_has_no_key() -> None:
    async with opened("modern") as open_:
        with pytest.raises(GatewayError, match="canonical form"):
            await call(open_, name="nap", arguments={"seconds": 0, "n": 2**53 + 1})


async def test_without_the_ledger_a_call_with_a_key_does_not_run() -> None:
    async with opened("modern") as open_:
        await open_.ask("tools/list")
        open_.spine.ledger.gone = True
        assert reason_of(await call(open_)) == Reason.LEDGER_UNAVAILABLE
        assert runs(open_.spine) == 0


async def test_a_prompt_and_a_resource_are_repeated_like_a_tool() -> None:
    async with opened("modern", resources=None, prompts=None) as open_:
        for method, asked in (("prompts/get", {"name": "greet", "arguments": {"who": "Ada"}}), ("resources/read", {"uri": "memo://one"})):
            answers = [await call(open_, KEY + method, method=method, **asked) for _ in range(2)]
            assert protocol.REPEATS_KEY in answers[1]["_meta"]
            assert {**answers[0], "_meta": None} == {**answers[1], "_meta": None}
        assert runs(open_.spine) == 2


async def test_what_cannot_be_kept_cannot_have_a_key() -> None:
    spine = FakeSpine()
    one = replace(fakes.call(tool=None), idempotency_key=KEY, request_digest="sha256:1")
    one = replace(one, sender=client().sender)
    outcome = await spine.run(one, Command(("true",)))
    assert (outcome.result, outcome.reason, outcome.rule) == (Result.REFUSED, Reason.BAD_REQUEST, "once.work")
