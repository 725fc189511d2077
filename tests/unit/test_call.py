"""The path of a call: what is asked of the broker, in which order, and what happens when a step of it goes wrong."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import fakes
import fumehood
from fumehood.call import run_call
from fumehood.execution import Command
from fumehood.faults import BoxFailed
from fumehood.model import (
    Binding,
    CommitMode,
    Filesystem,
    Frame,
    Image,
    Kind,
    Outcome,
    Result,
    Sender,
    ToolCall,
    WorkspaceMode,
)
from fumehood.policies.known import Account
from fumehood.ports import Exited, Made, Opened, Ports, Settled
from fumehood.reach import Supplies
from fumehood.reasons import Reason

VERBS = ["make", "bind", "start", "wait", "settle", "remove"]
ENDS = [Exited(exit_code=1), Exited(signal=9), Exited(killed=Reason.WALL), Exited(failed=Reason.BOX_DIED)]


@dataclass
class Said:
    """One list for everything that happens, in its order, as broker and ledger see it."""

    steps: list[str] = field(default_factory=list)
    fails_at: str = ""
    hangs_at: str = ""
    ended: Exited = field(default_factory=lambda: Exited(exit_code=0))
    reached: anyio.Event = field(default_factory=anyio.Event)

    async def step(self, verb: str) -> None:
        self.steps.append(verb)
        if verb == self.fails_at:
            raise BoxFailed(Reason.BOX_FAILED, verb)
        if verb == self.hangs_at:
            self.reached.set()
            await anyio.sleep_forever()


class TellingBroker(fakes.NoBroker):
    def __init__(self, said: Said) -> None:
        self.said = said

    async def make(self, task: str, frame: Frame) -> Made:  # noqa: ARG002 - the port's signature
        await self.said.step("make")
        return Made(engine="oci", container="c", facts={})

    async def bind(self, task: str, binding: Binding, supplies: Supplies) -> Mapping[str, Any]:  # noqa: ARG002 - the port's signature
        await self.said.step("bind")
        return {}

    async def start(
        self, task: str, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int],  # noqa: ARG002 - the port's signature
        *, check_fence: bool,
    ) -> Mapping[str, Any]:  # fmt: skip
        assert not check_fence
        await self.said.step("start")
        return {}

    async def wait(self, task: str) -> Exited:  # noqa: ARG002 - the port's signature
        await self.said.step("wait")
        return self.said.ended

    async def settle(self, task: str, action: str, protect: Sequence[str]) -> Settled:  # noqa: ARG002 - the port's signature
        await self.said.step("settle")
        self.said.steps[-1] = f"settle {action}"
        return Settled()

    async def remove(self, task: str) -> Mapping[str, Any]:  # noqa: ARG002 - the port's signature
        await self.said.step("remove")
        return {"clean": True}


class TellingLedger(fakes.FakeLedger):
    def __init__(self, said: Said, *, gone: bool = False) -> None:
        super().__init__(gone=gone)
        self.said = said

    async def open(self, call: ToolCall, account: Account | None = None) -> Opened:
        opened = await super().open(call, account)
        self.said.steps.append("opened")
        return opened

    async def close(self, outcome: Outcome) -> None:
        await super().close(outcome)
        self.said.steps.append("closed")


class OneImage:
    def resolve(self, name: str) -> Image:
        return Image(name=name, digest="sha256:" + "2" * 64, docker_id=None)


def call_with(workspace: WorkspaceMode = WorkspaceMode.NONE, commit: CommitMode = CommitMode.AUTO) -> ToolCall:
    one = fakes.call(tool=None)
    profile = replace(one.profile, filesystem=Filesystem(workspace=workspace, commit=commit))
    return replace(one, profile=profile, workspace_fd=None if workspace is WorkspaceMode.NONE else 0)


async def carried(said: Said, call: ToolCall | None = None, *, gone: bool = False) -> Outcome:
    ports = Ports(
        broker=TellingBroker(said), ledger=TellingLedger(said, gone=gone), images=OneImage(), clock=fakes.FakeClock(), owner_uid=0
    )  # fmt: skip
    with anyio.fail_after(5):
        return await run_call(call or call_with(), Command(("true",)), ports)


def carry(said: Said, call: ToolCall | None = None, *, gone: bool = False) -> Outcome:
    async def work() -> Outcome:
        return await carried(said, call, gone=gone)

    return anyio.run(work)


def test_the_record_is_opened_before_and_closed_after_everything_else() -> None:
    said = Said()
    assert carry(said, call_with(WorkspaceMode.RW)).result is Result.OK
    assert said.steps == ["opened", "make", "bind", "start", "wait", "settle commit", "remove", "closed"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda call: replace(call, tool="not_listed", kind=Kind.TOOL), Reason.TOOL_NOT_ALLOWED),
        (lambda call: replace(call, sender=Sender(uid=1001, name="someone")), Reason.SENDER_DENIED),
        (lambda call: replace(call, workspace_fd=0), Reason.WORKSPACE_NOT_ALLOWED),
    ],
)
def test_a_refused_call_asks_nothing_of_the_broker(change: Callable[[ToolCall], ToolCall], reason: Reason) -> None:
    said = Said()
    outcome = carry(said, change(call_with()))
    assert (outcome.result, outcome.reason) == (Result.REFUSED, reason)
    assert said.steps == ["opened", "closed"]


def test_a_call_without_a_record_asks_nothing_of_the_broker() -> None:
    said = Said()
    outcome = carry(said, gone=True)
    assert (outcome.result, outcome.reason) == (Result.REFUSED, Reason.LEDGER_UNAVAILABLE)
    assert said.steps == []


@pytest.mark.parametrize("verb", VERBS[:-1])
def test_whichever_step_fails_the_box_is_removed_and_the_record_closed(verb: str) -> None:
    said = Said(fails_at=verb)
    outcome = carry(said, call_with(WorkspaceMode.RW))
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.BOX_FAILED)
    assert said.steps == ["opened", *VERBS[: VERBS.index(verb) + 1], "remove", "closed"]


@pytest.mark.parametrize("verb", VERBS[:-1])
def test_a_call_that_is_cancelled_in_any_step_removes_its_box_and_closes_its_record(verb: str) -> None:
    said = Said(hangs_at=verb)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carried, said, call_with(WorkspaceMode.RW))
            await said.reached.wait()
            tasks.cancel_scope.cancel()

    anyio.run(work)
    assert said.steps[-2:] == ["remove", "closed"]


@pytest.mark.parametrize("ended", ENDS)
@pytest.mark.parametrize("commit", CommitMode)
def test_changes_of_a_call_that_did_not_succeed_are_discarded(ended: Exited, commit: CommitMode) -> None:
    said = Said(ended=ended)
    assert carry(said, call_with(WorkspaceMode.RW, commit)).result is not Result.OK
    assert "settle discard" in said.steps


@pytest.mark.parametrize(
    ("commit", "action"), [(CommitMode.AUTO, "commit"), (CommitMode.ASK, "hold"), (CommitMode.NEVER, "discard")]
)
def test_changes_of_a_call_that_succeeded_go_where_the_profile_says(commit: CommitMode, action: str) -> None:
    said = Said()
    carry(said, call_with(WorkspaceMode.RW, commit))
    assert f"settle {action}" in said.steps


def test_nothing_but_the_path_of_a_call_holds_a_box_or_runs_in_one() -> None:
    root = Path(fumehood.__file__).parent
    steps = {
        ("sandbox", "box"),
        ("sandbox", "settle"),
        ("execution", "run"),
        ("sandbox", "plan"),
        ("approval", "settle"),
    }
    found = {
        (path.relative_to(root).as_posix(), node.value.id, node.attr)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in steps
    }
    assert found == {("call.py", *step) for step in steps}
    taken = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fumehood.sandbox")
    }
    assert taken == {"sandbox/__init__.py", "sandbox/lifetime.py", "sandbox/borrowing.py", "sandbox/remote.py"}
