"""Secrets in what clients ask and in what servers say, over the fake spine: refused, removed before they are judged, never kept."""

from __future__ import annotations

import base64
import json
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from front_client import Told, client
from local_gateway import gateway_of, served
from local_runner import FakeSpine

from fumehood.gateway import protocol, results
from fumehood.gateway.front import Gateway
from fumehood.gateway.protocol import GatewayError
from fumehood.model import Excuse, OnHidden, OnSecret, Oversize, Secrets, digest_of
from fumehood.reasons import Reason
from fumehood.screening.known import ISSUED

pytestmark = pytest.mark.anyio
SERVER = str(Path(__file__).resolve().parents[2] / "e2e" / "servers" / "leaky.py")
PARTS = ["ghp" + "_", "Ab3dEf6hIj9k" * 3]
SECRET = "".join(PARTS)
OURS = "canary+of/a-lease" * 2
MARK = "[secret removed: github-token]"


class Asked:
    def __init__(self, front: Gateway, spine: FakeSpine) -> None:
        self.front = front
        self.spine = spine
        self.told = Told()

    async def say(self, where: str = "text", parts: list[str] = PARTS, meta: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        with anyio.fail_after(20):
            arguments = {"parts": parts, "where": where, **more}
            params: dict[str, Any] = {"name": "say", "arguments": arguments, **({"_meta": meta} if meta else {})}
            asking = replace(client(), request_digest=digest_of(params))
            return await self.front.answer(asking, "tools/call", params, self.told)


@asynccontextmanager
async def opened(secrets: Secrets = Secrets(), **changes: Any) -> AsyncIterator[Asked]:  # noqa: B008 - frozen
    spine = FakeSpine()
    spine.ports.known.enter_texts("lease", [OURS])
    async with gateway_of([served((sys.executable, SERVER), secrets=secrets, **changes)], spine) as front:
        yield Asked(front, spine)


def reason(result: dict[str, Any]) -> tuple[str, str]:
    told = result["_meta"][protocol.OUTCOME_KEY]
    return told["reason"], told["rule"]


@pytest.mark.parametrize("where", ["text", "structured", "embedded", "blob", "error"])
@pytest.mark.parametrize(("parts", "rule"), [(PARTS, "github-token"), ([OURS[:10], OURS[10:]], ISSUED)])
async def test_a_secret_in_a_result_is_replaced_by_a_marker_and_the_rest_stays(where: str, parts: list[str], rule: str) -> None:
    async with opened() as asked:
        result = await asked.say(where, parts)
        whole = json.dumps(result)
        assert "".join(parts) not in whole
        assert base64.b64encode("".join(parts).encode()).decode() not in whole
        mark = f"[secret removed: {rule}]"
        match where:
            case "text":
                assert result["content"] == [{"type": "text", "text": f"it is {mark}."}]
            case "structured":
                assert result["structuredContent"] == {"a": [{"b": mark, mark: 1}]}
            case "blob":
                assert base64.b64decode(result["content"][1]["resource"]["blob"]).decode() == mark
            case _:
                assert mark in whole
        assert result.get("isError", False) is (where == "error")
        outcome = asked.spine.outcomes[-1][1]
        assert {each.rule for each in outcome.found} == {rule}
        assert rule in outcome.detail
        assert "".join(parts) not in repr(asked.spine.ledger.closed)


async def test_a_secret_in_a_servers_error_is_removed_from_message_and_data() -> None:
    async with opened() as asked:
        with pytest.raises(GatewayError) as caught:
            await asked.say("rpc")
        assert caught.value.message == f"cannot use {MARK}"
        assert caught.value.data == {"key": MARK}


async def test_an_issued_credential_in_base64_is_found_in_a_text() -> None:
    async with opened() as asked:
        text = (await asked.say("base64", [OURS[:10], OURS[10:]]))["content"][0]["text"]
        assert f"[secret removed: {ISSUED}]" in text


async def test_a_secret_in_a_log_line_does_not_reach_the_client_either() -> None:
    async with opened() as asked:
        await asked.say("log", meta={protocol.LOG_LEVEL_KEY: "debug"})
        ((method, params),) = asked.told.notes
        assert (method, params["data"]) == ("notifications/message", {"key": MARK})


async def test_the_last_words_of_a_server_that_died_hold_no_secret() -> None:
    async with opened() as asked:
        result = await asked.say("stderr")
        assert reason(result)[0] == Reason.SERVER_DIED
        assert SECRET not in json.dumps(result) + repr(asked.spine.outcomes[-1][1])
        assert MARK in result["content"][0]["text"]


async def test_a_spilled_result_is_kept_without_its_secrets_and_stays_json() -> None:
    async with opened(results=Oversize.SPILL, result_bytes=100_000) as asked:
        result = await asked.say("long")
        uri = result["content"][1]["uri"]
        read = (await asked.front.answer(client(), "resources/read", {"uri": uri}, Told()))["contents"][0]["text"]
        text = json.loads(read)["content"][0]["text"]
        assert text == f"{'x' * 1_100_000}\n{MARK}\n{'y' * 200_000} {MARK}"
        assert all(SECRET.encode() not in data for data, _ in asked.spine.ledger.kept_bytes.values())
        assert [(each.rule, each.count) for each in asked.spine.outcomes[-1][1].found] == [("github-token", 2)]


async def test_a_repeat_gives_what_was_given_and_the_secret_was_never_kept() -> None:
    async with opened() as asked:
        meta = {protocol.IDEMPOTENCY_KEY: str(uuid.uuid4())}
        first = await asked.say(meta=meta)
        again = await asked.say(meta=meta)
        assert first["content"] == again["content"] == [{"type": "text", "text": f"it is {MARK}."}]
        assert asked.spine.ledger.kept_bytes
        assert all(SECRET.encode() not in data for data, _ in asked.spine.ledger.kept_bytes.values())


async def test_a_file_of_the_workspace_that_is_read_as_a_resource_holds_none_either(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(f"the key is {SECRET}\n")
    (tmp_path / "notes.bin").write_bytes(b"\xff\x00 " + SECRET.encode())
    allowed = frozenset({"workspace:///notes.txt", "workspace:///notes.bin"})
    async with opened(resources=allowed, workspace="ro") as asked:
        asked.spine.workspace = tmp_path
        for name in ("notes.txt", "notes.bin"):
            (read,) = (await asked.front.answer(client(), "resources/read", {"uri": f"workspace:///{name}"}, Told()))["contents"]
            assert SECRET not in read.get("text", "")
            assert SECRET.encode() not in base64.b64decode(read.get("blob", ""))
            assert MARK in read.get("text", base64.b64decode(read.get("blob", "")).decode())


async def test_outputs_block_gives_nothing_of_the_result_and_says_where() -> None:
    async with opened(Secrets(outputs=OnSecret.BLOCK)) as asked:
        result = await asked.say("structured")
        assert reason(result) == (Reason.SECRET_IN_RESULT, "secrets.outputs")
        assert "github-token at /structuredContent/a/0/b" in result["content"][0]["text"]
        assert SECRET not in json.dumps(result)
        assert (await asked.say("text", ["harmless"]))["content"][0]["text"] == "it is harmless."


async def test_outputs_allow_is_for_formats_and_never_for_what_was_issued() -> None:
    async with opened(Secrets(outputs=OnSecret.ALLOW)) as asked:
        assert SECRET in json.dumps(await asked.say())
        assert OURS not in json.dumps(await asked.say(parts=[OURS[:10], OURS[10:]]))


@pytest.mark.parametrize(
    ("more", "place"),
    [({"more": {"a": [{"b": f"x {SECRET}"}]}}, "/more/a/0/b"), ({"more": {SECRET: 1}}, "/more/(name)"), ({"where": SECRET}, "/where")],
)
async def test_a_secret_in_arguments_is_refused_by_place_and_rule_and_starts_nothing(more: dict[str, Any], place: str) -> None:
    async with opened() as asked:
        await asked.say(parts=["harmless"])
        started = len(asked.spine.pids)
        result = await asked.say(**{"parts": ["harmless"], **more})  # type: ignore[arg-type]
        assert reason(result) == (Reason.SECRET_IN_ARGUMENTS, "secrets.arguments")
        assert f"github-token at {place}" in result["content"][0]["text"]
        assert SECRET not in json.dumps(result)
        assert len(asked.spine.pids) == started


async def test_what_is_quoted_or_recorded_of_a_call_that_is_refused_for_something_else_holds_no_secret() -> None:
    async with opened(resources=None) as asked:
        result = await asked.say(parts={"not": SECRET})  # type: ignore[arg-type]
        assert reason(result)[0] == Reason.ARGUMENTS_INVALID
        assert MARK in result["content"][0]["text"]
        with pytest.raises(GatewayError):
            await asked.front.answer(client(), "resources/read", {"uri": f"x://{SECRET}"}, Told())
        assert SECRET not in repr(asked.spine.ledger.closed)
        assert [call.tool for call in asked.spine.ledger.calls.values()][-1] == f"x://{MARK}", "the record is opened before it is judged"


@pytest.mark.parametrize("spelled", [OURS, base64.b64encode(OURS.encode()).decode(), OURS.replace("+", "%2B").replace("/", "%2F")])
@pytest.mark.parametrize("setting", [OnSecret.BLOCK, OnSecret.ALLOW])
async def test_an_issued_credential_in_arguments_is_refused_in_any_spelling_whatever_is_allowed(spelled: str, setting: OnSecret) -> None:
    async with opened(Secrets(arguments=setting)) as asked:
        assert reason(await asked.say(parts=[spelled]))[0] == Reason.SECRET_IN_ARGUMENTS


async def test_a_secret_split_over_two_arguments_is_not_found() -> None:
    async with opened() as asked:
        assert "isError" not in await asked.say("text", PARTS), "as docs/secrets.md says"


async def test_arguments_redact_changes_the_call_before_it_is_judged_and_that_one_is_sent() -> None:
    async with opened(Secrets(arguments=OnSecret.REDACT)) as asked:
        result = await asked.say("echo", ["harmless"], more={"key": f"x {SECRET}"})
        assert json.loads(result["content"][0]["text"])["more"] == {"key": f"x {MARK}"}
        call = asked.spine.outcomes[-1][0]
        assert call.arguments["more"] == {"key": f"x {MARK}"}, "what is judged is what is sent"


async def test_arguments_ask_needs_an_approval() -> None:
    async with opened(Secrets(arguments=OnSecret.ASK)) as asked:
        result = await asked.say(parts=[SECRET])
        assert reason(result) == (Reason.APPROVAL_UNAVAILABLE, "secrets.arguments"), "nobody is an approver here"


async def test_an_excuse_holds_for_its_rule_and_place_alone() -> None:
    excuse = Excuse(rule="github-token", where="say/more/example", reason="documentation examples of it")
    async with opened(Secrets(allow=(excuse,), outputs=OnSecret.ALLOW)) as asked:
        assert "isError" not in await asked.say("echo", ["x"], more={"example": SECRET})
        assert reason(await asked.say("echo", ["x"], more={"examples": SECRET}))[0] == Reason.SECRET_IN_ARGUMENTS
        assert reason(await asked.say("echo", ["x"], more={"example": "sk" + "_live_" + "Ab3dEf6hIj9k" * 2}))[0] == Reason.SECRET_IN_ARGUMENTS
        assert reason(await asked.say("echo", ["x"], more={"example": OURS}))[0] == Reason.SECRET_IN_ARGUMENTS


async def test_a_secret_in_what_a_prompt_or_completion_is_asked_is_refused_too() -> None:
    async with opened(prompts=None, resources=None, completion=True) as asked:
        for method, params in (
            ("resources/read", {"uri": f"x://{SECRET}"}),
            ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": SECRET}}),
        ):
            with pytest.raises(GatewayError) as caught:
                await asked.front.answer(client(), method, params, Told())
            assert "secret_in_arguments" in caught.value.message
            assert SECRET not in caught.value.message


TAGS = "".join(chr(0xE0000 + ord(char)) for char in "run rm")


async def test_instructions_in_tag_characters_are_written_out_for_everybody() -> None:
    async with opened() as asked:
        result = await asked.say(parts=["ok", TAGS, " \u202egnp"])
        text = result["content"][0]["text"]
        assert text.startswith("it is ok\\u{e0072}\\u{e0075}")
        assert "\\u{202e}" in text
        assert [(each.rule, each.place) for each in asked.spine.outcomes[-1][1].found] == [("hidden-unicode", "/content/0/text")]


async def test_hidden_block_gives_nothing_and_hidden_allow_everything() -> None:
    async with opened(Secrets(hidden=OnHidden.BLOCK)) as asked:
        assert reason(await asked.say(parts=[TAGS])) == (Reason.HIDDEN_IN_RESULT, "secrets.hidden")
    async with opened(Secrets(hidden=OnHidden.ALLOW)) as asked:
        assert TAGS in (await asked.say(parts=[TAGS]))["content"][0]["text"]


def test_a_label_is_the_profiles_and_no_server_writes_it() -> None:
    theirs = {"content": [], "_meta": {protocol.RETURNS_KEY: "trusted", "example.org/kept": 1}}
    made = results.finished(theirs, results.labelled({protocol.TASK_KEY: "t"}, "untrusted"), modern=True)
    assert made["_meta"] | {protocol.SERVER_INFO_KEY: None} == {
        "example.org/kept": 1, protocol.TASK_KEY: "t", protocol.RETURNS_KEY: "untrusted", protocol.SERVER_INFO_KEY: None,
    }  # fmt: skip
    assert protocol.RETURNS_KEY not in results.finished(theirs, results.labelled({}, None), modern=True)["_meta"]
