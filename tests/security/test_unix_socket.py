"""The unix socket: who may connect, what it may replace, and what one client can do to the others."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from http_door import until
from local_gateway import SENDER, gateway
from local_runner import FakeSpine
from raw_client import ENVELOPE, PEER

from fumehood.faults import FumehoodError
from fumehood.gateway import unix
from fumehood.gateway.listen import Users, access_list, unix_listener
from fumehood.reasons import Reason
from signed import proofs

OTHER = 54321
CONNECT = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(4096).decode())"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that only we can write, on a path that only root can."""
    base = Path("/run") if os.geteuid() == 0 else Path.home()
    made = base / f"fumehood-test-{os.getpid()}"
    made.mkdir(mode=0o711)
    yield made
    shutil.rmtree(made)


@asynccontextmanager
async def served(path: Path, users: Users = ()) -> AsyncIterator[FakeSpine]:
    spine = FakeSpine()
    listener = unix_listener(path, os.getuid(), users)
    async with gateway(PEER, spine) as front, anyio.create_task_group() as tasks:
        tasks.start_soon(unix.serve, front, listener, unix.senders(SENDER, users).get, proofs())
        yield spine
        tasks.cancel_scope.cancel()
    listener.close()


async def ask(path: Path, tool: str = "echo") -> dict[str, object]:
    async with await anyio.connect_unix(str(path)) as stream:
        params = {"name": tool, "arguments": {}, "_meta": ENVELOPE}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        await stream.send(json.dumps(body).encode() + b"\n")
        with anyio.fail_after(15):
            got = b""
            while b"\n" not in got:
                got += await stream.receive()
        found: dict[str, object] = json.loads(got)
        return found


@pytest.mark.anyio
async def test_the_socket_is_its_owners_alone_from_the_first_moment(folder: Path) -> None:
    before = os.umask(0)  # the attack: a careless starter's umask
    try:
        async with served(folder / "s"):
            assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600
            assert (await ask(folder / "s"))["result"]
    finally:
        os.umask(before)


@pytest.mark.anyio
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another uid")
async def test_a_process_of_another_uid(folder: Path) -> None:
    async with served(folder / "s") as spine:
        kept_out = await as_other(folder / "s")
        assert "PermissionError" in kept_out.stderr
        (folder / "s").chmod(0o666)  # the attack: the mode was loosened, or the file system does not heed it
        turned_away = await as_other(folder / "s")
        assert json.loads(turned_away.stdout)["error"]["message"] == f"fumehood: uid {OTHER} may not connect"
        assert spine.pids == []
        assert (await ask(folder / "s"))["result"], "and its owner is still served"


async def as_other(path: Path, uid: int = OTHER, program: str = CONNECT) -> subprocess.CompletedProcess[str]:
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", program, str(path)]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    )


FRIEND = OTHER + 1
CALL = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
    "params": {"name": "echo", "arguments": {}, "_meta": ENVELOPE}}).encode() + b"\\n")
print(s.makefile().readline())
""".replace("ENVELOPE", repr(ENVELOPE))


@pytest.mark.anyio
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another uid")
async def test_a_user_that_the_operator_named_is_served_under_that_name_and_a_stranger_is_not(folder: Path) -> None:
    async with served(folder / "s", [("friend", FRIEND)]) as spine:
        answered = await as_other(folder / "s", FRIEND, CALL)
        assert json.loads(answered.stdout)["result"]["content"], answered
        (call,) = [call for call in spine.ledger.calls.values() if call.front_door == "gateway"]
        assert (call.sender.uid, call.sender.name) == (os.getuid(), "unix:friend")
        kept_out = await as_other(folder / "s")
        assert "PermissionError" in kept_out.stderr, "by the kernel, and not by us alone"
        (folder / "s").chmod(0o666)
        turned_away = await as_other(folder / "s")
        assert json.loads(turned_away.stdout)["error"]["message"] == f"fumehood: uid {OTHER} may not connect"
        assert (await ask(folder / "s"))["result"], "and its owner is served as ever"
        assert [call.sender for call in spine.ledger.calls.values() if call.front_door == "gateway"][1:] == [SENDER]


@pytest.mark.anyio
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another uid")
async def test_a_named_user_cannot_take_every_connection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "MAX_USER_CONNECTIONS", 2)
    holding = """
import json, socket, sys
held = []
for _ in range(3):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
print(held[-1].makefile().readline())
"""
    async with served(folder / "s", [("friend", FRIEND)]):
        refused_ = await as_other(folder / "s", FRIEND, holding)
        assert json.loads(refused_.stdout)["error"]["message"] == "fumehood: 2 connections are open"
        assert (await ask(folder / "s"))["result"]


def test_the_access_list_names_the_users_and_nobody_else(folder: Path) -> None:
    listener = unix_listener(folder / "s", os.getuid(), [("a", FRIEND), ("b", OTHER)])
    kept = os.getxattr(folder / "s", "system.posix_acl_access")
    assert kept == access_list([OTHER, FRIEND])
    assert stat.S_IMODE((folder / "s").stat().st_mode) & 0o007 == 0
    listener.close()


def test_an_owner_who_is_named_again_stays_the_owner() -> None:
    assert unix.senders(SENDER, [("me", SENDER.uid), ("friend", FRIEND)])[SENDER.uid] == SENDER


def refused(path: Path) -> FumehoodError:
    with pytest.raises(FumehoodError) as error:
        unix_listener(path, os.getuid())
    return error.value


def test_a_folder_that_others_can_write(folder: Path) -> None:
    for mode in (0o777, 0o1777, 0o775):
        (folder / "open").mkdir(exist_ok=True)
        (folder / "open").chmod(mode)
        assert refused(folder / "open" / "s").reason is Reason.CONFIG_UNSAFE
    assert refused(folder / "none" / "s").reason is Reason.CONFIG_INVALID
    assert refused(folder / ("x" * 120)).reason is Reason.CONFIG_INVALID


def test_what_is_there_is_not_replaced(folder: Path) -> None:
    (folder / "file").write_text("precious")
    assert refused(folder / "file").reason is Reason.CONFIG_UNSAFE
    assert (folder / "file").read_text() == "precious"
    (folder / "link").symlink_to(folder / "file")
    assert refused(folder / "link").reason is Reason.CONFIG_UNSAFE
    (folder / "dangling").symlink_to(folder / "nowhere")
    assert refused(folder / "dangling").reason is Reason.CONFIG_UNSAFE
    assert not (folder / "nowhere").exists()


def test_a_living_gateways_socket_is_left_alone_and_a_dead_ones_is_replaced(folder: Path) -> None:
    living = unix_listener(folder / "s", os.getuid())
    inode = (folder / "s").stat().st_ino
    assert "in use" in str(refused(folder / "s"))
    assert (folder / "s").stat().st_ino == inode
    living.close()
    unix_listener(folder / "s", os.getuid()).close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another uid")
def test_anothers_dead_socket_is_not_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(folder / "s"))
    os.chown(folder / "s", OTHER, OTHER)
    assert refused(folder / "s").reason is Reason.CONFIG_UNSAFE


@pytest.mark.anyio
async def test_connections_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "MAX_CONNECTIONS", 3)
    async with served(folder / "s"):
        idle = [await anyio.connect_unix(str(folder / "s")) for _ in range(3)]
        await anyio.sleep(0.1)
        async with await anyio.connect_unix(str(folder / "s")) as over:
            assert json.loads(await over.receive())["error"]["code"] == -32013
        await idle.pop().aclose()
        await anyio.sleep(0.1)
        assert (await ask(folder / "s"))["result"]
        for each in idle:
            await each.aclose()


@pytest.mark.anyio
async def test_a_client_that_leaves_cancels_its_call_and_no_other(folder: Path) -> None:
    async with served(folder / "s") as spine:
        assert (await ask(folder / "s"))["result"]
        async with await anyio.connect_unix(str(folder / "s")) as leaving:
            params = {"name": "hang", "arguments": {}, "_meta": ENVELOPE}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            await leaving.send(json.dumps(body).encode() + b"\n")
            await until(lambda: len(spine.pids) == 3)
            assert (await ask(folder / "s"))["result"], "the same id on another connection is another request"
        await until(lambda: spine.outcomes[-1][1].reason is Reason.CANCELLED)


@pytest.mark.anyio
async def test_garbage_on_one_connection(folder: Path) -> None:
    async with served(folder / "s"):
        async with await anyio.connect_unix(str(folder / "s")) as stream:
            await stream.send(b"GET /mcp HTTP/1.1\r\n")
            assert json.loads(await stream.receive())["error"]["code"] == -32700
            await stream.send(b"x" * (5 * 2**20) + b"\n")
            assert json.loads(await stream.receive())["error"]["code"] == -32600
        assert (await ask(folder / "s"))["result"]
