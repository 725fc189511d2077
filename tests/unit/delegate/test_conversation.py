"""The host's side of a function's conversation: which lines count, and how much of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

import fakes
from fumehood.delegate import function
from fumehood.delegate.errors import Raised, RemoteError, exception_of
from fumehood.delegate.function import Function
from fumehood.delegate.signatures import signature_of
from fumehood.delegate.source import Source
from fumehood.faults import ExchangeFailed, Refused
from fumehood.reasons import Reason
from fumehood.screening.judging import Screen
from fumehood.screening.known import KnownSecrets


def work(a: int, b: str = "x") -> int:
    return a + len(b)


@dataclass
class Box:
    """A box that answers with these lines; `TOKEN` in them is the call's token."""

    lines: list[str]
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, frame: bytes) -> None:
        self.asked.append(json.loads(frame))
        self._left: Iterator[str] = iter(self.lines)

    def passing(self, value: Any) -> Any:
        return Screen(fakes.call(tool="work"), KnownSecrets()).passing(value)

    async def receive(self) -> bytes:
        line = next(self._left, None)
        if line is None:
            raise ExchangeFailed(Reason.SERVER_DIED)
        return line.replace("TOKEN", self.asked[0]["token"]).encode()


def line(kind: str, **fields: Any) -> str:
    return json.dumps({"token": "TOKEN", "kind": kind, **fields})


def talk(*lines: str, **heard: Any) -> Any:
    """What the conversation gives, or the reason for which it fails."""
    one = Function(
        module="own.tools", name="work", source=Source("/srv/own", "own", is_package=True), signature=signature_of(work),
        arguments={"a": 1}, **heard,
    )  # fmt: skip
    call = fakes.call(tool="work")

    async def hold() -> Any:
        with anyio.fail_after(20):
            return await one.exchange(call).converse(Box(list(lines)))

    try:
        return anyio.run(hold)
    except ExchangeFailed as error:
        return error.reason


def test_lines_without_the_token_are_dropped_and_too_many_of_them_end_the_call() -> None:
    answer = line("result", value=3)
    assert talk("", "{}", "[]", "null", '"TOKEN"', "\xff", line("result", value=1).replace("TOKEN", "0" * 32), answer) == 3
    assert talk(*["noise"] * function.MAX_STRAY, answer) == 3
    assert talk(*["noise"] * (function.MAX_STRAY + 1), answer) is Reason.RESULT_INVALID


@pytest.mark.parametrize("value", ["3", 3.5, True, None, [3], {"value": 3}])
def test_a_result_of_another_type_is_no_result(value: Any) -> None:
    assert talk(line("result", value=value)) is Reason.RESULT_INVALID


def test_progress_is_bounded_and_must_be_numbers() -> None:
    told: list[Any] = []

    async def progress(*what: Any) -> None:
        told.append(what)

    odd = [line("progress", progress=what) for what in ("1", None, True, [1], 2**60)]
    good = [line("progress", progress=1, total="x", message="\x1b[2J"), line("progress", progress=1.5, total=3)]
    assert talk(*odd, *good, line("result", value=1), progress=progress) == 1
    assert told == [(1, None, "\\u001b[2J"), (1.5, 3, None)]
    told.clear()
    assert talk(*[line("progress", progress=1)] * (function.MAX_PROGRESS + 50), line("result", value=1), progress=progress) == 1
    assert len(told) == function.MAX_PROGRESS


def test_reports_are_bounded_in_length_alone_and_together() -> None:
    answer = line("result", value=1)
    assert talk(line("log", logger="own", level=10, message="x" * function.REPORT_BYTES), answer) is Reason.RESULT_INVALID
    long = line("log", logger="own", level=10, message="x" * (function.REPORT_BYTES - 200))
    assert talk(*[long] * 100, answer) == 1
    assert talk(*[long] * (function.REPORTS_BYTES // function.REPORT_BYTES + 10), answer) is Reason.RESULT_INVALID


def test_a_client_that_went_away_does_not_fail_the_call() -> None:
    async def gone(*_: Any) -> None:
        raise BrokenPipeError

    assert talk(line("progress", progress=1), line("said", level="info", message="x"), line("result", value=1), progress=gone, say=gone) == 1


def from_the_box(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if hasattr(record, "fumehood_task")]


def test_records_speak_under_the_functions_own_names(caplog: pytest.LogCaptureFixture) -> None:
    names = ["own.tools", "own", "own.other", "owner", "root", "fumehood", "asyncio", "own.\n", "x" * 500, None, 3]
    with caplog.at_level(logging.DEBUG):
        talk(*(line("log", logger=name, level=30, message="%s {}") for name in names), line("result", value=1))
    records = from_the_box(caplog)
    assert [record.name for record in records] == ["own.tools", "own", "own.other", *["own.tools"] * 8]
    assert {record.getMessage() for record in records} == {"%s {}"}


def test_record_levels_are_those_of_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        talk(*(line("log", logger="own", level=level, message="x") for level in (-5, 10**9, "50", True, 35)), line("result", value=1))
    assert [record.levelno for record in from_the_box(caplog)] == [10, 50, 20, 20, 35]


def test_a_known_exception_comes_back_and_any_other_is_remote() -> None:
    class MineError(Exception):
        pass

    class DemandingError(Exception):
        def __init__(self, a: int, b: int) -> None:
            raise RuntimeError(a, b)

    def made(kind: type[Exception]) -> Exception:
        return exception_of(Raised(kind.__module__, kind.__qualname__, "m", "trace"), (MineError, DemandingError))

    assert type(made(MineError)) is MineError
    assert type(made(DemandingError)) is RemoteError
    assert type(made(KeyError)) is KeyError
    assert type(made(StopAsyncIteration)) is RemoteError
    assert made(KeyError).__notes__ == ["In the box:\ntrace"]


@pytest.mark.parametrize(
    "arguments", [{}, {"a": "1"}, {"a": 1.5}, {"a": True}, {"a": 1, "c": 1}, {"a": 1, "b": None}, {"a": 1, "b": "x" * 5_000_000}]
)
def test_json_arguments_are_judged_by_the_signature(arguments: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        signature_of(work).from_json(arguments)
    assert refused.value.reason is Reason.ARGUMENTS_INVALID
