"""A function of a server's is held against the same: what it is given, and what it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import anyio
import pytest

import fakes
from fumehood import call as spine
from fumehood.app import Runtime as AppRuntime
from fumehood.delegate import runtime as module
from fumehood.delegate.function import Function
from fumehood.delegate.runtime import Runtime
from fumehood.delegate.signatures import signature_of
from fumehood.delegate.source import Source
from fumehood.execution import Work
from fumehood.model import Image, OnSecret, Outcome, Result, Secrets, ToolCall
from fumehood.ports import Ports
from fumehood.reasons import Reason
from fumehood.screening.judging import Screen
from fumehood.screening.known import KnownSecrets

GITHUB = "ghp" + "_" + "Ab3dEf6hIj9k" * 3
MARK = "[secret removed: github-token]"


def work(text: str, more: dict[str, str]) -> str:
    return text + str(more)


def of(**arguments: Any) -> Function:
    return Function(
        module="own.tools", name="work", source=Source("/srv/own", "own", is_package=True), signature=signature_of(work), arguments=arguments
    )


class OneImage:
    """An image store in which everything is."""

    def resolve(self, name: str) -> Image:
        return Image(name=name, digest="sha256:" + "1" * 64, docker_id=None)


@dataclass
class Box:
    """A box that answers with these lines; `TOKEN` in them is the call's token."""

    lines: list[str]
    asked: list[dict[str, Any]] = field(default_factory=list)
    screen: Screen = field(default_factory=lambda: Screen(fakes.call(tool="work"), KnownSecrets()))

    def __post_init__(self) -> None:
        self.passing = self.screen.passing

    async def send(self, frame: bytes) -> None:
        self.asked.append(json.loads(frame))
        self._left: Iterator[str] = iter(self.lines)

    async def receive(self) -> bytes:
        return next(self._left).replace("TOKEN", self.asked[0]["token"]).encode()


@pytest.mark.anyio
async def test_what_a_function_gives_and_reports_holds_no_secret() -> None:
    heard: list[Any] = []

    async def say(level: str, message: str) -> None:
        heard.append((level, message))

    box = Box([json.dumps({"token": "TOKEN", **each}) for each in (
        {"kind": "said", "level": "info", "message": f"it is {GITHUB}"}, {"kind": "result", "value": f"x {GITHUB}"},
    )])  # fmt: skip
    with anyio.fail_after(5):
        found = await replace(of(text="a", more={}), say=say).exchange(fakes.call(tool="work")).converse(cast("Any", box))
    assert found == f"x {MARK}"
    assert heard == [("info", f"it is {MARK}")]


async def carried(monkeypatch: pytest.MonkeyPatch, function: Function, setting: OnSecret) -> tuple[ToolCall, Outcome]:
    """The call that the spine is asked to carry, with what came of it, over no box."""
    ports = Ports(broker=fakes.NoBroker(), ledger=fakes.FakeLedger(), images=OneImage(), clock=fakes.FakeClock(), owner_uid=0)
    seen: list[ToolCall] = []
    real = spine.run_call

    async def run_call(call: ToolCall, work: Work, ports: Ports) -> Outcome:
        seen.append(call)
        return await real(call, work, ports)

    monkeypatch.setattr(module.call, "run_call", run_call)
    one = fakes.call(tool="work")
    one = replace(one, arguments=function.arguments, profile=replace(one.profile, tools=None, secrets=Secrets(arguments=setting)))
    opened = AppRuntime(ports=ports, sender=one.sender)
    own = Runtime(
        ports=opened.ports, sender=opened.sender, default_profile="p", profiles={"p": one.profile}, sources=frozenset({function.source}),
        workspace_fd=None, workspace_path=None,
    )  # fmt: skip
    with anyio.fail_after(5):
        outcome = await own.run(one, function)
    return seen[0], outcome


@pytest.mark.anyio
async def test_a_function_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    _, outcome = await carried(monkeypatch, of(text="a", more={"b": GITHUB}), OnSecret.BLOCK)
    assert (outcome.result, outcome.reason) == (Result.REFUSED, Reason.SECRET_IN_ARGUMENTS)
    assert "github-token at /more/b" in outcome.detail


@pytest.mark.anyio
async def test_redacted_a_function_is_given_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    call, _ = await carried(monkeypatch, of(text="a", more={"b": GITHUB}), OnSecret.REDACT)
    assert call.arguments == {"text": "a", "more": {"b": MARK}}
