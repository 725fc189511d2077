"""Prompts, resources, completion, logs and several servers: each request a call, each in either era of client and server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import SERVER, Told, client, opened
from local_gateway import SENDER, gateway_of, served
from local_runner import FakeSpine

from fumehood.gateway import lists, protocol
from fumehood.gateway.events import Event
from fumehood.gateway.protocol import GatewayError
from fumehood.model import Ask, Kind, Limits, Result
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio

ERAS = ["modern", "legacy"]
ALL: dict[str, Any] = {"prompts": None, "resources": None, "completion": True}

@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("server", ERAS)
async def test_prompts_and_resources_are_calls_with_records_of_their_own(era: str, server: str) -> None:
    async with opened(server, **ALL) as open_:
        mine = client(era)
        assert [each["name"] for each in (await open_.ask("prompts/list", mine))["prompts"]] == ["greet", "secret"]
        assert [each["uri"] for each in (await open_.ask("resources/list", mine))["resources"]] == ["memo://one", "memo://two"]
        found = (await open_.ask("resources/templates/list", mine))["resourceTemplates"]
        assert [each["uriTemplate"] for each in found] == ["memo://{name}"]
        got = await open_.ask("prompts/get", mine, name="greet", arguments={"who": "Ada"})
        assert got["messages"][0]["content"]["text"] == "Hello, Ada"
        read = await open_.ask("resources/read", mine, uri="memo://three")
        assert read["contents"] == [{"uri": "memo://three", "text": "read", "x-unknown": 1}]
        done = await open_.ask(
            "completion/complete", mine, ref={"type": "ref/prompt", "name": "greet"}, argument={"name": "who", "value": "A"}
        )
        assert done["completion"]["values"] == ["greet", "A"]
        calls = [(call.kind, call.tool, outcome.result) for call, outcome in open_.spine.outcomes]
        assert calls == [
            (Kind.COMMAND, None, Result.OK),
            (Kind.PROMPT, "greet", Result.OK),
            (Kind.RESOURCE, "memo://three", Result.OK),
            (Kind.COMPLETION, "greet", Result.OK),
        ]
        assert len(set(open_.spine.pids)) == 4, "each in a box of its own"
        assert got["_meta"][protocol.TASK_KEY] == open_.spine.outcomes[1][0].task


async def test_what_the_profile_does_not_name_is_neither_listed_nor_run() -> None:
    allows: dict[str, Any] = {"prompts": frozenset({"greet"}), "resources": frozenset({"memo://one"}), "completion": True}
    async with opened("modern", **allows) as open_:
        assert [each["name"] for each in (await open_.ask("prompts/list"))["prompts"]] == ["greet"]
        assert [each["uri"] for each in (await open_.ask("resources/list"))["resources"]] == ["memo://one"]
        before = len(open_.spine.pids)
        for method, params in (
            ("prompts/get", {"name": "secret"}),
            ("resources/read", {"uri": "memo://two"}),
            ("completion/complete", {"ref": {"type": "ref/prompt", "name": "secret"}, "argument": {"name": "a", "value": ""}}),
            ("resources/subscribe", {"uri": "memo://two"}),
        ):
            with pytest.raises(GatewayError) as caught:
                await open_.ask(method, **params)
            assert caught.value.code == protocol.INVALID_PARAMS
        assert len(open_.spine.pids) == before
        assert {outcome.reason for _, outcome in open_.spine.outcomes} == {None, Reason.NOT_ALLOWED}


async def test_a_servers_own_error_reaches_the_client_with_its_code() -> None:
    async with opened("legacy", **ALL) as open_:
        with pytest.raises(GatewayError) as caught:
            await open_.ask("resources/read", uri="other://x")
        assert (caught.value.code, caught.value.data) == (-32002, {"uri": "other://x"})
        assert open_.spine.outcomes[-1][1].reason is Reason.SERVER_ERROR


async def test_two_servers_have_prefixed_names_and_each_gets_its_own() -> None:
    async with opened("modern", "legacy", **ALL) as open_:
        names = [tool["name"] for tool in (await open_.ask("tools/list"))["tools"]]
        assert {"a__count", "b__count"} <= set(names)
        assert len(names) == len(set(names))
        first = await open_.ask("tools/call", name="b__pid", arguments={})
        assert int(first["content"][0]["text"]) == open_.spine.pids[-1]
        got = await open_.ask("prompts/get", name="a__greet", arguments={"who": "B"})
        assert got["messages"][0]["content"]["text"] == "Hello, B"
        for name in ("count", "c__count", "__count", "a__", "a"):
            with pytest.raises(GatewayError):
                await open_.ask("tools/call", name=name, arguments={})
        # Both have it: whose it is may not be guessed.
        with pytest.raises(GatewayError, match="more than one"):
            await open_.ask("resources/read", uri="memo://one")


async def test_a_server_that_cannot_be_listed_does_not_hide_the_others() -> None:
    spine = FakeSpine()
    servers = [served((sys.executable, SERVER, "modern"), name="good"), served((sys.executable, "-c", "1/0"), name="bad")]
    async with gateway_of(servers, spine) as front:
        listed = await front.answer(client(), "tools/list", {}, Told())
        assert {tool["name"].partition("__")[0] for tool in listed["tools"]} == {"good"}


async def test_log_lines_reach_a_client_that_wants_them_and_no_other() -> None:
    async with opened("modern", **ALL) as open_:
        wants, silent = Told(), Told()
        await open_.ask("tools/call", channel=silent, name="log", arguments={})
        level = {protocol.LOG_LEVEL_KEY: "warning"}
        said = await open_.ask("tools/call", channel=wants, name="log", arguments={}, _meta=level)
        assert said["content"][0]["text"] == "warning", "the level went upstream"
        assert silent.notes == []
        assert [params["level"] for _, params in wants.notes] == ["warning", "error"]


async def test_an_older_clients_level_holds_for_its_connection_and_reaches_an_older_server() -> None:
    async with opened("legacy", **ALL) as open_:
        mine, channel = client("legacy"), Told()
        await open_.ask("logging/setLevel", mine, level="error")
        said = await open_.ask("tools/call", mine, channel, name="log", arguments={})
        assert said["content"][0]["text"] == "error"
        assert [params["level"] for _, params in channel.notes] == ["error"]
        with pytest.raises(GatewayError):
            await open_.ask("logging/setLevel", mine, level="loud")


async def test_a_resource_that_changes_is_told_to_who_subscribed() -> None:
    async with opened("legacy", **ALL) as open_:
        heard: list[Event] = []
        open_.front.events.subscribe(heard.append)
        await open_.ask("resources/subscribe", client("legacy", "c1"), uri="memo://one")
        await open_.ask("resources/subscribe", client("legacy", "c2"), uri="memo://two")
        await open_.ask("tools/call", client("legacy", "c3"), name="touch", arguments={})
        assert heard == [Event("resource", "memo://one", SENDER, frozenset({"c1"}))]
        await open_.ask("resources/unsubscribe", client("legacy", "c1"), uri="memo://one")
        await open_.ask("tools/call", name="touch", arguments={"uri": "file:///etc/passwd"})
        assert heard[-1].connections == frozenset()


async def test_a_reload_swaps_the_servers_and_lets_a_call_in_flight_finish() -> None:
    async with opened("modern") as open_:
        heard: list[Event] = []
        open_.front.events.subscribe(heard.append)
        results: list[dict[str, Any]] = []
        async with anyio.create_task_group() as tasks:

            async def slow() -> None:
                results.append(await open_.ask("tools/call", name="nap", arguments={"seconds": 1}))

            tasks.start_soon(slow)
            await open_.spine.started.wait()
            await anyio.sleep(0.3)
            open_.front.serve([served((sys.executable, SERVER, "legacy"), name="new"), served(("x",), name="other")])
            assert [event.kind for event in heard] == ["tools", "prompts", "resources"]
        assert results[0]["content"][0]["text"] == "rested"
        assert (await open_.ask("tools/call", name="new__count", arguments={}))["content"][0]["text"] == "1"


async def test_progress_holds_off_the_idle_limit_and_silence_does_not() -> None:
    spine = FakeSpine()
    one = served((sys.executable, SERVER, "modern"))
    limits = Limits(wall_s=20, idle_s=0.6)
    one = replace(one, profile=replace(one.profile, limits=limits))
    async with gateway_of([one], spine) as front:
        params = {"name": "chatter", "arguments": {}, "_meta": {"progressToken": 1}}
        done = await front.answer(client(), "tools/call", params, Told())
        assert done["content"][0]["text"] == "done"
        quiet = await front.answer(client(), "tools/call", {"name": "nap", "arguments": {"seconds": 5}}, Told())
        assert quiet["_meta"][protocol.OUTCOME_KEY]["reason"] == Reason.IDLE


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1200])
async def test_a_long_list_comes_in_pages_that_join_up(count: int) -> None:
    entries = [{"name": f"t{number}"} for number in range(count)]
    found: list[Mapping[str, Any]] = []
    cursor: str | None = None
    while True:
        page = lists.page("tools", entries, cursor, modern=True)
        found += page["tools"]
        cursor = page.get("nextCursor")
        if cursor is None:
            break
        with pytest.raises(GatewayError, match="changed"):
            lists.page("tools", [*entries, {"name": "new"}], cursor, modern=True)
    assert found == entries
    for bad in ("", "x", "!!!!", 7, "MDAw"):
        with pytest.raises(GatewayError):
            lists.page("tools", entries, bad, modern=False)


def test_ask_defaults_are_off() -> None:
    assert (Ask().elicitation, Ask().sampling) == (False, False)
