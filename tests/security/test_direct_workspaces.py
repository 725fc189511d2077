"""`filesystem.workspace: direct`: the one way a box writes to the host at once, and what it still cannot do there."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, lab_for

pytestmark = pytest.mark.root
DIRECT = "limits: {disk: unlimited}\nfilesystem: {workspace: direct}\n"


def test_what_a_box_writes_is_there_at_once_and_its_directory_owners(lab: Lab, engine: str, nothing_left: None) -> None:  # noqa: ARG001
    workspace = lab.workspace("direct")
    os.chown(workspace, 1234, 1234)
    code = "open('/workspace/a', 'w').write('now'); import sys; sys.exit(3)"
    done = lab.python(engine, code, profile=lab.profile("direct", DIRECT), workspace=workspace)
    assert done.said["exit_code"] == 3, done
    assert (workspace / "a").read_text() == "now", "it stays, although the call failed"
    assert (workspace / "a").stat().st_uid == 1234
    record = lab.fumehood("task", done.said["task"], "--json").said
    assert any(event["facts"].get("disk") == "not limited" for event in record["events"])


def test_a_box_leaves_no_setuid_file_and_no_device_behind(lab: Lab, engine: str, nothing_left: None) -> None:  # noqa: ARG001
    workspace = lab.workspace("direct")
    code = """
import os
for name, attempt in {
    "setuid": lambda: (open("/workspace/s", "w").close(), os.chmod("/workspace/s", 0o4755)),
    "device": lambda: os.mknod("/workspace/d", 0o600 | 0o020000, os.makedev(1, 5)),
}.items():
    try:
        attempt()
        print(name, "made")
    except OSError as error:
        print(name, "refused")
"""
    done = lab.python(engine, code, profile=lab.profile("direct", DIRECT), workspace=workspace)
    assert done.told.split() == ["setuid", "refused", "device", "refused"]
    assert not any(found.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) for found in workspace.iterdir())


@pytest.mark.parametrize("kind", ["socket", "fifo"])
def test_a_socket_or_fifo_of_the_hosts_refuses_the_call(lab: Lab, engine: str, kind: str, nothing_left: None) -> None:  # noqa: ARG001
    workspace = lab.workspace("direct")
    (workspace / "deep").mkdir()
    if kind == "fifo":
        os.mkfifo(workspace / "deep" / "door")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(workspace / "deep" / "door"))
    done = lab.run(engine, "true", profile=lab.profile("direct", DIRECT), workspace=workspace)
    assert (done.status, done.said["reason"]) == (125, "workspace_not_allowed"), done


@pytest.fixture
def deep_lab() -> Iterator[Lab]:
    """A state folder whose paths are longer than a mount option may be."""
    with lab_for("python", "deep" + "x" * 120) as made:
        yield made


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_a_state_folder_that_lies_deep_has_workspaces_too(deep_lab: Lab, engine: str, mode: str) -> None:
    workspace: Path = deep_lab.workspace("w" * 60)
    (workspace / "a").write_text("seen")
    profile = deep_lab.profile("deep", f"filesystem: {{workspace: {mode}}}\n")
    done = deep_lab.run(engine, "cat", "/workspace/a", profile=profile, workspace=workspace)
    assert done.told == "seen"
    assert deep_lab.left() == []
