"""A running gateway on a unix socket with a further user: a real process of another uid, real boxes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lab_for
from live_gateway import META, configure, live_gateway, napping

pytestmark = pytest.mark.root
FRIEND = 54322
CALL = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode() + b"\\n")
print(s.makefile().readline())
"""


@pytest.fixture(scope="module")
def users_lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("python", "u") as made:
        yield made
        assert made.left() == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that only root can write, and everybody pass through."""
    made = Path(f"/run/fumehood-users-{os.getpid()}")
    made.mkdir(mode=0o711)
    yield made
    shutil.rmtree(made)


def called(path: Path, uid: int) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "nap", "arguments": {}, "_meta": META}}
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", CALL, str(path), json.dumps(body)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_another_users_call_is_his_in_the_records_and_only_a_start_names_others(users_lab: Lab, folder: Path) -> None:
    server, _ = napping(users_lab, "nap")
    path = folder / "s"
    section = f"{{servers: {{{server}}}, unix: {{path: {path}, users: {{friend: {FRIEND}}}}}}}"
    with live_gateway(users_lab, configure(users_lab, section)) as gateway:
        gateway.logged("listening on unix:")
        answer = called(path, FRIEND)
        assert answer["result"]["content"][0]["text"] == "nap"
        assert "PermissionError" in called(path, FRIEND + 1)
        configure(users_lab, section.replace(str(FRIEND), str(FRIEND + 1)))
        assert "`gateway.unix.users` was changed" in gateway.reload()
        assert "PermissionError" in called(path, FRIEND + 1)
    record = users_lab.record("task", answer["result"]["_meta"]["fumehood/task"])
    assert (record["sender"], record["sender_uid"]) == ("unix:friend", os.getuid())
