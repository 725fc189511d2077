"""What becomes of a workspace's changes when the box is dead.

Committed, all or none; or held as pending, when the caller asked for that, a protected path is among them, the host
changed one of them meanwhile, or applying failed: what a tool made is lost only when it is discarded on purpose. A
set with something refused in it (see `changes`) is never applied by itself; the acceptable rest is held, and a person
who has seen it may commit that. Must run after the box's last process is gone: the layer is read without locks.
"""

from __future__ import annotations

from collections.abc import Sequence

from fumehood.broker import pending
from fumehood.broker.applying import NotAppliedError, apply, target_of
from fumehood.broker.changes import Changes, changes, open_content
from fumehood.broker.protect import first_protected
from fumehood.broker.workspace import Workspace
from fumehood.model import WorkspaceMode
from fumehood.ports import Settled
from fumehood.reasons import Reason
from fumehood.settings import Settings
from fumehood.state import StateFolder

_NAMED = 5


def settle(workspace: Workspace, action: str, protect: Sequence[str], *, task: str, settings: Settings) -> Settled:
    """`commit`, `hold` or `discard` the changes; a scratch's files are listed whatever the action."""
    if workspace.mode is WorkspaceMode.SCRATCH and workspace.upper_fd is not None:
        return Settled(files=changes(workspace.upper_fd, None, most_bytes=workspace.disk_bytes).files)
    if workspace.mode is not WorkspaceMode.RW or action == "discard" or workspace.upper_fd is None:
        return Settled()
    try:
        found = changes(workspace.upper_fd, workspace.base_fd, most_bytes=workspace.disk_bytes)
    except OSError as error:
        # Reading beside a directory that its owner changes, or takes away, at the same moment.
        return Settled(failed=Reason.COMMIT_FAILED, detail=f"the changes cannot be read ({error}); they are lost")
    if not found.steps and not found.refused:
        return Settled()
    set_of = pending.Set(task=task, caller_uid=settings.caller_uid, workspace=workspace, changes=found)
    return _kept(settings.state, set_of, action, protect)


def _kept(state: StateFolder, set_of: pending.Set, action: str, protect: Sequence[str]) -> Settled:
    if set_of.changes.refused:
        named = "; ".join(f"{path}: {why}" for path, why in set_of.changes.refused[:_NAMED])
        return _held(state, set_of, failed=Reason.COMMIT_REFUSED, why=named)
    if action != "commit":
        return _held(state, set_of, failed=None, why="the profile asks before it commits")
    if paths := protected_paths(set_of.changes, protect):
        return _held(state, set_of, failed=None, why=f"protected: {', '.join(paths)}")
    return _committed(state, set_of)


def protected_paths(found: Changes, protect: Sequence[str]) -> list[str]:
    """Pure: the first few protected paths that these changes touch, those that vanish with a folder included."""
    touched = [(step.path, step.directory) for step in found.steps]
    return first_protected(protect, [*touched, *((path, False) for path in found.lost)], _NAMED)


def _committed(state: StateFolder, set_of: pending.Set) -> Settled:
    steps, workspace = set_of.changes.steps, set_of.workspace
    upper_fd, base_fd = workspace.upper_fd, workspace.base_fd
    if upper_fd is None or base_fd is None:
        return Settled()  # closed: `settle` has looked
    try:
        left = apply(
            target_of(base_fd),
            steps,
            lambda index: open_content(upper_fd, steps[index].path),
            since_ns=workspace.made_ns,
        )
    except (NotAppliedError, OSError) as error:
        return _held(state, set_of, failed=Reason.COMMIT_FAILED, why=str(error))
    return Settled(files=set_of.changes.files, detail=f"left behind: {', '.join(left[:_NAMED])}" if left else "")


def _held(state: StateFolder, set_of: pending.Set, *, failed: Reason | None, why: str) -> Settled:
    files = set_of.changes.files
    if not set_of.changes.steps:
        return Settled(files=files, failed=failed, detail=why)
    try:
        pending.hold(state, set_of, why)
    except OSError as error:
        lost = f"{why}; and they could not be kept: {error.strerror or error}"
        return Settled(files=files, failed=Reason.COMMIT_FAILED, detail=lost)
    return Settled(files=files, pending=True, failed=failed, detail=why)
