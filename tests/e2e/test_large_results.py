"""Large results, workspace files and tasks with real boxes, on each engine."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters

from fumehood.gateway import protocol
from lab import FUMEHOOD, STORE, Lab, children, close_lab, docker_answers, gone, open_lab

pytestmark = pytest.mark.root

SERVER = Path(__file__).parent / "servers" / "stateful.py"
PROFILE = """\
command: [python3, /workspace/stateful.py, {era}]
tools: {{allow: "*"}}
arguments: {{open: ["*"]}}
resources: {{allow: ["workspace:///*"]}}
results: spill
limits: {{wall: 30s, memory: 256MiB, result: 100KiB}}
filesystem: {{workspace: rw}}
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: real boxes")
    if not FUMEHOOD.exists() or not (STORE / "names" / "mcp-reference").exists():
        pytest.skip("needs ./scripts/setup: the command and the image `mcp-reference`")
    lab = open_lab("large")
    try:
        yield lab
    finally:
        close_lab(lab)


@pytest.fixture(params=["oci", "docker"])
def engine(request: pytest.FixtureRequest, own_lab: Lab) -> str:  # noqa: ARG001 - root comes first
    name: str = request.param
    if name == "docker" and not docker_answers():
        pytest.skip("no Docker engine answers")
    if name == "oci" and not (shutil.which("crun") or shutil.which("runc")):
        pytest.skip("no OCI runtime is installed")
    return name


@pytest.fixture(autouse=True)
def nothing_left(own_lab: Lab) -> Iterator[None]:
    yield
    assert own_lab.left() == []


@asynccontextmanager
async def opened(lab: Lab, engine: str, profile: str, workspace: Path) -> AsyncIterator[Client]:
    args = ["gateway", "--profile", profile, "--engine", engine, "--workspace", str(workspace)]
    with anyio.fail_after(90):
        async with Client(StdioServerParameters(command=str(FUMEHOOD), args=args, env=lab.env)) as client:
            yield client


def stateful(lab: Lab, era: str = "modern") -> tuple[str, Path]:
    workspace = lab.workspace("stateful")
    shutil.copy(SERVER, workspace / "stateful.py")
    return lab.profile(f"large-{era}", PROFILE.format(era=era)), workspace


def link_of(result: Any) -> Any:
    said, link = result.content
    assert "`limits.result` of 102400" in said.text, said.text
    return link


@pytest.mark.anyio
@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_spilled_result_is_read_back_by_a_later_gateway_until_it_is_pruned(own_lab: Lab, engine: str, era: str) -> None:
    profile, workspace = stateful(own_lab, era)
    async with opened(own_lab, engine, profile, workspace) as client:
        result = await client.call_tool("big", {"bytes": 1_500_000})
        assert not result.is_error
        uri = str(link_of(result).uri)
        (found,) = (await client.read_resource(uri)).contents
        assert json.loads(found.text)["content"][0]["text"] == "x" * 1_500_000
        over = await client.call_tool("big", {"bytes": 2_000_000})
        assert over.is_error
        assert over.meta is not None
        assert over.meta["fumehood/outcome"]["reason"] == "result_too_large"
    async with opened(own_lab, engine, profile, workspace) as client:
        (again,) = (await client.read_resource(f"{uri}?offset=0&length=10")).contents
        assert base64.b64decode(again.blob) == found.text[:10].encode()
        with pytest.raises(MCPError, match="no such resource"):
            await client.read_resource(uri.replace(uri.split("/")[3], "0" * 26))
    kept = own_lab.state / "ledger" / "results"
    (file,) = kept.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert own_lab.fumehood("tasks", "prune", "--older-than", "1h", "--json").said == {"removed": 0, "bytes": 0, "leases": 0, "egress": 0}
    assert own_lab.fumehood("tasks", "prune", "--older-than", "0s", "--json").said["removed"] == 1
    assert list(kept.iterdir()) == []
    async with opened(own_lab, engine, profile, workspace) as client:
        with pytest.raises(MCPError, match="no such resource"):
            await client.read_resource(uri)


@pytest.mark.anyio
async def test_a_real_servers_file_over_the_limit_spills_and_is_an_error_for_its_schema(own_lab: Lab, engine: str) -> None:
    workspace = own_lab.workspace("files")
    (workspace / "large.txt").write_text("words\n" * 30_000)
    path = own_lab.folder / "profiles" / "spilling.yaml"
    path.write_text(
        'extends: mcp-server-filesystem\nresults: spill\nlimits: {result: 100KiB}\nresources: {allow: ["workspace:///*"]}\n'
    )
    async with opened(own_lab, engine, str(path), workspace) as client:
        result = await client.call_tool("read_text_file", {"path": "/workspace/large.txt"})
        (found,) = (await client.read_resource(str(link_of(result).uri))).contents
        assert json.loads(found.text)["content"][0]["text"] == "words\n" * 30_000
        written = await client.call_tool("write_file", {"path": "/workspace/new é.txt", "content": "made in a box"})
        assert not written.is_error
        (link,) = [each for each in written.content if each.type == "resource_link"]
        assert str(link.uri) == "workspace:///new%20%C3%A9.txt"
        (read,) = (await client.read_resource(str(link.uri))).contents
        assert read.text == "made in a box"


@pytest.mark.anyio
async def test_no_link_fifo_or_dot_segment_leads_a_reader_out_of_the_workspace(own_lab: Lab, engine: str) -> None:
    profile, workspace = stateful(own_lab)
    (workspace / "a.txt").write_text("mine")
    (workspace / "link").symlink_to("/etc/passwd")
    (workspace / "up").symlink_to("..")
    (workspace / "inner").symlink_to("a.txt")
    os.mkfifo(workspace / "fifo")
    (workspace / "folder").mkdir()
    with (workspace / "huge").open("wb") as file:
        file.truncate(2**40)  # sparse: it must be counted, not copied
    async with opened(own_lab, engine, profile, workspace) as client:
        templates = (await client.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates] == ["workspace:///{+path}"]
        (read,) = (await client.read_resource("workspace:///a.txt")).contents
        assert read.text == "mine"
        for name in ("link", "up/x", "inner", "fifo", "folder", "huge", "none", "..%2fx", "%2e%2e/x", "a.txt/x"):
            with pytest.raises(MCPError) as caught:
                await client.read_resource(f"workspace:///{name}")
            assert "root:" not in str(caught.value)
            reason = caught.value.error.data["reason"]
            assert reason in ({"result_too_large"} if name == "huge" else {"not_known", "not_allowed"}), (name, reason)
    records = own_lab.fumehood("tasks", "--json", "--limit", "50").said
    read_ones = [each for each in records if (each["tool"] or "").startswith("resource:workspace:///")]
    assert len(read_ones) >= 11
    assert {each["state"] for each in read_ones} == {"closed"}


class Raw:
    """A modern client that takes tasks, by hand."""

    def __init__(self, lab: Lab, engine: str, profile: str, workspace: Path) -> None:
        args = ["gateway", "--profile", profile, "--engine", engine, "--workspace", str(workspace)]
        self.process = subprocess.Popen(
            [str(FUMEHOOD), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=lab.env, cwd=lab.folder
        )

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        meta = {
            protocol.VERSION_KEY: "2026-07-28",
            protocol.CAPABILITIES_KEY: {"extensions": {protocol.TASKS_EXTENSION: {}}},
            protocol.CLIENT_INFO_KEY: {"name": "raw", "version": "0"},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def nap(self, seconds: float) -> str:
        return str(self.ask("tools/call", name="nap", arguments={"seconds": seconds})["result"]["taskId"])

    def status(self, task: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("tasks/get", taskId=task)["result"]
        return found

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(30)


def test_a_task_outlives_its_gateway_and_one_that_died_with_it_has_failed(own_lab: Lab, engine: str) -> None:
    profile, workspace = stateful(own_lab)
    first = Raw(own_lab, engine, profile, workspace)
    try:
        ended = first.nap(11)
        with_deadline = time.monotonic() + 20
        while first.status(ended)["status"] == "working":
            assert time.monotonic() < with_deadline
            time.sleep(0.1)
        shown = first.status(ended)
        assert shown["result"]["content"][0]["text"] == "rested"
        lost = first.nap(29)
        workers = children(first.process.pid)
    finally:
        first.end(signal.SIGKILL)
    assert all(gone(pid, 30) for pid in workers)
    later = Raw(own_lab, engine, profile, workspace)
    try:
        assert later.ask("tools/list")["result"]["tools"], "its broker has swept by then"
        told = later.status(ended)
        assert (told["status"], told["result"]) == ("completed", shown["result"])
        failed = later.status(lost)
        assert failed["status"] == "failed"
        assert failed["error"]["data"]["reason"] == "runtime_died"
        assert later.ask("tasks/get", taskId="0" * 26)["error"]["message"] == "Invalid params: there is no such task"
    finally:
        later.end(signal.SIGTERM)
