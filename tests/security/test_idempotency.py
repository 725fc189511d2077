"""Requests that are sent again, with real boxes: whatever is killed, and however many ask, the workspace shows one run."""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lab_for, ours
from live_gateway import LiveGateway, configure, live_gateway

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]
TELLER = Path(__file__).resolve().parents[1] / "e2e" / "servers" / "teller.py"
# Directly: a run is seen however its call ends.
DIRECT = """\
command: [python3, /workspace/teller.py]
tools: {allow: [mark]}
arguments: {open: [mark]}
filesystem: {workspace: direct}
limits: {wall: 30s, disk: unlimited}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "-once") as made:
        yield made


@pytest.fixture
def workspace(lab: Lab) -> Path:
    made = lab.workspace("marked")
    made.chmod(0o777)  # a box's own uid writes there
    shutil.copy(TELLER, made / "teller.py")
    return made


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


def served(lab: Lab, workspace: Path, engine: str, allow: str = "[mark]") -> Path:
    profile = lab.profile("marks", DIRECT.replace("[mark]", allow))
    return configure(lab, f"{{servers: {{marks: {{profile: {profile}, workspace: {workspace}, engine: {engine}}}}}}}")


def marks(workspace: Path) -> int:
    file = workspace / "marks"
    return len(file.read_text().splitlines()) if file.exists() else 0


def send(gateway: LiveGateway, key: str, **arguments: Any) -> int:
    return gateway.send("tools/call", name="mark", arguments=arguments, _meta={"fumehood/idempotencyKey": key})


def call(gateway: LiveGateway, key: str, **arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = gateway.answer(send(gateway, key, **arguments))["result"]
    return found


def reason(result: dict[str, Any]) -> tuple[str, str]:
    told = result["_meta"]["fumehood/outcome"]
    return told["result"], told["reason"]


def test_twenty_requests_with_one_key_leave_one_mark_and_twenty_records(lab: Lab, engine: str, workspace: Path, key: str) -> None:
    with live_gateway(lab, served(lab, workspace, engine)) as gateway:
        numbers = [send(gateway, key, seconds=1) for _ in range(20)]
        answers = [gateway.answer(number)["result"] for number in numbers]
        assert {answer["content"][0]["text"] for answer in answers} == {"marked"}
        assert marks(workspace) == 1
        first = {answer["_meta"].get("fumehood/repeats", answer["_meta"]["fumehood/task"]) for answer in answers}
        assert len(first) == 1
        assert len({answer["_meta"]["fumehood/task"] for answer in answers}) == 20
    (ran,) = first
    repeat = next(answer["_meta"]["fumehood/task"] for answer in answers if "fumehood/repeats" in answer["_meta"])
    record = lab.fumehood("task", repeat, "--json").said
    assert (record["result"], record["repeats"], record["container"], record["idempotency_key"]) == ("repeated", ran, None, key)
    shown = lab.fumehood("task", repeat).stdout
    assert "repeated" in shown
    assert ran in shown
    assert len(lab.fumehood("tasks", "--json", "--result", "repeated", "--limit", "100").said) >= 19


def test_two_gateways_of_one_state_folder_run_it_once(lab: Lab, engine: str, workspace: Path, key: str) -> None:
    file = served(lab, workspace, engine)
    with live_gateway(lab, file) as one, live_gateway(lab, file) as other:
        assert one.tools() == other.tools() == ["mark"]
        numbers = send(one, key, seconds=1), send(other, key, seconds=1)
        answers = [gateway.answer(number)["result"] for gateway, number in zip((one, other), numbers, strict=True)]
        assert [answer["content"][0]["text"] for answer in answers] == ["marked"] * 2
        assert sum("fumehood/repeats" in answer["_meta"] for answer in answers) == 1
    assert marks(workspace) == 1


@pytest.mark.parametrize("victim", ["worker", "broker"])
def test_a_call_whose_runtime_is_killed_in_the_middle_is_not_run_again_by_the_next(
    lab: Lab, engine: str, workspace: Path, key: str, victim: str
) -> None:
    file = served(lab, workspace, engine)
    with live_gateway(lab, file) as gateway:
        gateway.tools()
        send(gateway, key, seconds=20)
        gateway.until(lambda: marks(workspace) == 1)
        pid = gateway.process.pid if victim == "worker" else next(
            pid for pid in ours(gateway.process.pid).values() if pid != gateway.process.pid and os.stat(f"/proc/{pid}").st_uid == 0
        )  # fmt: skip
        os.kill(pid, signal.SIGKILL)
        if victim == "worker":
            gateway.process.wait(timeout=20)
    with live_gateway(lab, file) as again:
        told = call(again, key, seconds=20)
        expected = {"worker": ("lost", "runtime_died")}.get(victim)
        assert reason(told) == expected if expected else reason(told)[0] in {"lost", "failed", "killed"}
        assert told["isError"]
        assert "fumehood/repeats" in told["_meta"]
        assert call(again, key, seconds=20)["content"] == told["content"]
        assert marks(workspace) == 1
        fresh = call(again, key[::-1])
        assert fresh["content"][0]["text"] == "marked", "a new key is a new run"
    assert marks(workspace) == 2


def test_an_error_result_of_the_tools_own_is_a_result_and_survives_a_restart(lab: Lab, engine: str, workspace: Path, key: str) -> None:
    file = served(lab, workspace, engine)
    with live_gateway(lab, file) as gateway:
        first = call(gateway, key, fail=True)
        assert first["isError"]
        gateway.end()
    with live_gateway(lab, file) as later:
        again = call(later, key, fail=True)
        assert (again["isError"], again["content"]) == (True, first["content"])
        assert lab.fumehood("tasks", "prune", "--older-than", "0s").status == 0
        gone = call(later, key, fail=True)
        assert reason(gone) == ("refused", "result_gone")
        assert first["_meta"]["fumehood/task"] in gone["content"][0]["text"]
    assert marks(workspace) == 1


def test_a_tool_that_was_forbidden_in_between_gives_no_old_result(lab: Lab, workspace: Path, key: str) -> None:
    file = served(lab, workspace, "oci")
    with live_gateway(lab, file) as gateway:
        assert call(gateway, key)["content"][0]["text"] == "marked"
        served(lab, workspace, "oci", allow="[other]")
        assert "was read again" in gateway.reload()
        refused = gateway.answer(send(gateway, key))
        assert refused["error"]["data"]["reason"] == "tool_not_allowed"
        served(lab, workspace, "oci", allow="[mark, other]")
        assert "was read again" in gateway.reload()
        told = call(gateway, key)
        assert reason(told) == ("refused", "key_reused"), "under another profile there is neither the old answer nor a second run"
    assert marks(workspace) == 1


def test_without_the_ledger_nothing_with_a_key_runs(lab: Lab, workspace: Path, key: str) -> None:
    with live_gateway(lab, served(lab, workspace, "oci")) as gateway:
        gateway.tools()
        os.kill(ours(gateway.process.pid)["ledger"], signal.SIGKILL)
        began = time.monotonic()
        assert reason(call(gateway, key)) == ("refused", "ledger_unavailable")
        assert time.monotonic() - began < 15
    assert marks(workspace) == 0
    assert lab.run("oci", "true").status == 0  # sweeps
