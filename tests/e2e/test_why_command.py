"""`fumehood why TASK` on calls that really ended so."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from gated_servers import GatedServers, gated_servers
from lab import FUMEHOOD, Lab, lab_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Any:
    with lab_for("python", "why") as made:
        yield made


def why(lab: Lab, *args: str) -> dict[str, Any]:
    told: dict[str, Any] = lab.fumehood("why", *args, "--json").said
    return told


def test_a_call_that_ran_into_its_limit_is_told_the_line_and_its_price(lab: Lab) -> None:
    profile = lab.profile("short", "limits: {wall: 1s}\n")
    done = lab.python("oci", "import time; time.sleep(30)", profile=profile)
    task = done.said["task"]
    told = why(lab, task, "--profile", profile)
    assert told["denial"]["reason"] == "wall"
    assert told["denial"]["asked"]["kind"] == "command"
    assert (told["ways"][0]["line"], told["profile"]["changed_since"]) == ("limits: {wall: 2s}", False)
    shown = lab.fumehood("why", task, "--profile", profile).stdout
    assert "limits: {wall: 2s}" in shown
    assert "asking again" in shown
    lab.profile("short", "limits: {wall: 3s}\n")
    assert why(lab, task, "--profile", profile)["profile"]["changed_since"]


def test_what_went_through_or_never_was_is_one_clear_line(lab: Lab) -> None:
    task = lab.python("oci", "print(1)").said["task"]
    for name, code in ((task, "bad_request: "), ("0" * 26, "task_unknown: ")):
        done = lab.fumehood("why", name)
        assert done.status == 125
        assert code in done.one_clear_line()


@pytest.mark.anyio
async def test_the_client_the_log_and_why_tell_the_same_object(lab: Lab, tmp_path: Path) -> None:
    profile = lab.profile("few", 'command: [python3, -c, "pass"]\ntools: {allow: [read]}\n')
    log = tmp_path / "log"
    command = shlex.join([str(FUMEHOOD), "gateway", "--profile", profile, "--engine", "oci"])
    server = StdioServerParameters(command="sh", args=["-c", f"exec {command} 2> {log}"], env=lab.env)
    async with Client(server, mode="auto") as client:
        with pytest.raises(Exception, match="tool_not_allowed") as refused:
            await client.call_tool("push", {})
    data = refused.value.error.data  # type: ignore[attr-defined]
    assert "will not help" in str(refused.value)
    (line,) = [line for line in log.read_text().splitlines() if data["task"] in line]
    assert json.loads(line[line.index('{"task"') :]) == data
    told = why(lab, data["task"], "--profile", profile)
    assert told["ways"][0]["line"] == 'tools: {allow: ["read", "push"]}'
    denial = told["denial"]
    assert {name: denial[name] for name in ("task", "result", "reason", "rule", "detail", "again")} == {
        name: data[name] for name in ("task", "result", "reason", "rule", "detail", "again")
    }


@pytest.fixture(scope="module")
def servers() -> Any:
    with gated_servers("whygate") as made:
        yield made


@pytest.mark.anyio
async def test_what_the_gate_refused_is_told_with_what_could_leak_there(servers: GatedServers) -> None:
    async with servers.client("oci", servers.fetching()) as client:
        name = await client.call_tool("fetch", {"url": "https://elsewhere.example/pages/a"})
    assert name.is_error
    told = why(servers.lab, name.meta["fumehood/task"], "--profile", servers.fetching())
    assert {facts["why"] for facts in told["egress_refused"]} == {"name_not_listed"}
    (way,) = told["ways"]
    assert way["line"] == 'network: {egress: [{tls: "elsewhere.example"}]}'
    assert "can be sent to" in way["risk"]
