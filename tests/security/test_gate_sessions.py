"""What a server that is kept, or parked with a question, tries to take along from one call to the next, by attack."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp_types import ElicitResult

from gated_servers import TOKEN, GatedServers, gated_servers
from lab import IDS, Lab, descendants, memory_holds, pids, status

pytestmark = [pytest.mark.root, pytest.mark.anyio]
PASSWORD = "canary-role-6e1f"  # noqa: S105 - where the leased role's random password begins
# Written in hexadecimal, because it stands in a command line that is searched for it.
PATCHED = f"""
import secrets
honest = secrets.token_urlsafe
secrets.token_urlsafe = lambda count=None: bytes.fromhex({PASSWORD.encode().hex()!r}).decode() + honest(count)
"""
# Run in the box's network, but not in the box, which stands still: what is left open for whoever gets in.
KNOCK = """
import json, socket, struct, sys
def tried(address, port):
    try:
        with socket.create_connection((address, int(port)), timeout=3) as connection:
            return connection.recv(1).decode() or "closed"
    except OSError as error:
        return type(error).__name__
query = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + b"\\x03web\\x08internal\\0" + struct.pack("!2H", 1, 1)
with socket.socket(type=socket.SOCK_DGRAM) as asking:
    asking.settimeout(3)
    asking.connect(("127.0.0.53", 53))
    asking.send(query)
    code = asking.recv(512)[3] & 15
print(json.dumps([code, *map(tried, sys.argv[1::2], sys.argv[2::2])]))
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[GatedServers]:
    with gated_servers("gs") as made:
        yield made


@pytest.fixture(scope="module")
def lab(servers: GatedServers) -> Lab:
    return servers.lab


async def said(client: Any, tool: str, **arguments: Any) -> Any:
    """What a tool answers, and the result it came in."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    return json.loads(result.content[0].text), result


def boxes() -> list[int]:
    """The host's pids of all that runs `database.py` in a box."""
    found = []
    for pid in pids():
        try:
            if int(status(pid)["Uid"].split()[0]) >= IDS and b"/workspace/database.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except (OSError, KeyError):
            continue
    return found


async def knock(servers: GatedServers, pid: int) -> list[Any]:
    """The answer's code to a question for a name, and what becomes of a connection to each name's address."""
    places = ["198.18.0.2", str(servers.database.port), "198.18.0.3", str(servers.web.port)]
    done = await anyio.run_process(["nsenter", f"--net=/proc/{pid}/ns/net", "python3", "-c", KNOCK, *places])
    found: list[Any] = json.loads(done.stdout)
    return found


async def test_a_kept_server_has_nothing_of_a_finished_call_neither_between_calls_nor_in_the_next(
    servers: GatedServers, engine: str, nothing_left: None  # noqa: ARG001 - a check
) -> None:
    async with servers.client(engine, servers.profile("session")) as client:
        (role, got), first = await said(client, "keep")
        # The answer is there: the role and its session are not, and nobody on the box's network is let through.
        assert (servers.roles, servers.sessions) == (set(), set())
        assert (role[:3], got) == ("fh_", 200)
        (pid, *_) = boxes()
        code, *tried = await knock(servers, pid)
        assert code == 5, "REFUSED, not an answer"
        assert tried == ["ConnectionResetError"] * 2
        before = len(servers.web.requests)
        (db, web), _ = await said(client, "reuse")
        assert "works" not in (db, web)
        assert len(servers.web.requests) == before, "no request came through the old connection"
        # The next call has the same variable in the same process, and a lease of its own.
        (other, got), second = await said(client, "keep")
        assert (other != role, got) == (True, 200)
        assert boxes() == [pid], "the same process"
        leases = [{lease["lease"] for lease in servers.task(result)["leases"]} for result in (first, second)]
        assert leases[0].isdisjoint(leases[1])
        assert [len(each) for each in leases] == [2, 2]
    tokens = {request.header("Authorization") for request in servers.web.requests}
    assert tokens == {f"Bearer {TOKEN}"}


async def test_a_thread_that_goes_on_dialling_gets_no_connection_after_the_reply(servers: GatedServers) -> None:
    async with servers.client("oci", servers.profile("session")) as client:
        await said(client, "busy")
        await anyio.sleep(0.2)  # until the site has noted what it read before the reply
        arrived = len(servers.web.requests)
        await anyio.sleep(1)
        assert len(servers.web.requests) == arrived
        assert servers.sessions == set()
        assert (await said(client, "keep"))[0][1] == 200


async def test_a_parked_box_has_no_live_lease_and_goes_on_with_a_new_one(
    servers: GatedServers, engine: str, nothing_left: None  # noqa: ARG001
) -> None:
    parked: dict[str, Any] = {}

    async def elicit(_context: Any, _params: Any) -> ElicitResult:
        parked.update(roles=servers.roles, sessions=servers.sessions, knocked=await knock(servers, boxes()[0]))
        parked["open"] = servers.lab.fumehood("leases", "--open", "--json").said
        return ElicitResult(action="accept", content={"name": "Ada"})

    async with servers.client(engine, servers.profile("call", "legacy"), elicitation_callback=elicit) as client:
        seen, result = await said(client, "ask_keeping")
    assert parked["roles"] == parked["sessions"] == set()
    assert parked["open"] == []
    assert parked["knocked"] == [5, "ConnectionResetError", "ConnectionResetError"]
    assert seen["before"].startswith("fh_")
    assert seen["after"].startswith("fh_")
    assert seen["after"] != seen["before"]
    assert "works" not in seen["old"]
    assert "alarm" not in {each["kind"] for each in servers.egress(result)}, "every handler ended as it should"
    leases = [lease for lease in servers.task(result)["leases"] if lease["credential"] == "database"]
    assert [lease["proof"]["gone"] for lease in leases] == [True, True]
    assert servers.roles == set()


def holds(path: Path, needle: bytes) -> bool:
    try:
        return path.is_file() and needle in path.read_bytes()
    except OSError:  # a file that goes away, or that is none
        return False


def searched(servers: GatedServers, needles: dict[str, bytes]) -> tuple[dict[str, set[str]], list[str], bytes]:
    """While a call is under way: whose memory has each needle, where else it is, and the box's environment."""
    until_s = time.monotonic() + 20
    while not servers.sessions:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    time.sleep(0.5)  # until the other connection is made, too
    worker = next(pid for pid in descendants(os.getpid()) if b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes())
    inside = boxes()
    assert inside
    roles = {worker: "worker", **dict.fromkeys(descendants(worker), "another of ours"), **dict.fromkeys(inside, "box")}
    elsewhere = [
        f"{told} of {role}"
        for pid, role in roles.items()
        for told in ("cmdline", "environ", "status")
        if any(needle in Path(f"/proc/{pid}/{told}").read_bytes() for needle in needles.values())
    ]
    folders = [Path(f"/proc/{inside[0]}/root/{name}") for name in ("run", "tmp", "dev/shm", "etc", "workspace", "var/tmp")]
    assert folders[0].exists()
    elsewhere += [str(path) for folder in folders for path in folder.rglob("*") if any(holds(path, each) for each in needles.values())]
    memory = {name: {role for pid, role in roles.items() if memory_holds(pid, needle)} for name, needle in needles.items()}
    return memory, elsewhere, Path(f"/proc/{inside[-1]}/environ").read_bytes()


async def test_a_credential_that_the_gate_uses_is_in_no_memory_and_no_file_but_the_workers_memory(
    servers: GatedServers, engine: str, nothing_left: None  # noqa: ARG001
) -> None:
    """Searched from the host while both connections of a call are open."""
    needles = {"web": TOKEN.encode(), "role": PASSWORD.encode()}
    async with servers.client(engine, servers.profile(), PATCHED) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "hold", {"seconds": 30})
        memory, elsewhere, environment = await anyio.to_thread.run_sync(searched, servers, needles)
        tasks.cancel_scope.cancel()
    assert memory == {"web": {"worker"}, "role": {"worker"}}
    assert elsewhere == []
    (placeholder,) = re.findall(rb"WEB_TOKEN=([^\0]*)", environment)
    assert len(placeholder) == len(TOKEN)
    assert at_rest(servers, needles) == []
    record = next(each for each in servers.lab.fumehood("tasks", "--json", "--limit", "5").said if each["tool"] == "hold")
    assert record["reason"] == "cancelled"
    shown = servers.lab.fumehood("task", record["task"], "--json").stdout + servers.lab.fumehood("task", record["task"], "--egress").stdout
    for needle in needles.values():
        assert needle.decode() not in shown + servers.database.log


def at_rest(servers: GatedServers, needles: dict[str, bytes]) -> list[Path]:
    """The files of the runtime's state that hold a needle."""
    paths = [path for path in servers.lab.state.rglob("*") if "images" not in path.parts]
    assert any(path.name == "ledger.db" for path in paths)
    return [path for path in paths if any(holds(path, needle) for needle in needles.values())]
