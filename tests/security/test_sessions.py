"""Boxes that live for several calls, by attack, on each engine: frozen, bounded, and gone whatever becomes of us."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import ElicitResult

from lab import FUMEHOOD, Lab, gone, ours

pytestmark = [pytest.mark.root, pytest.mark.anyio]

SERVER = Path(__file__).resolve().parents[1] / "e2e" / "servers" / "stateful.py"
PROFILE = """\
command: [python3, /workspace/stateful.py, {era}]
tools: {{allow: "*"}}
arguments: {{open: ["*"]}}
scope: {scope}
{session}
ask: {{elicitation: true, wait: 2s}}
limits: {{wall: 20s, memory: 128MiB}}
filesystem: {{workspace: rw}}
"""


@pytest.fixture
def workspace(lab: Lab) -> Path:
    made = lab.workspace("stateful")
    shutil.copy(SERVER, made / "stateful.py")
    return made


@pytest.fixture
def profiles(lab: Lab) -> Iterator[Any]:
    """Profiles by scope and era."""

    def profile(scope: str = "session", era: str = "modern", idle: str = "60s") -> str:
        session = f"session: {{idle: {idle}, lifetime: 5m}}" if scope == "session" else ""
        return lab.profile(f"stateful-{scope}-{era}-{idle}", PROFILE.format(scope=scope, era=era, session=session))

    return profile


@asynccontextmanager
async def opened(lab: Lab, engine: str, profile: str, workspace: Path, **client: Any) -> AsyncIterator[Client]:
    args = ["gateway", "--profile", profile, "--engine", engine, "--workspace", str(workspace)]
    async with Client(StdioServerParameters(command=str(FUMEHOOD), args=args, env=lab.env), **client) as session:
        yield session


async def said(client: Client, tool: str, **arguments: Any) -> str:
    with anyio.fail_after(60):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    return str(result.content[0].text)


def records(lab: Lab, *options: str) -> list[dict[str, Any]]:
    done = lab.fumehood("tasks", "--json", "--limit", "20", *options)
    assert done.status == 0, done.stderr
    found: list[dict[str, Any]] = done.said
    return found


async def called_by_hand(
    lab: Lab, engine: str, profile: str, workspace: Path, tool: str, **arguments: Any
) -> tuple[anyio.abc.Process, bytes]:
    """A gateway that has answered one call and waits for more: a process to be killed. And the answer."""
    args = ["gateway", "--profile", profile, "--engine", engine, "--workspace", str(workspace)]
    process = await anyio.open_process([str(FUMEHOOD), *args], env=lab.env, stderr=None)
    assert process.stdin is not None
    assert process.stdout is not None
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    await process.stdin.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode() + b"\n")
    with anyio.fail_after(60):
        return process, await process.stdout.receive()


async def test_a_server_cannot_go_on_working_between_its_calls(
    lab: Lab, engine: str, profiles: Any, workspace: Path, nothing_left: None  # noqa: ARG001 - a check
) -> None:
    async with opened(lab, engine, profiles(), workspace) as client:
        await said(client, "ticks")
        await said(client, "nap", seconds=0.3)
        before = int(await said(client, "ticks"))
        await anyio.sleep(1.5)
        after = int(await said(client, "ticks"))
        assert before > 10
        assert after - before < 15, "its thread did not run while nobody called"


async def test_each_call_has_its_own_record_and_usage_and_the_session_one_container(
    lab: Lab, engine: str, profiles: Any, workspace: Path, nothing_left: None  # noqa: ARG001
) -> None:
    async with opened(lab, engine, profiles(), workspace) as client:
        assert [await said(client, "count") for _ in range(3)] == ["1", "2", "3"]
        (session,) = json.loads((await anyio.to_thread.run_sync(lambda: lab.fumehood("sessions", "list", "--json"))).stdout)
        assert session["calls"] == 3
    calls = records(lab, "--session", session["task"])
    assert len({call["task"] for call in calls}) == 3
    assert {call["container"] for call in calls} == {session["container"]}
    assert all(call["usage"]["cpu_user_s"] < 1 for call in calls)
    whole = lab.fumehood("task", session["task"], "--json").said
    assert (whole["result"], whole["front_door"], whole["teardown"]["clean"]) == ("ok", "session", True)


@pytest.mark.parametrize("victim", ["broker", "ledger", "worker"])
async def test_a_frozen_box_does_not_survive_kill_9_of_any_of_us(
    lab: Lab, engine: str, profiles: Any, workspace: Path, victim: str
) -> None:
    process, answer = await called_by_hand(lab, engine, profiles(), workspace, "pid")
    assert b"result" in answer, answer
    frozen = lab.boxed("stateful.py")
    three = ours(process.pid)
    os.kill(three[victim], signal.SIGKILL)
    assert process.stdin is not None
    await process.stdin.aclose()
    with anyio.fail_after(30):
        await process.wait()
    for pid in three.values():
        assert gone(pid)
    assert lab.fumehood("run", "--profile", "python", "--engine", engine, "--", "true").status == 0, "the next start sweeps"
    assert gone(frozen)
    assert lab.left() == []


async def test_an_operator_ends_a_session_of_another_process_and_what_it_wrote_is_kept(
    lab: Lab, engine: str, profiles: Any, workspace: Path, nothing_left: None  # noqa: ARG001
) -> None:
    async with opened(lab, engine, profiles(), workspace) as client:
        await said(client, "write", name="kept.txt")
        assert not (workspace / "kept.txt").exists(), "a session's changes land when it ends"
        (session,) = json.loads((await anyio.to_thread.run_sync(lambda: lab.fumehood("sessions", "list", "--json"))).stdout)
        done = await anyio.to_thread.run_sync(lambda: lab.fumehood("sessions", "end", session["task"], "--json"))
        assert done.said == {"task": session["task"], "ended": True}
        with anyio.fail_after(20):
            while not (workspace / "kept.txt").exists():  # noqa: ASYNC110 - another process tells nobody
                await anyio.sleep(0.05)
        assert await said(client, "count") == "1", "the next call begins a new session"
        done = await anyio.to_thread.run_sync(lambda: lab.fumehood("sessions", "end", session["task"]))
        assert (done.status, "session_ended" in done.one_clear_line()) == (125, True)


async def test_a_signal_ends_a_session_in_order(
    lab: Lab, engine: str, profiles: Any, workspace: Path, nothing_left: None  # noqa: ARG001
) -> None:
    process, answer = await called_by_hand(lab, engine, profiles(), workspace, "write", name="signalled.txt")
    assert b"written" in answer, answer
    with anyio.fail_after(60):
        process.terminate()
        assert await process.wait() == 0
    assert (workspace / "signalled.txt").read_text() == "kept", "it was not lost with the signal"


async def test_a_memory_bomb_in_a_session_ends_it_and_is_recorded(
    lab: Lab, engine: str, profiles: Any, workspace: Path, nothing_left: None  # noqa: ARG001
) -> None:
    async with opened(lab, engine, profiles(), workspace) as client:
        assert await said(client, "count") == "1"
        result = await client.call_tool("eat", {"mebibytes": 400})
        assert result.is_error
        assert await said(client, "count") == "1"
    ended = [record for record in records(lab) if record["front_door"] == "session"]
    assert "memory" in {record["reason"] for record in ended}


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_question_parks_the_box_and_its_answer_comes_back_to_the_same_process(
    lab: Lab, engine: str, profiles: Any, workspace: Path, era: str, nothing_left: None  # noqa: ARG001
) -> None:
    asked: list[str] = []

    async def elicit(_context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"name": "Ada"})

    async with opened(lab, engine, profiles("call", era), workspace, elicitation_callback=elicit) as client:
        assert "Ada" in await said(client, "who")
    assert len(asked) == 1
    assert asked[0].startswith("["), asked
    call = next(record for record in records(lab) if record["tool"] == "who")
    assert call["timings_ms"]["parked"] > 0


async def test_a_box_that_nobody_answers_is_killed_while_it_is_frozen(
    lab: Lab, engine: str, profiles: Any, workspace: Path, nothing_left: None  # noqa: ARG001
) -> None:
    async def elicit(_context: Any, _params: Any) -> ElicitResult:
        await anyio.sleep(8)
        return ElicitResult(action="cancel")

    async with opened(lab, engine, profiles("call", "legacy"), workspace, elicitation_callback=elicit, mode="legacy") as client:
        result = await client.call_tool("who", {})
        assert result.is_error
    call = next(record for record in records(lab) if record["tool"] == "who")
    assert (call["result"], call["reason"]) == ("killed", "parked")


async def test_a_worker_that_was_taken_over_cannot_keep_a_box_frozen_for_ever(lab: Lab, engine: str) -> None:
    for seconds in ("-1", "1e9", "float('nan')", "'x'", "True"):
        patch = f"""
import fumehood.brokering as b
honest = b.BrokerClient.wait
async def wait(self, task):
    import anyio
    from fumehood.faults import FumehoodError
    try:
        await self._ask("freeze", {{"task": task, "seconds": {seconds}}})
        print("FROZEN", flush=True)
    except (FumehoodError, ValueError) as error:
        print("refused", error, flush=True)
    return await honest(self, task)
b.BrokerClient.wait = wait
"""
        done = lab.attacked(patch, engine, "true")
        assert "FROZEN" not in done.stdout, done.stdout
