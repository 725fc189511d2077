"""`fumehood gateway` end to end: real clients, real servers, real boxes, on each engine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters

from lab import FUMEHOOD, Lab, gone, lab_for, with_marker


def tasks(of: Lab) -> list[dict[str, Any]]:
    """The newest records."""
    done = of.fumehood("tasks", "--json", "--limit", "20")
    assert done.status == 0, done.stderr
    found: list[dict[str, Any]] = done.said
    return found


PEER = Path(__file__).parent / "servers" / "peer.py"
PROFILE = """\
tools: {allow: "*"}
arguments: {open: ["*"]}
limits: {wall: 8s, result: 1MiB}
filesystem: {workspace: ro}
"""
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("mcp-reference", "g") as made:
        yield made


@pytest.fixture
def peer(lab: Lab) -> tuple[str, Path]:
    """A profile that allows everything of `peer`, and a workspace that holds it."""
    workspace = lab.workspace("peer")
    shutil.copy(PEER, workspace / "peer.py")
    return lab.profile("peer", PROFILE), workspace


def command(of: Lab, engine: str, profile: str, workspace: Path | None, *argv: str) -> StdioServerParameters:
    given = [] if workspace is None else ["--workspace", str(workspace)]
    args = ["gateway", "--profile", profile, "--engine", engine, *given, *(["--", *argv] if argv else [])]
    return StdioServerParameters(command=str(FUMEHOOD), args=args, env=of.env)


def in_box(mode: str = "modern", *words: str) -> tuple[str, ...]:
    return ("python3", "/workspace/peer.py", mode, *words)


def text(result: Any) -> str:
    return str(result.content[0].text)


REFERENCE: list[tuple[str, str, dict[str, Any], str | None, str]] = [
    ("mcp-server-time", "get_current_time", {"timezone": "UTC"}, None, "auto"),
    ("mcp-server-time", "get_current_time", {"timezone": "UTC"}, None, "legacy"),
    ("mcp-server-git", "git_log", {"repo_path": "/workspace"}, "repository", "auto"),
    ("mcp-server-filesystem", "read_text_file", {"path": "/workspace/a.txt"}, "repository", "legacy"),
    ("mcp-server-memory", "read_graph", {}, "memory", "auto"),
    ("mcp-server-everything", "get-sum", {"a": 1, "b": 2}, None, "legacy"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("profile", "tool", "arguments", "directory", "era"), REFERENCE, ids=[f"{row[0]}-{row[4]}" for row in REFERENCE]
)
async def test_each_call_of_a_real_server_runs_in_a_container_of_its_own(
    lab: Lab,
    engine: str,
    profile: str,
    tool: str,
    arguments: dict[str, Any],
    directory: str | None,
    era: str,
    nothing_left: None,  # noqa: ARG001 - a check, not a value
) -> None:
    workspace = None
    if directory is not None:
        workspace = lab.workspace(directory)
        if directory == "repository":
            make_repository(workspace)
    with anyio.fail_after(60):
        async with Client(command(lab, engine, profile, workspace), mode=era) as client:
            assert tool in [each.name for each in (await client.list_tools()).tools]
            results = [await client.call_tool(tool, arguments) for _ in range(2)]
    assert [result.is_error for result in results] == [False, False]
    if profile == "mcp-server-git":
        assert "the first commit" in text(results[0])
    names = [result.meta["fumehood/task"] for result in results if result.meta]
    records = {record["task"]: record for record in tasks(lab)}
    assert len({records[name]["container"] for name in names}) == 2
    assert {records[name]["result"] for name in names} == {"ok"}
    assert {records[name]["engine"] for name in names} == {engine}


def make_repository(folder: Path) -> None:
    (folder / "a.txt").write_text("words\n")
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "the first commit"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["modern", "legacy"])
async def test_bad_servers_give_typed_results_and_closed_records(
    lab: Lab,
    engine: str,
    mode: str,
    peer: tuple[str, Path],
    nothing_left: None,  # noqa: ARG001 - a check, not a value
) -> None:
    expected = {
        "die": ("failed", "server_died"),
        "nan": ("failed", "server_garbage"),
        "flood": ("failed", "server_garbage"),
        "long_line": ("failed", "result_too_large"),
        "huge": ("failed", "result_too_large"),
        "hang": ("killed", "wall"),
    }
    found: dict[str, tuple[str, str]] = {}
    names: list[str] = []
    with anyio.fail_after(90):
        async with Client(command(lab, engine, *peer, *in_box(mode))) as client:
            for tool in expected:
                result = await client.call_tool(tool, {})
                assert result.is_error
                assert result.meta is not None
                outcome = result.meta["fumehood/outcome"]
                found[tool] = (outcome["result"], outcome["reason"])
                assert text(result).startswith(f"fumehood: {outcome['reason']}: ")
                names.append(outcome["task"])
            with pytest.raises(MCPError) as caught:
                await client.call_tool("error", {})
            assert caught.value.error.code == -32042, "the server's own error passes as it came"
            assert not (await client.call_tool("echo", {"a": 1})).is_error
            stubborn = await client.call_tool("subprocess_line", {})
            assert text(stubborn) == "done"
    assert found == expected
    records = {record["task"]: record for record in tasks(lab)}
    assert {
        tool: (records[task]["result"], records[task]["reason"]) for tool, task in zip(expected, names, strict=True)
    } == found
    assert "server_error" in {record["reason"] for record in records.values()}


@pytest.mark.anyio
async def test_progress_and_media_come_through_a_box(lab: Lab, engine: str, peer: tuple[str, Path]) -> None:
    steps: list[float] = []

    async def progress(done: float, _total: float | None, _message: str | None) -> None:
        steps.append(done)

    with anyio.fail_after(60):
        async with Client(command(lab, engine, *peer, *in_box())) as client:
            await client.call_tool("progress", {}, progress_callback=progress)
            media = await client.call_tool("media", {})
    assert steps == [1, 2, 3]
    assert [block.type for block in media.content] == ["image", "audio", "resource", "resource_link"]
    assert media.structured_content["n"] == 9007199254740993


@pytest.mark.anyio
async def test_a_server_that_cannot_start_is_one_typed_error(
    lab: Lab, engine: str, peer: tuple[str, Path]
) -> None:
    for argv, reasons in ((in_box("dies"), {"server_died"}), (("/no/such/server",), {"not_executable", "server_died"})):
        with anyio.fail_after(60):
            async with Client(command(lab, engine, *peer, *argv)) as client:
                with pytest.raises(MCPError) as refused:
                    await client.list_tools()
                assert refused.value.data["reason"] in reasons


@pytest.mark.anyio
async def test_a_tool_that_is_not_allowed_leaves_a_refused_record(lab: Lab, engine: str) -> None:
    with anyio.fail_after(60):
        async with Client(command(lab, engine, "mcp-server-time", None)) as client:
            with pytest.raises(MCPError) as refused:
                await client.call_tool("rm_rf", {})
    data = refused.value.data
    assert data["reason"] == "tool_not_allowed"
    record = next(record for record in tasks(lab) if record["task"] == data["task"])
    assert (record["result"], record["reason"]) == ("refused", "tool_not_allowed")


class Raw:
    """A gateway whose frames are written by hand."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def send(self, **members: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **members}).encode() + b"\n")
        self.process.stdin.flush()

    def call(self, number: int, tool: str, **arguments: Any) -> None:
        version = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
        meta = {**version, "io.modelcontextprotocol/clientCapabilities": {}}
        self.send(id=number, method="tools/call", params={"name": tool, "arguments": arguments, "_meta": meta})

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def raw_gateway(of: Lab, engine: str, profile: str, workspace: Path, *argv: str) -> Iterator[Raw]:
    params = command(of, engine, profile, workspace, *argv)
    process = subprocess.Popen(
        [params.command, *params.args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=of.env,
    )
    try:
        yield Raw(process)
    finally:
        process.kill()
        process.wait(timeout=20)
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def hanging_server(raw: Raw, marker: str, number: int) -> int:
    """Call `hang`, and the host's pid of the server that now hangs."""
    raw.call(number, "hang")
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        # Not the box's init, which holds the same words until it has forked.
        if servers := [pid for pid in with_marker(marker) if reads_nothing(pid)]:
            return servers[0]
        time.sleep(0.02)  # another process's progress, with a deadline
    raise AssertionError("the server never came up")


def reads_nothing(pid: int) -> bool:
    """Whether a server has taken its call and sleeps in it."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().startswith("hrtimer_nanosleep")
    except OSError:
        return False


def test_a_cancel_kills_the_box_within_200_ms(
    lab: Lab,
    engine: str,
    peer: tuple[str, Path],
    nothing_left: None,  # noqa: ARG001 - a check, not a value
) -> None:
    marker = f"marker-cancel-{engine}"
    with raw_gateway(lab, engine, *peer, *in_box("modern", marker)) as raw:
        pid = hanging_server(raw, marker, 1)
        began_s = time.monotonic()
        raw.send(method="notifications/cancelled", params={"requestId": 1})
        assert gone(pid, 5)
        assert time.monotonic() - began_s < 0.2
        raw.call(2, "echo", a=1)
        assert raw.read()["id"] == 2, "a cancelled call gets no answer"
        assert raw.process.stdin is not None
        raw.process.stdin.close()
        assert raw.process.wait(timeout=20) == 0
    newest = next(record for record in tasks(lab) if record["tool"] == "hang")
    assert (newest["result"], newest["reason"]) == ("killed", "cancelled")


@pytest.mark.parametrize("how", ["hangs up", "terminates"])
def test_a_client_that_leaves_takes_its_boxes_along(
    lab: Lab,
    engine: str,
    how: str,
    peer: tuple[str, Path],
    nothing_left: None,  # noqa: ARG001 - a check, not a value
) -> None:
    marker = f"marker-{how.replace(' ', '-')}-{engine}"
    with raw_gateway(lab, engine, *peer, *in_box("modern", marker)) as raw:
        pid = hanging_server(raw, marker, 1)
        if how == "hangs up":
            assert raw.process.stdin is not None
            raw.process.stdin.close()
        else:
            raw.process.send_signal(signal.SIGTERM)
        assert gone(pid, 2)
        assert raw.process.wait(timeout=20) == 0


def test_nothing_but_protocol_is_on_stdout(lab: Lab, engine: str, peer: tuple[str, Path]) -> None:
    params = command(lab, engine, *peer, *in_box())
    frames = [b"not json", b'{"jsonrpc":"2.0","id":true,"method":"ping"}', b"\xff"]
    done = subprocess.run(
        [params.command, *params.args],
        input=b"\n".join(frames) + b"\n",
        capture_output=True,
        env=lab.env,
        timeout=60,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["error"]["code"] for line in lines] == [-32700, -32600, -32700]
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--profile", "no-such-profile"], "profile_unknown"),
        (["--profile", "mcp-server-time", "--engine", "vmware"], "bad_request"),
        (["--profile", "mcp-server-git", "--workspace", "/no/such/directory"], "workspace_unreadable"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_no_protocol(lab: Lab, args: list[str], word: str) -> None:
    done = lab.fumehood("gateway", *args)
    assert done.status == 125
    assert done.stdout == ""
    assert word in done.one_clear_line()
