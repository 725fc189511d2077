"""`fumehood run` and `fumehood gateway` end to end as an ordinary user: real boxes, a real server, a real client."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters

from lab import FUMEHOOD
from userlab import UserLab, user_lab_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[UserLab]:
    with user_lab_for("mcp-reference", "b") as made:
        yield made


@pytest.mark.usefixtures("nothing_left")
def test_a_command_runs_in_a_box_of_an_ordinary_users(lab: UserLab) -> None:
    done = lab.fumehood("run", "--profile", "python", "--", "python3", "-c", "print(6 * 7, input())", input="from stdin\n")
    assert (done.status, done.stdout, done.stderr) == (0, "42 from stdin\n", "")
    done = lab.fumehood("run", "--profile", "python", "--", "sh", "-c", "exit 3")
    assert done.status == 3


@pytest.mark.usefixtures("nothing_left")
def test_files_go_in_and_come_out_of_a_scratch_workspace(lab: UserLab) -> None:
    source = lab.home / "in"
    source.write_text("carried")
    os.chown(source, lab.uid, lab.gid)
    code = "text = open('in').read(); open('out', 'w').write(text.upper())"
    carried = ("--put", f"{source}:in", "--get", f"out:{lab.home}/out")
    done = lab.fumehood("run", "--profile", "python", *carried, "--", "python3", "-c", code)
    assert done.status == 0, done
    assert (lab.home / "out").read_text() == "CARRIED"
    assert (lab.home / "out").stat().st_uid == lab.uid


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_each_call_of_a_real_server_runs_in_a_container_of_its_own(lab: UserLab) -> None:
    argv = lab.as_user(str(FUMEHOOD), "gateway", "--profile", "mcp-server-time")
    params = StdioServerParameters(command=argv[0], args=argv[1:], env=lab.env, cwd=lab.home)
    with anyio.fail_after(60):
        async with Client(params) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"get_current_time", "convert_time"}
            results = [await client.call_tool("get_current_time", {"timezone": "UTC"}) for _ in range(2)]
    assert [result.is_error for result in results] == [False, False]
    assert all("UTC" in str(result.content[0]) for result in results)
    records = lab.fumehood("tasks", "--json").said
    called = [record for record in records if record["tool"] == "get_current_time"]
    assert len({record["container"] for record in called}) == len(called) == 2
    assert {record["result"] for record in called} == {"ok"}


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_session_stands_still_between_calls_and_is_ended_from_another_command(lab: UserLab) -> None:
    path = lab.folder / "profiles" / "kept.yaml"
    path.write_text("extends: mcp-server-time\nscope: session\n")
    argv = lab.as_user(str(FUMEHOOD), "gateway", "--profile", str(path))
    params = StdioServerParameters(command=argv[0], args=argv[1:], env=lab.env, cwd=lab.home)
    with anyio.fail_after(90):
        async with Client(params) as client:
            for _ in range(2):
                result = await client.call_tool("get_current_time", {"timezone": "UTC"})
                assert not result.is_error
            (session,) = (await anyio.to_thread.run_sync(lab.fumehood, "sessions", "list", "--json")).said
            assert session["calls"] == 2
            ended = await anyio.to_thread.run_sync(lab.fumehood, "sessions", "end", session["task"])
            assert ended.status == 0, ended
    records = {record["task"]: record for record in lab.fumehood("tasks", "--json").said}
    assert records[session["task"]]["state"] == "closed"


@pytest.mark.usefixtures("nothing_left")
def test_the_library_example_runs_a_box_of_an_ordinary_users(lab: UserLab) -> None:
    done = lab.fumehood(program=[sys.executable, str(ROOT / "examples" / "library.py")])
    assert done.status == 0, done.stderr
    assert done.stdout.startswith("ok: 42 in oci ")


@pytest.mark.usefixtures("nothing_left")
def test_an_ordinary_users_ledger_is_chained_signed_and_witnessed_too(lab: UserLab) -> None:
    folder = lab.home / "outside"
    folder.mkdir()
    os.chown(folder, lab.uid, lab.gid)
    config = Path(lab.env["FUMEHOOD_CONFIG"])
    before = config.read_text() if config.exists() else ""
    config.write_text(before + f"evidence: {{witness: [{{file: {folder}/w.jsonl}}]}}\n")
    try:
        done = lab.fumehood("run", "--profile", "python", "--json", "--", "true")
    finally:
        config.write_text(before)
    assert done.status == 0, done.stderr
    assert lab.fumehood("receipt", done.said["task"], "--verify").stdout.count("verified: signed by") == 1
    audit = lab.fumehood("audit", "verify", "--witness", str(folder / "w.jsonl"), "--json")
    assert (audit.status, audit.said["witnessed"]) == (0, 1), audit
    assert lab.fumehood("keys", "rotate").status == 0
