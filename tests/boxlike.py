"""A workspace without a box: a mount namespace of the test's own, and programs run in it as a box's uid would be.

The namespace belongs to a thread: what the test mounts is seen by that thread and what it starts, and is gone with it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

import pytest

import fumehood
from fumehood.broker import mounting
from fumehood.broker.directory import check_directory
from fumehood.broker.settling import settle
from fumehood.broker.workspace import Workspace, make_workspace
from fumehood.model import Binding, WorkspaceMode
from fumehood.ports import Settled
from fumehood.settings import Settings
from fumehood.state import StateFolder

OWNER = 54321
BOX = 536_870_912 + 65_536 + 1000
HELPER = Path(fumehood.__file__).parent / "broker" / "init" / "bin" / "enter"
TASK = "0" * 26
MIB = 2**20
_CLONE_NEWNS = 0x20000
P = ParamSpec("P")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and other uids")


def in_own_mounts(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a thread with a mount namespace of its own, as the broker has one."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        failed: list[BaseException] = []

        def inside() -> None:
            try:
                assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
                mounting.mount(None, "/", None, mounting.MS_REC | mounting.MS_SLAVE)
                test(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                failed.append(error)

        thread = threading.Thread(target=inside, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "the test did not end in time"
        if failed:
            raise failed[0]

    return run


def settings_for(folder: Path, **changed: Any) -> Settings:
    """Settings with a state folder below `folder`; the caller owns the workspaces and runs its own command line."""
    state = StateFolder(folder / "state")
    for part in (state.root, state.locks, state.pending, state.run):
        part.mkdir(mode=0o700, exist_ok=True)
    made = Settings(
        state=state,
        runtime_id="test",
        boot_id="",
        caller_uid=OWNER,
        caller_name="owner",
        worker_uid=0,
        worker_gid=0,
        ledger_uid=0,
        ledger_gid=0,
        ids_start=536_870_912,
        ids_count=65_536 * 4,
        workspace_roots=None,
        mount_roots=(str(folder),),
        engine=None,
        boxes=4,
        docker_host="",
    )
    return replace(made, **changed)


def passable(folder: Path) -> Path:
    """Let any uid pass through pytest's own folders, which are root's alone."""
    for above in (folder, *folder.parents):
        if above.stat().st_mode & 0o011 != 0o011:
            above.chmod(0o755)
    return folder


def owned(path: Path, text: str | None = None, *, uid: int = OWNER, mode: int | None = None) -> Path:
    """A file with `text`, or a directory, that belongs to `uid`."""
    if text is None:
        path.mkdir(exist_ok=True)
    else:
        path.write_text(text)
    os.chown(path, uid, uid)
    path.chmod(mode if mode is not None else 0o755 if text is None else 0o644)
    return path


class Bench:
    """A directory of the owner's, and boxes' views of it. Paths lie below a folder that any uid may pass."""

    def __init__(self, folder: Path, **changed: Any) -> None:
        """Use `folder`, which must be fresh."""
        folder.chmod(0o755)
        self.folder = folder
        self.settings = settings_for(folder, **changed)
        self.source = owned(folder / "source")
        self.views: list[Path] = []

    def open(
        self, mode: WorkspaceMode = WorkspaceMode.RW, *, disk_bytes: int = 16 * MIB, unlimited: bool = False
    ) -> tuple[Workspace, Path]:
        """A workspace, and the path at which a box-like program sees it."""
        theirs = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ours = check_directory(theirs, self.settings, mode)
        finally:
            os.close(theirs)
        binding = Binding(
            workspace=mode,
            workspace_fd=None,
            workspace_path=None,
            disk_bytes=disk_bytes,
            disk_unlimited=unlimited,
            mounts=(),
            wall_s=10,
        )
        number = len(self.views)
        try:
            made = make_workspace(
                binding, ours, box_uid=BOX, folder=self.folder / f"box{number}", settings=self.settings
            )
        finally:
            os.close(ours)
        assert made is not None
        view = self.folder / f"view{number}"
        view.mkdir()
        mounting.attach(made.mount_fd, str(view))
        self.views.append(view)
        return made, view

    def box(self, view: Path, program: str) -> str:
        """Run a Python program as the box's uid in `view`; returns what it prints."""
        return as_uid(BOX, view, program)

    def end(self, view: Path) -> None:
        """The box is dead: its mounts go with it."""
        mounting.unmount_all(str(view))

    def settle(self, workspace: Workspace, action: str = "commit", protect: tuple[str, ...] = ()) -> Settled:
        """Settle and close, as the broker does."""
        try:
            return settle(workspace, action, protect, task=TASK, settings=self.settings)
        finally:
            workspace.close()

    def after(self, program: str, action: str = "commit", protect: tuple[str, ...] = ()) -> Settled:
        """One whole call: open, run, end, settle."""
        workspace, view = self.open()
        try:
            self.box(view, program)
        finally:
            self.end(view)
        return self.settle(workspace, action, protect)


def as_uid(uid: int, folder: Path, program: str) -> str:
    """Run a Python program as a uid with no other rights, in `folder`."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", "import os, socket, stat\n" + program],
        cwd=folder,
        user=uid,
        group=uid,
        extra_groups=[],
        umask=0o022,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tree(folder: Path) -> dict[str, tuple[str, int, str]]:
    """Everything below `folder`: its kind, permissions and content."""
    found = {}
    for above, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(above) / name
            mode = path.lstat().st_mode
            if path.is_symlink():
                told = ("link", 0, os.fsencode(path.readlink()).decode("latin-1"))
            elif path.is_dir():
                told = ("folder", mode & 0o777, "")
            else:
                told = ("file", mode & 0o777, path.read_bytes().decode("latin-1") if path.is_file() else "special")
            found[os.fsencode(path.relative_to(folder)).decode("latin-1")] = told
    return found


@contextmanager
def other_mounts() -> Iterator[int]:
    """The pidfd of a process with a mount namespace of its own, as a box's init has one."""
    with subprocess.Popen(["unshare", "-m", "sh", "-c", "echo up; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pidfd = os.pidfd_open(process.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)
            process.kill()
