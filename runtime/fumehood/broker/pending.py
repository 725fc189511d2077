"""Changes that wait for a person: kept under <state>/pending/<task>/, shown, committed or discarded by their owner.

A set is a root-only folder of contents, one numbered file a step, and `manifest.json`, written last: the folder gets
its name when it is whole, so a set is there or it is not. Who may touch a set: the uid that made the call, and root.

What is handed out for a diff: the new content (the caller's own box made it) and the old one from the workspace, if
that is a regular file of the workspace's owner or readable by all. A box can put a file of its own in the place of
one that its owner cannot read, and "the old content" would then be a way to read it through us.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fumehood.broker.applying import NotAppliedError, apply, target_of
from fumehood.broker.changes import Change, Changes, open_content
from fumehood.broker.directory import open_again
from fumehood.broker.mounting import open_beneath
from fumehood.broker.tickets import take_ticket
from fumehood.broker.workspace import Workspace
from fumehood.faults import FumehoodError, Refused
from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.state import StateFolder

COMMIT_WAIT_S = 30.0
PAGE = 200
_PAGE_BYTES = 96 * 1024  # half a message of `wire`
_TASK = re.compile(r"[0-9a-z]{26}", re.ASCII)
_MANIFEST = "manifest.json"
Args = dict[str, Any]
Reply = tuple[dict[str, Any], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """One call's changes, while its workspace is still there."""

    task: str
    caller_uid: int
    workspace: Workspace
    changes: Changes


def hold(state: StateFolder, of: Set, why: str) -> None:
    """Keep a set. Raises OSError when it cannot be kept; nothing half-made stays."""
    upper = of.workspace.upper_fd
    if upper is None:
        raise OSError("the workspace is closed")
    _checked_task(of.task)
    making = state.pending / f".{of.task}"
    making.mkdir(mode=0o700, parents=True)
    try:
        for index, step in enumerate(of.changes.steps):
            if step.op == "file":
                _keep(open_content(upper, step.path), making / str(index), step.size_bytes)
        facts = of.workspace.facts
        manifest = {
            "task": of.task,
            "caller_uid": of.caller_uid,
            "workspace": of.workspace.path,
            "device": facts["device"],
            "inode": facts["inode"],
            "owner": of.workspace.owner_uid,
            "held_s": int(time.time()),
            "why": why,
            "refused": of.changes.refused,
            "changes": [asdict(step) for step in of.changes.steps],
        }
        (making / _MANIFEST).write_text(json.dumps(manifest))
        making.rename(state.pending / of.task)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def _keep(content: int, path: Path, size_bytes: int) -> None:
    try:
        kept = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            done = 0
            while done < size_bytes:
                count = os.sendfile(kept, content, done, size_bytes - done)
                if not count:
                    raise OSError(f"content {path.name} is shorter than it was")
                done += count
        finally:
            os.close(kept)
    finally:
        os.close(content)


def pending_list(state: StateFolder, caller_uid: int, args: Args) -> Reply:
    """`{}`: the caller's sets. `{task, offset}`: a page of one set's changes, `next` the offset of the one after it."""
    if "task" in args:
        return _page(_manifest(state, caller_uid, args), args.get("offset", 0)), []
    sets = []
    for name in sorted(path.name for path in state.pending.glob("[!.]*")):
        with suppress(Refused):  # another's, or gone since
            manifest = _manifest(state, caller_uid, {"task": name})
            kept = ("task", "workspace", "held_s", "why")
            sets.append({**{key: manifest[key] for key in kept}, "changes": len(manifest["changes"])})
    return {"sets": sets[-PAGE:], "more": len(sets) > PAGE}, []


def _page(manifest: Args, offset: object) -> dict[str, Any]:
    if not isinstance(offset, int) or offset < 0:
        raise _refused("offset is not a number")
    page: list[Args] = []
    size = 0
    for step in manifest["changes"][offset : offset + PAGE]:
        told = {key: step[key] for key in ("op", "path", "kind", "mode", "size_bytes", "sha256", "target")}
        size += len(json.dumps(told))
        if page and size > _PAGE_BYTES:
            break
        page.append(told)
    end = offset + len(page)
    return {
        **{key: manifest[key] for key in ("task", "workspace", "held_s", "why")},
        "refused": manifest["refused"][:PAGE],
        "changes": page,
        "next": end if end < len(manifest["changes"]) else None,
    }


def pending_open(state: StateFolder, caller_uid: int, args: Args) -> Reply:
    """`{task, index}`: `{new, old}` say which of the descriptors, in this order, come along, opened for reading."""
    manifest = _manifest(state, caller_uid, args)
    index = args.get("index")
    if not isinstance(index, int) or not 0 <= index < len(manifest["changes"]):
        raise _refused("there is no such change")
    step = manifest["changes"][index]
    fds: list[int] = []
    if step["op"] == "file":
        fds.append(os.open(state.pending / manifest["task"] / str(index), os.O_RDONLY | os.O_NOFOLLOW))
    new = bool(fds)
    try:
        with _workspace_of(manifest) as directory:
            old = _open_old(directory, step["path"], manifest["owner"])
    except Refused:
        old = None  # the directory is gone; the new content can still be seen
    return {"new": new, "old": old is not None}, fds if old is None else [*fds, old]


def pending_commit(state: StateFolder, caller_uid: int, args: Args) -> Reply:
    """`{task}`: apply a set to its workspace and forget it. After `FumehoodError` (commit_failed) it is still there."""
    with _claimed(state, caller_uid, args) as manifest, _workspace_of(manifest) as directory:
        steps = [Change(**step) for step in manifest["changes"]]
        folder = state.pending / manifest["task"]
        held = take_ticket(state.locks, directory, exclusive=True, deadline_s=COMMIT_WAIT_S)
        try:
            left = apply(
                target_of(directory), steps, lambda index: os.open(folder / str(index), os.O_RDONLY | os.O_NOFOLLOW)
            )
        except (NotAppliedError, OSError) as error:
            raise FumehoodError(Reason.COMMIT_FAILED, str(error)) from error
        finally:
            held.release()
        _forget(state, manifest["task"])
    return {"task": manifest["task"], "committed": len(steps), "left": left[:PAGE]}, []


def pending_discard(state: StateFolder, caller_uid: int, args: Args) -> Reply:
    """`{task}`: forget a set."""
    with _claimed(state, caller_uid, args) as manifest:
        _forget(state, manifest["task"])
    return {"task": manifest["task"], "discarded": len(manifest["changes"])}, []


VERBS = {
    "pending_list": pending_list,
    "pending_open": pending_open,
    "pending_commit": pending_commit,
    "pending_discard": pending_discard,
}


def _forget(state: StateFolder, task: str) -> None:
    # Out of sight in one step: a set of which some contents are missing must never be found.
    gone = state.pending / f".{task}.gone"
    (state.pending / task).rename(gone)
    shutil.rmtree(gone)


@contextmanager
def _claimed(state: StateFolder, caller_uid: int, args: Args) -> Iterator[Args]:
    """The manifest, with the set to oneself: two commits, or a commit and a discard, must not meet."""
    task = _manifest(state, caller_uid, args)["task"]
    fd = os.open(state.pending / task, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            detail = "these changes are being committed or discarded already"
            raise Refused(Deny(reason=Reason.WORKSPACE_BUSY, rule="pending", detail=detail)) from error
        yield _manifest(state, caller_uid, args)  # again: it may have gone before the lock was ours
    finally:
        os.close(fd)


@contextmanager
def _workspace_of(manifest: Args) -> Iterator[int]:
    fd = open_again(manifest["workspace"], manifest["device"], manifest["inode"])
    try:
        if os.fstat(fd).st_uid != manifest["owner"]:
            # An inode number is used again: this is a directory made since, by somebody else.
            raise _refused(f"{manifest['workspace']} has another owner now")
        yield fd
    finally:
        os.close(fd)


def _open_old(directory: int, path: str, owner: int) -> int | None:
    """The content that a change would replace, if the workspace's owner could read it too."""
    try:
        place = open_beneath(directory, path, os.O_PATH)
    except OSError:
        return None
    try:
        found = os.fstat(place)
        if stat.S_ISREG(found.st_mode) and (found.st_uid == owner or found.st_mode & stat.S_IROTH):
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY)
        return None
    finally:
        os.close(place)


def _manifest(state: StateFolder, caller_uid: int, args: Args) -> Args:
    task = _checked_task(args.get("task"))
    try:
        manifest: Args = json.loads((state.pending / task / _MANIFEST).read_text())
    except FileNotFoundError as error:
        raise _refused(f"nothing is pending for task {task}") from error
    if caller_uid not in (0, manifest["caller_uid"]):
        raise _refused(f"nothing is pending for task {task}")
    return manifest


def _checked_task(task: object) -> str:
    if not isinstance(task, str) or not _TASK.fullmatch(task):
        raise _refused("not a task id")
    return task


def _refused(detail: str) -> Refused:
    return Refused(
        Deny(reason=Reason.BAD_REQUEST, rule="pending", detail=detail, remedy="`fumehood tasks` shows what is pending.")
    )
