"""What a client, or a server behind the gateway, tries on the wire. Each test is named by the attack."""

from __future__ import annotations

import json
import time
from typing import Any

import anyio
import pytest
from peer import media
from raw_client import ENVELOPE, connect

from fakes import FakeLedger
from fumehood.gateway import protocol
from fumehood.model import Ask, Result
from fumehood.reasons import Reason
from signed import Signer, challenge_of, proofs

pytestmark = pytest.mark.anyio


def text_of(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


def outcome_of(result: dict[str, Any]) -> dict[str, Any]:
    found = result["_meta"][protocol.OUTCOME_KEY]
    assert isinstance(found, dict)
    return found


async def call_with_id(number: str) -> dict[str, Any]:
    async with connect() as client:
        params = {"name": "echo", "arguments": {}, "_meta": ENVELOPE}
        await client.write(f'{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{json.dumps(params)}}}')
        answer = await client.read()
        assert client.spine.outcomes == []
        return answer


@pytest.mark.parametrize("number", ["true", "1.0", "null", "[1]", "1e0", "-0.0", str(2**63)])
async def test_an_id_that_is_none_does_not_turn_a_call_into_a_notification(number: str) -> None:
    answer = await call_with_id(number)
    assert answer["error"]["code"] == protocol.INVALID_REQUEST
    assert answer["id"] is None


async def test_a_call_sent_as_a_notification_starts_nothing() -> None:
    async with connect() as client:
        await client.send(method="tools/call", params={"name": "echo", "arguments": {}, "_meta": ENVELOPE})
        assert (await client.request(2, "server/discover"))["result"]["supportedVersions"] == ["2026-07-28"]
        assert client.spine.outcomes == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ('{"a":NaN}', "NaN"),
        ('{"a":-Infinity}', "Infinity"),
        ('{"a":1e400}', "double"),
        ('{"a":1,"a":2}', "duplicate"),
        ('{"a":"\\ud800"}', "surrogate"),
        ('{"a":' + "9" * 400 + "}", "double"),
    ],
)
async def test_arguments_that_parsers_read_differently_are_refused(arguments: str, word: str) -> None:
    async with connect() as client:
        params = f'{{"name":"echo","arguments":{arguments},"_meta":{json.dumps(ENVELOPE)}}}'
        await client.write(f'{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{params}}}')
        answer = await client.read()
        assert answer["id"] == 7
        assert answer["error"]["code"] == protocol.PARSE_ERROR
        assert word in answer["error"]["message"]
        assert client.spine.outcomes == []


@pytest.mark.parametrize(
    "frame",
    [
        "[" * 100_000,
        '{"jsonrpc":"2.0","id":1,"method":"ping","params":' + '{"a":' * 65 + "1" + "}" * 66,
        '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":[' + "0," * 600_000 + "0]}}",
        b"\xff\xfe",
        "not json",
        "[]",
        '[{"jsonrpc":"2.0","id":1,"method":"ping"}]',
        '{"jsonrpc":"2.0","id":null,"method":"ping","smuggled":1}',
    ],
    ids=["deep", "deep object", "many values", "bytes", "words", "empty batch", "batch", "unknown member"],
)
async def test_a_frame_that_is_no_message_is_answered_and_the_connection_lives(frame: str) -> None:
    async with connect() as client:
        await client.write(frame)
        answer = await client.read()
        assert answer["error"]["code"] in (protocol.PARSE_ERROR, protocol.INVALID_REQUEST)
        assert text_of(await client.call("echo", a=1)) == '{"a": 1}'


async def test_a_frame_without_an_end_is_not_kept_in_memory() -> None:
    async with connect() as client:
        for _ in range(5):
            await client.write(b"x" * 2**20 + b" ")
            # No newline reaches the gateway inside the first four mebibytes but these.
        await client.write('{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"' + "x" * (5 * 2**20) + '"}}')
        seen = [await client.read() for _ in range(6)]
        assert seen[-1]["error"]["message"].startswith("a message is over")
        assert text_of(await client.call("echo", a=1)) == '{"a": 1}'


async def test_a_second_request_with_an_id_under_way_does_not_take_over_the_first() -> None:
    async with connect() as client:
        params = {"name": "hang", "arguments": {}, "_meta": ENVELOPE}
        await client.send(id=5, method="tools/call", params=params)
        await client.send(id="5", method="tools/call", params={**params, "name": "echo"})
        answer = await client.read()
        assert answer["id"] is None
        assert "has this id" in answer["error"]["message"]


async def test_more_requests_than_are_carried_are_refused_by_name() -> None:
    async with connect() as client:
        params = {"name": "hang", "arguments": {}, "_meta": ENVELOPE}
        for number in range(65):
            await client.send(id=number, method="tools/call", params=params)
        answer = await client.read()
        assert answer["id"] == 64
        assert answer["error"]["code"] == protocol.TOO_MANY_REQUESTS


async def test_a_call_without_a_listing_is_judged_by_the_pinned_catalogue() -> None:
    async with connect() as client:
        refused = await client.call("nested", who={"name": "x", "admin": True})
        assert outcome_of(refused)["reason"] == Reason.ARGUMENTS_INVALID
        assert refused["isError"] is True
        assert "admin" in text_of(refused)
        assert outcome_of(await client.call("nested", 2, top=1))["reason"] == Reason.ARGUMENTS_INVALID
        assert json.loads(text_of(await client.call("nested", 3, who={"name": "x"}))) == {"who": {"name": "x"}}
        doors = [call.front_door for call, _ in client.spine.outcomes]
        assert doors == ["catalogue", "gateway", "gateway", "gateway"]


async def test_a_tool_that_is_not_allowed_is_neither_listed_nor_called() -> None:
    async with connect(tools=frozenset({"echo"})) as client:
        refused = await client.request(1, "tools/call", name="media", arguments={})
        assert refused["error"]["code"] == protocol.INVALID_PARAMS
        assert refused["error"]["data"]["reason"] == Reason.TOOL_NOT_ALLOWED
        assert client.spine.pids == []
        call, outcome = client.spine.outcomes[0]
        assert (call.tool, outcome.result, call.task) == ("media", Result.REFUSED, refused["error"]["data"]["task"])
        listed = (await client.request(2, "tools/list"))["result"]["tools"]
        assert [tool["name"] for tool in listed] == ["echo"]


async def test_no_tool_is_allowed_by_an_empty_list() -> None:
    async with connect(tools=frozenset()) as client:
        assert (await client.request(1, "tools/list"))["result"]["tools"] == []
        assert "error" in await client.request(2, "tools/call", name="echo", arguments={})


async def test_an_unknown_tool_leaves_a_closed_record_and_a_typed_error() -> None:
    async with connect() as client:
        refused = await client.request(1, "tools/call", name="no\u202esuch", arguments={})
        assert refused["error"]["data"]["reason"] == Reason.TOOL_UNKNOWN
        assert "\u202e" not in refused["error"]["message"]
        assert client.spine.outcomes[-1][1].reason is Reason.TOOL_UNKNOWN


async def test_a_schema_that_fetches_is_never_fetched_and_its_tool_not_offered() -> None:
    async with connect() as client:
        listed = (await client.request(1, "tools/list"))["result"]["tools"]
        assert "remote" not in [tool["name"] for tool in listed]
        refused = await client.call("remote", 2, a="x")
        assert outcome_of(refused)["reason"] == Reason.SCHEMA_UNUSABLE


async def test_a_catastrophic_pattern_of_a_server_does_not_stop_the_gateway() -> None:
    async with connect() as client:
        await client.request(1, "tools/list")
        began_s = time.monotonic()
        refused = await client.call("catastrophic", 2, a="a" * 40 + "!")
        assert time.monotonic() - began_s < 2
        assert outcome_of(refused)["reason"] == Reason.ARGUMENTS_INVALID
        assert "took more than" in text_of(refused)
        assert text_of(await client.call("catastrophic", 3, a="aaa")) == '{"a": "aaa"}'


async def test_authorization_and_proofs_of_the_client_never_go_upstream() -> None:
    alice = Signer()
    async with connect(proving=proofs(FakeLedger(senders={alice.kid: alice.known()}), "required")) as client:
        challenge = challenge_of(await client.request(0, "server/discover"))
        secrets = {"Authorization": "Bearer x", "traceparent": "00-1", "progressToken": "mine"}
        asked = {"name": "wire", "arguments": {}, "task": {"ttl": 1}, "_meta": {**ENVELOPE, **secrets}}
        message = await client.request(1, "tools/call", **alice.sign("tools/call", asked, challenge))
        sent = json.loads(text_of(message["result"]))
        assert len(sent) == 1, "a modern server is called in one message"
        params = sent[0]["params"]
        assert params.keys() == {"name", "arguments", "_meta"}
        assert params["_meta"].keys() == {*ENVELOPE, "progressToken"}
        assert params["_meta"]["progressToken"] != "mine"
        assert params["_meta"][protocol.CLIENT_INFO_KEY]["name"] == "fumehood"
        assert len(sent[0]["id"]) == 32
        assert sent[0]["id"] != params["_meta"]["progressToken"]


async def test_answers_with_guessed_ids_are_dropped() -> None:
    async with connect() as client:
        assert text_of(await client.call("forge")) == "true"


async def test_a_subprocess_writing_to_the_inherited_stdout_is_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connect() as client:
        assert text_of(await client.call("subprocess_line")) == "done"
    assert "2 lines of the server's output were no messages" in caplog.text


async def test_progress_with_a_guessed_token_is_not_relayed() -> None:
    async with connect() as client:
        message = await client.request(1, "tools/call", name="progress", arguments={}, _meta={"progressToken": "mine"})
        assert client.progress == [
            {"progressToken": "mine", "progress": step, "total": 3, "message": f"step {step}"} for step in (1, 2, 3)
        ]
        assert json.loads(text_of(message["result"]))["token"] not in (None, "mine")


async def test_no_progress_without_a_token() -> None:
    async with connect() as client:
        assert json.loads(text_of(await client.call("progress"))) == {"token": None}
        assert client.progress == []


@pytest.mark.parametrize("mode", ["modern", "legacy"])
async def test_content_passes_byte_for_byte(mode: str) -> None:
    async with connect(mode=mode) as client:
        result = await client.call("media")
        wanted = media({})
        for member in ("content", "structuredContent", "x-unknown"):
            assert json.dumps(result[member]) == json.dumps(wanted[member])
        meta = result["_meta"]
        assert meta["example.org/kept"] == 1
        assert meta[protocol.TASK_KEY] == client.spine.outcomes[-1][0].task, "the server's forged member is gone"
        assert protocol.OUTCOME_KEY not in meta
        assert result["resultType"] == "complete"


async def test_definitions_are_listed_unchanged() -> None:
    async with connect() as client:
        listed = (await client.request(1, "tools/list"))["result"]
        echo = next(tool for tool in listed["tools"] if tool["name"] == "echo")
        assert echo == {
            "name": "echo",
            "inputSchema": {"type": "object", "additionalProperties": True},
            "x-unknown": [1.5],
        }
        assert len(listed["tools"]) > 5, "all pages are read"
        assert listed["resultType"] == "complete"


async def test_an_error_result_is_exempt_from_the_output_schema() -> None:
    async with connect() as client:
        result = await client.call("failing")
        assert result["isError"] is True
        assert text_of(result) == "the tool says no"
        assert protocol.OUTCOME_KEY not in result["_meta"]


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ("die", Reason.SERVER_DIED),
        ("nan", Reason.SERVER_GARBAGE),
        ("flood", Reason.SERVER_GARBAGE),
        ("long_line", Reason.RESULT_TOO_LARGE),
        ("huge", Reason.RESULT_TOO_LARGE),
        ("no_result", Reason.SERVER_GARBAGE),
        ("mrtr", Reason.INPUT_REQUIRED),
    ],
)
async def test_a_server_that_misbehaves_in_mid_call_gives_one_typed_result(tool: str, reason: Reason) -> None:
    async with connect() as client:
        result = await client.call(tool)
        assert result["isError"] is True
        assert outcome_of(result)["reason"] == reason
        assert text_of(result).startswith(f"fumehood: {reason.value}: ")
        assert text_of(result).isprintable()
        assert outcome_of(result)["task"] == result["_meta"][protocol.TASK_KEY]
        assert text_of(await client.call("echo", 2, a=1)) == '{"a": 1}'


async def test_a_servers_own_error_passes_with_its_code_and_cannot_drive_a_terminal() -> None:
    async with connect() as client:
        message = await client.request(1, "tools/call", name="error", arguments={})
        assert message["error"] == {"code": -32042, "message": "no \\u001b[31mway"}
        assert client.spine.outcomes[-1][1].reason is Reason.SERVER_ERROR


async def test_a_server_that_hangs_is_killed_by_its_wall_clock_limit() -> None:
    async with connect(wall_s=1) as client:
        told = outcome_of(await client.call("hang"))
        assert told == {
            "task": client.spine.outcomes[-1][0].task,
            "result": "killed",
            "reason": "wall",
            "rule": None,
            "asked": {"kind": "tool", "name": "hang", "server": "fake", "profile": "fake"},
            "detail": "",
            "remedy": Reason.WALL.remedy,
            "again": "changed",
        }


async def test_a_lone_surrogate_in_a_result_does_not_lose_the_result() -> None:
    async with connect() as client:
        assert text_of(await client.call("surrogate")) == "cut \ufffd here"


async def test_nobody_waits_for_a_server_that_will_not_shut_down() -> None:
    async with connect() as client:
        await client.request(1, "tools/list")
        began_s = time.monotonic()
        assert text_of(await client.call("stubborn", 2)) == "answered"
        assert time.monotonic() - began_s < 1


async def test_a_server_may_not_sample_or_elicit_and_sees_no_root_but_the_workspace() -> None:
    async with connect(mode="legacy") as client:
        sampling, elicitation, roots, ping = json.loads(text_of(await client.call("asks")))
        assert sampling["error"]["code"] == elicitation["error"]["code"] == protocol.METHOD_NOT_FOUND
        assert [root["uri"] for root in roots["result"]["roots"]] == ["file:///workspace"]
        assert ping["result"] == {}


async def test_the_list_is_pinned_for_each_set_of_client_capabilities() -> None:
    async with connect(ask=Ask(sampling=True)) as client:

        async def listed(number: int, capabilities: dict[str, Any]) -> bool:
            meta = {protocol.CAPABILITIES_KEY: capabilities}
            tools = (await client.request(number, "tools/list", _meta=meta))["result"]["tools"]
            return "for_samplers" in [tool["name"] for tool in tools]

        assert [await listed(1, {}), await listed(2, {"sampling": {}}), await listed(3, {})] == [False, True, False]
        assert len(client.spine.pids) == 2, "each set is read once"
        refused = await client.request(4, "tools/call", name="for_samplers", arguments={})
        assert refused["error"]["data"]["reason"] == Reason.TOOL_UNKNOWN


async def test_a_client_cannot_start_a_box_for_every_made_up_capability() -> None:
    async with connect() as client:
        for number in range(16):
            await client.request(
                number, "tools/list", _meta={protocol.CAPABILITIES_KEY: {"experimental": {str(number): {}}}}
            )
        last = await client.request(99, "tools/list", _meta={protocol.CAPABILITIES_KEY: {"experimental": {"x": {}}}})
        assert last["error"]["code"] == protocol.TOO_MANY_REQUESTS


async def test_a_cancel_kills_the_server_within_200_ms_and_is_not_answered() -> None:
    async with connect() as client:
        await client.request(1, "tools/list")
        client.spine.started = anyio.Event()
        await client.send(id=2, method="tools/call", params={"name": "hang", "arguments": {}, "_meta": ENVELOPE})
        with anyio.fail_after(10):
            await client.spine.started.wait()
        cancelled_s = time.monotonic()
        await client.send(method="notifications/cancelled", params={"requestId": 2, "_meta": ENVELOPE})
        # The next answer is not for 2: a cancelled request gets none.
        assert text_of(await client.call("echo", 3, a=1)) == '{"a": 1}'
        assert client.spine.removed_at_s[1] - cancelled_s < 0.2
        assert client.spine.outcomes[1][1].reason is Reason.CANCELLED


async def test_a_client_that_hangs_up_cancels_every_call() -> None:
    async with connect() as client:
        await client.request(1, "tools/list")
        for number in (2, 3):
            await client.send(
                id=number, method="tools/call", params={"name": "hang", "arguments": {}, "_meta": ENVELOPE}
            )
        with anyio.fail_after(10):
            while len(client.spine.pids) < 3:
                client.spine.started = anyio.Event()
                await client.spine.started.wait()
            client.hang_up()
            answers = [await client.read(), await client.read()]
            assert {answer["id"] for answer in answers} == {2, 3}
            with pytest.raises(StopAsyncIteration):
                await client.read()
        assert len(client.spine.removed_at_s) == 3


async def test_calls_run_side_by_side() -> None:
    async with connect() as client:
        await client.request(1, "tools/list")
        await client.send(id=2, method="tools/call", params={"name": "hang", "arguments": {}, "_meta": ENVELOPE})
        assert text_of(await client.call("echo", 3, a=1)) == '{"a": 1}'


@pytest.mark.parametrize(
    "method", ["resources/list", "resources/read", "prompts/list", "prompts/get", "completion/complete"]
)
async def test_what_runs_server_code_outside_a_call_is_not_offered(method: str) -> None:
    async with connect() as client:
        params: dict[str, Any] = {"uri": "file:///x", "name": "x", "ref": {"type": "ref/prompt", "name": "x"}}
        message = await client.request(1, method, **params, argument={"name": "a", "value": "b"})
        assert message["error"]["code"] == protocol.METHOD_NOT_FOUND
        found = await client.request(2, "server/discover")
        assert found["result"]["capabilities"].keys() == {"tools", "logging", "extensions"}


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("dies", Reason.SERVER_DIED), ("garbage", Reason.SERVER_GARBAGE), ("bad-list", Reason.SERVER_GARBAGE)],
)
async def test_a_server_that_cannot_be_read_gives_one_typed_error(mode: str, reason: Reason) -> None:
    async with connect(mode=mode) as client:
        message = await client.request(1, "tools/list")
        assert message["error"]["code"] == protocol.CALL_FAILED
        assert message["error"]["data"]["reason"] == reason
        assert message["error"]["message"].isprintable()
        assert outcome_of(await client.call("echo", 2))["reason"] == reason


@pytest.mark.parametrize("mode", ["modern", "legacy", "dies-on-discover"])
async def test_every_era_of_server_is_found_out_once(mode: str) -> None:
    async with connect(mode=mode) as client:
        await client.request(1, "tools/list")
        before = len(client.spine.pids)
        methods = [frame["method"] for frame in json.loads(text_of(await client.call("wire", 2)))]
        assert methods == (
            ["tools/call"] if mode == "modern" else ["initialize", "notifications/initialized", "tools/call"]
        )
        assert len(client.spine.pids) == before + 1


async def test_a_server_silent_on_the_probe_is_asked_the_old_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fumehood.gateway.exchange.PROBE_S", 0.5)
    async with connect(mode="silent-on-discover") as client:
        assert text_of(await client.call("echo", a=1)) == '{"a": 1}'
        assert len(client.spine.pids) == 2


async def test_a_retry_of_something_that_was_never_asked_is_refused() -> None:
    async with connect() as client:
        message = await client.request(
            1, "tools/call", name="echo", arguments={}, requestState="forged", inputResponses={}
        )
        assert message["error"]["code"] == protocol.INVALID_PARAMS


async def test_an_older_client_before_its_handshake_calls_nothing() -> None:
    async with connect() as client:
        await client.send(id=1, method="tools/call", params={"name": "echo", "arguments": {}})
        assert (await client.answer(1))["error"]["code"] == protocol.INVALID_PARAMS
        assert client.spine.outcomes == []


@pytest.mark.parametrize("version", protocol.HANDSHAKE_VERSIONS)
async def test_an_older_client_gets_results_of_its_era(version: str) -> None:
    async with connect(ask=Ask(sampling=True)) as client:
        info = {"name": "old", "version": "0"}
        offer = {"protocolVersion": version, "capabilities": {"sampling": {}}, "clientInfo": info}
        await client.send(id=1, method="initialize", params=offer)
        shaken = (await client.answer(1))["result"]
        assert shaken["protocolVersion"] == version
        assert shaken["capabilities"].keys() == {"tools", "logging"}
        await client.send(method="notifications/initialized")
        await client.send(id=2, method="tools/list")
        listed = (await client.answer(2))["result"]
        assert "for_samplers" in [tool["name"] for tool in listed["tools"]], (
            "its capabilities went upstream as declared"
        )
        assert not {"resultType", "ttlMs"} & listed.keys()
        await client.send(id=3, method="tools/call", params={"name": "strange", "arguments": {}})
        result = (await client.answer(3))["result"]
        assert not {"resultType", "structuredContent"} & result.keys()
        assert text_of(result) == "[1, 2]"
