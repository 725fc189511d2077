"""Results that are not what their tool says it gives, and arguments that nobody described, through the real front in both eras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shifting import OBJECT, Shifty, shifty, tool

from fumehood.gateway import patience
from fumehood.gateway.protocol import OUTCOME_KEY
from fumehood.model import ArgumentBounds, Result
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio
OUTPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TEXT = [{"type": "text", "text": "said"}]
ERAS = pytest.mark.parametrize("modern", [True, False], ids=["2026-07-28", "2025-11-25"])


async def result_of(it: Shifty, answer: dict[str, Any], output: Any = OUTPUT, *, modern: bool = True) -> dict[str, Any]:
    it.becomes(tool(outputSchema=output), results={"read": answer})
    return await it.ask("tools/call", name="read", arguments={"a": "x"}, modern=modern)


def reason(result: dict[str, Any]) -> str:
    assert result["isError"] is True
    assert "structuredContent" not in result, "nothing of it is passed on"
    return str(result["_meta"][OUTCOME_KEY]["reason"])


@ERAS
async def test_a_result_that_does_not_fit_its_output_schema_is_a_failure_that_names_the_place(tmp_path: Path, modern: bool) -> None:
    async with shifty(tmp_path) as it:
        result = await result_of(it, {"content": TEXT, "structuredContent": {"n": "one"}}, modern=modern)
        assert reason(result) == Reason.RESULT_UNFIT
        assert "$.n" in result["content"][0]["text"]
        assert "said" not in result["content"][0]["text"]
        outcome = it.spine.outcomes[-1][1]
        assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.RESULT_UNFIT), "the record says so too"


@ERAS
async def test_a_result_without_the_structure_that_was_promised_is_a_failure(tmp_path: Path, modern: bool) -> None:
    async with shifty(tmp_path) as it:
        assert reason(await result_of(it, {"content": TEXT}, modern=modern)) == Reason.RESULT_UNFIT


@ERAS
async def test_an_error_result_is_exempt(tmp_path: Path, modern: bool) -> None:
    async with shifty(tmp_path) as it:
        result = await result_of(it, {"content": TEXT, "isError": True}, modern=modern)
        assert result["content"] == TEXT


@pytest.mark.parametrize("word", [1, "true", None])
async def test_what_only_looks_like_an_error_is_not_exempt(tmp_path: Path, word: Any) -> None:
    async with shifty(tmp_path) as it:
        assert reason(await result_of(it, {"content": TEXT, "isError": word})) == Reason.RESULT_UNFIT


@ERAS
async def test_a_result_that_fits_passes_with_what_its_schema_does_not_name(tmp_path: Path, modern: bool) -> None:
    async with shifty(tmp_path) as it:
        result = await result_of(it, {"content": TEXT, "structuredContent": {"n": 1, "more": [1]}}, modern=modern)
        assert result["structuredContent"] == {"n": 1, "more": [1]}


async def test_a_result_of_the_newer_era_need_not_be_an_object(tmp_path: Path) -> None:
    async with shifty(tmp_path) as it:
        result = await result_of(it, {"content": TEXT, "structuredContent": [1, 2]}, {"type": "array", "items": {"type": "integer"}})
        assert result["structuredContent"] == [1, 2]


@pytest.mark.parametrize("output", [{"$ref": "http://127.0.0.1:9/x"}, {"type": "nothing"}, True, {"pattern": "(["}], ids=str)
async def test_a_tool_whose_output_schema_cannot_be_judged_is_not_offered(tmp_path: Path, output: Any) -> None:
    async with shifty(tmp_path) as it:
        refused = await result_of(it, {"content": TEXT}, output)
        assert reason(refused) == Reason.SCHEMA_UNUSABLE
        assert "output schema" in refused["content"][0]["text"]
        assert await it.listed() == []


async def test_a_result_made_to_be_slow_to_judge_is_a_failure_and_does_not_stop_the_gateway(tmp_path: Path) -> None:
    async with shifty(tmp_path) as it:
        slow = {"type": "object", "properties": {"s": {"pattern": "^(a+)+$"}}}
        result = await result_of(it, {"content": TEXT, "structuredContent": {"s": "a" * 60 + "!"}}, slow)
        assert reason(result) == Reason.RESULT_UNFIT
        assert "took more than 0.5 s" in result["content"][0]["text"]


async def refused(it: Shifty, **arguments: Any) -> dict[str, Any]:
    result = await it.ask("tools/call", name="read", arguments=arguments)
    assert result["_meta"][OUTCOME_KEY]["reason"] == Reason.ARGUMENTS_INVALID, result
    return result


async def test_nested_extra_fields_are_refused_and_the_refusal_says_how_to_allow_them(tmp_path: Path) -> None:
    free = {"type": "object", "properties": {"meta": {"type": "object", "additionalProperties": True}}}
    async with shifty(tmp_path, tool(inputSchema=free), arguments=ArgumentBounds()) as it:
        result = await refused(it, meta={"hidden": {"admin": True}})
        assert "arguments.open" in result["content"][0]["text"]
    async with shifty(tmp_path, tool(inputSchema=free), arguments=ArgumentBounds(open=("read/meta",))) as it:
        assert not (await it.ask("tools/call", name="read", arguments={"meta": {"hidden": {"admin": True}}})).get("isError")


async def test_arguments_over_a_bound_of_the_profile_start_nothing(tmp_path: Path) -> None:
    async with shifty(tmp_path, arguments=ArgumentBounds(string_bytes=10)) as it:
        result = await refused(it, a="x" * 11)
        assert "$.a: a string over 10 bytes" in result["content"][0]["text"]
        assert it.spine.pids == [], "not even the reading of the list"


async def test_a_client_that_has_found_a_slow_pattern_does_not_keep_the_gateway_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RATE", 0.0)  # on a loaded machine the calls may be further apart than they are slow
    slow = {**OBJECT, "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    async with shifty(tmp_path, tool(inputSchema=slow)) as it:
        reasons: list[str] = []
        while Reason.BUSY not in reasons and len(reasons) < 50:
            result = await it.ask("tools/call", name="read", arguments={"a": "a" * 60 + "!"})
            reasons.append(result["_meta"][OUTCOME_KEY]["reason"])
        assert set(reasons[:-1]) == {Reason.ARGUMENTS_INVALID}
        assert reasons[-1] == Reason.BUSY
        assert len(reasons) > 3, "one slow call is nobody's fault"
