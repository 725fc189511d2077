"""Servers that were started before their call, by attack, on each engine: one call each, nothing of another's, no way out (rule 27)."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from fumehood.broker.fencing import PROBES
from gated_servers import TOKEN, GatedServers, gated_servers
from lab import FUMEHOOD, Lab, gone, memory_holds, ours

pytestmark = [pytest.mark.root, pytest.mark.anyio]

PROGRAM = (Path(__file__).parent / "inside" / "standing.py").read_text()
PROFILE = """\
command: [python3, -uc, {program}, {marker}, {mode}]
tools: {{allow: "*"}}
arguments: {{open: ["*"]}}
pool: {{started: {started}}}
{more}
"""
PLAIN = "limits: {wall: 30s, memory: 128MiB}\nfilesystem: {workspace: none}\n"
# Every field of a box as it is by no default.
UNUSUAL = """\
environment: {{ONE: "1", TWO: "2"}}
seccomp: unix-sockets
limits: {{wall: 30s, memory: 96MiB, cpu: 0.5, pids: 17, open_files: 99}}
filesystem: {{workspace: none, tmp: 1MiB, mounts: [{{source: {mount}, name: data}}]}}
"""
GATED = """\
image: net-clients
network:
  egress:
    - {{http: "web.internal:{web}", addresses: [127.0.0.0/8], allow: ["GET /pages/**"], credential: web}}
    - {{tcp: "db.internal:{db}", addresses: [127.0.0.0/8]}}
"""


def profile(lab: Lab, name: str, mode: str = "quiet", *, started: int = 1, more: str = "") -> str:
    words = ", ".join(json.dumps(word) for word in mode.split())
    text = PROFILE.format(program=json.dumps(PROGRAM), marker=f"standing-{name}", mode=words, started=started, more=more or PLAIN)
    return lab.profile(f"standing-{name}", text)


@asynccontextmanager
async def opened(lab: Lab, engine: str, of: str, patch: str = "") -> AsyncIterator[Client]:
    program = f"{patch}\nfrom fumehood.cli.main import main\nimport sys\nsys.argv[0] = 'fumehood'\nmain()"
    args = ["-c", program, "gateway", "--profile", of, "--engine", engine]
    server = StdioServerParameters(command=sys.executable, args=args, env=lab.env)
    with anyio.fail_after(90):
        async with Client(server) as client:
            yield client


async def said(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    return json.loads(result.content[0].text)


async def records(lab: Lab, *options: str) -> list[dict[str, Any]]:
    done = await anyio.to_thread.run_sync(lambda: lab.fumehood("tasks", "--json", "--limit", "40", *options))
    assert done.status == 0, done.stderr
    found: list[dict[str, Any]] = done.said
    return found


async def details(lab: Lab, task: str) -> dict[str, Any]:
    done = await anyio.to_thread.run_sync(lambda: lab.fumehood("task", task, "--json"))
    found: dict[str, Any] = done.said
    return found


async def standing(lab: Lab, number: int = 1) -> list[dict[str, Any]]:
    """The records of those that stand by: the server of each has answered and is frozen."""
    with anyio.fail_after(40):
        while True:
            found = await records(lab, "--result", "open", "--front-door", "pool")
            running = [record for record in found if record["state"] == "running" and frozen(record)]
            if len(running) == number:
                return running
            await anyio.sleep(0.1)


async def ended(lab: Lab) -> dict[str, Any]:
    """The record of the latest that stands by no more."""
    with anyio.fail_after(40):
        while True:
            found = await records(lab, "--front-door", "pool")
            if found and found[0]["state"] == "closed":
                return found[0]
            await anyio.sleep(0.1)


def frozen(record: dict[str, Any]) -> bool:
    """Whether the box of a record stands still, by the kernel's word."""
    places = [*Path("/sys/fs/cgroup").glob(f"**/fumehood/*/{record['task']}/cgroup.events")]
    if places:
        return "frozen 1" in places[0].read_text()
    (state,) = [*Path("/sys/fs/cgroup/freezer").glob(f"**/*{record['container'][-12:]}*/freezer.state")][:1] or [None]
    if state is None:
        state = next(iter(Path("/sys/fs/cgroup/freezer/docker").glob("*/freezer.state")), None)
    return state is not None and state.read_text().strip() == "FROZEN"


async def test_no_two_calls_share_a_box_and_each_record_names_its_own(
    lab: Lab, engine: str, nothing_left: None  # noqa: ARG001 - a check
) -> None:
    async with opened(lab, engine, profile(lab, f"shared-{engine}")) as client:
        await client.list_tools()
        hosts = []
        for _ in range(3):
            hosts += [record["task"] for record in await standing(lab)]
            assert (await said(client, "mark"))[0] == [], "a file of an earlier call"
    assert len({*hosts}) == 3
    calls = [record for record in await records(lab) if record["tool"] == "mark"][:3]
    made = [event for call in calls for event in (await details(lab, call["task"]))["events"] if event["state"] == "made"]
    assert sorted(event["facts"]["standby"] for event in made) == sorted(hosts)
    for task in hosts:
        host = await details(lab, task)
        assert (host["result"], host["front_door"], host["teardown"]["clean"]) == ("ok", "pool", True)
        assert {call["container"] for call in calls} >= {host["container"]}


async def test_what_stands_by_does_nothing_until_its_call(lab: Lab, engine: str, nothing_left: None) -> None:  # noqa: ARG001
    async with opened(lab, engine, profile(lab, f"still-{engine}")) as client:
        await client.list_tools()
        await standing(lab)
        await anyio.sleep(1.5)
        assert await said(client, "ticks") < 75, "its thread ran while it stood by"


@pytest.mark.parametrize("mode", ["forks", "listens", "writes"])
async def test_a_server_that_does_more_than_wait_is_never_offered(
    lab: Lab, engine: str, mode: str, nothing_left: None  # noqa: ARG001
) -> None:
    async with opened(lab, engine, profile(lab, f"{mode}-{engine}", mode)) as client:
        await client.list_tools()
        assert (await ended(lab))["reason"] == "not_quiet"
        call = await said(client, "mark")
        assert call[0] == []
    record = next(record for record in await records(lab) if record["tool"] == "mark")
    made = next(event for event in (await details(lab, record["task"]))["events"] if event["state"] == "made")
    assert "standby" not in made["facts"]


async def test_a_box_that_stood_by_equals_one_made_for_its_call_in_every_field_read_back(
    lab: Lab, engine: str, nothing_left: None  # noqa: ARG001
) -> None:
    mount = lab.folder / "mounted"
    mount.mkdir(exist_ok=True)
    config = lab.folder / "fumehood.yaml"
    if "mount_roots" not in config.read_text():
        config.write_text(config.read_text() + f"mount_roots: [{mount}]\n")
    unusual = UNUSUAL.format(mount=mount)
    found, seen = [], []
    for started in (0, 1):
        async with opened(lab, engine, profile(lab, f"equal-{engine}-{started}", started=started, more=unusual)) as client:
            await client.list_tools()
            if started:
                await standing(lab)
            seen.append(await said(client, "facts"))
        record = next(record for record in await records(lab) if record["tool"] == "facts")
        whole = await details(lab, record["task"])
        assert ("standby" in next(e["facts"] for e in whole["events"] if e["state"] == "made")) == bool(started)
        found.append(whole["readback"])
    cold, ahead = found
    fence = ahead.pop("fence")
    assert "fence" not in cold
    assert [fence[name] for name in PROBES if fence[name] == "reached"] == []
    assert {*fence} == {*PROBES}
    assert seen[0] == seen[1]
    assert _comparable(cold) == _comparable(ahead)


def _comparable(readback: dict[str, Any]) -> Any:
    """A read-back without what is another in each box: its ids, and what they are counted in."""
    own = {"uid_map", "gid_map", "uid", "gid", "uids", "gids", "pid", "network", "namespaces"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items() if name not in own}
        if isinstance(value, list):
            return sorted(json.dumps(plain(each), sort_keys=True) for each in value)
        return "".join("#" if c.isdigit() else c for c in value) if isinstance(value, str) else value

    return plain(readback)


@pytest.mark.parametrize("victim", ["broker", "ledger", "worker"])
async def test_what_stands_by_does_not_survive_kill_9_of_any_of_us(lab: Lab, engine: str, victim: str) -> None:
    name = f"killed-{engine}-{victim}"
    of = profile(lab, name)
    process = await anyio.open_process(
        [str(FUMEHOOD), "gateway", "--profile", of, "--engine", engine], env=lab.env, stderr=None
    )
    assert process.stdin is not None
    assert process.stdout is not None
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    await process.stdin.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}).encode() + b"\n")
    with anyio.fail_after(60):
        assert b"result" in await process.stdout.receive()
    await standing(lab)
    stands = lab.boxed(f"standing-{name}")
    three = ours(process.pid)
    os.kill(three[victim], signal.SIGKILL)
    await process.stdin.aclose()
    with anyio.fail_after(30):
        await process.wait()
    for pid in three.values():
        assert gone(pid)
    done = await anyio.to_thread.run_sync(lambda: lab.fumehood("run", "--profile", "python", "--engine", engine, "--", "true"))
    assert done.status == 0, "the next start sweeps"
    assert gone(stands)
    assert lab.left() == []


@pytest.fixture(scope="module")
def servers() -> Iterator[GatedServers]:
    with gated_servers("sb") as made:
        yield made


async def test_a_server_that_stands_by_has_no_way_out_and_no_credential_until_its_call(
    servers: GatedServers, engine: str
) -> None:
    lab = servers.lab
    more = PLAIN + GATED.format(web=servers.web.port, db=servers.database.port)
    of = profile(lab, f"gated-{engine}", f"dials db.internal {servers.database.port}", more=more)
    async with opened(lab, engine, of) as client:
        await client.list_tools()
        (host,) = await standing(lab)
        pid = lab.boxed(f"standing-gated-{engine}")
        assert not memory_holds(pid, TOKEN.encode())
        leases = lab.fumehood("leases", "--open", "--json").said
        assert leases == []
        assert (await said(client, "dialled")) in (["gaierror"], ["ConnectionResetError"], ["ConnectionRefusedError"])
        await standing(lab)
        assert await said(client, "dial", host="db.internal", port=servers.database.port) == "TimeoutError", "it is let through"
    log = lab.fumehood("task", host["task"], "--egress", "--json").said
    assert log["counters"]["refused_while_shut"] >= 1
    assert lab.left() == []


async def test_a_hole_in_the_fence_ends_the_box_before_its_server_runs(lab: Lab, engine: str, nothing_left: None) -> None:  # noqa: ARG001
    # A gate that answers whatever is asked while it stands shut, as one that a worker's new rulers opened.
    patch = """
import fumehood.egress.dns as dns
dns.refused = lambda data: data[:2] + b"\\x81\\x80" + data[4:]
"""
    more = PLAIN + 'network: {egress: [{tls: "example.org"}]}'
    of = profile(lab, f"holed-{engine}", more=more)
    async with opened(lab, engine, of, patch) as client:
        await client.list_tools()
        record = await ended(lab)
    assert record["reason"] == "readback_mismatch"
    assert "the box reaches an unlisted name" in record["detail"]
