"""Runs the committer: hands it a workspace, a manifest and the contents, and reads what became of them.

The committer sees contents only as bytes in a pipe, so it needs no right to read a box's files and nothing of the
layer is ever chowned. Invariants: either all changes are applied or `NotAppliedError` is raised, and then the
workspace is as it was, but for the temporary names that the error lists; the child is dead when this returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fumehood.broker.changes import Change
from fumehood.broker.directory import group_of

DEADLINE_S = 120.0
_PROGRAM = Path(__file__).with_name("committer.py")


class NotAppliedError(Exception):
    """The changes were not applied; the message says why, in words for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The directory to change: the broker's descriptor, and whose it is."""

    fd: int
    uid: int
    gid: int


def target_of(directory_fd: int) -> Target:
    """The directory as a target. New files get its owner's own group, as if the owner had made them."""
    uid = os.fstat(directory_fd).st_uid
    return Target(fd=directory_fd, uid=uid, gid=group_of(uid))


def apply(
    target: Target,
    steps: Sequence[Change],
    open_content: Callable[[int], int],
    *,
    since_ns: int | None = None,
    deadline_s: float = DEADLINE_S,
) -> list[str]:
    """Apply the steps; `open_content(index)` opens the content of `steps[index]`. Returns what could not be tidied.

    With `since_ns`, a path that the host changed after that time is a conflict. Raises `NotAppliedError`.
    """
    manifest = {"token": secrets.token_hex(8), "since_ns": since_ns, "changes": [asdict(step) for step in steps]}
    text = json.dumps(manifest).encode()
    argv = [sys.executable, "-I", "-S", "-X", "utf8", str(_PROGRAM), str(target.uid), str(target.gid), str(target.fd)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[target.fd], env={}, cwd="/") as child:
        if child.stdin is None or child.stdout is None or child.stderr is None:
            raise NotAppliedError("the committer has no streams")
        timer = threading.Timer(deadline_s, child.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:  # it has given up; its answer says why
                stdin.write(struct.pack("=Q", len(text)))
                stdin.write(text)
                stdin.flush()
                for index, step in enumerate(steps):
                    if step.op == "file":
                        _send_content(stdin.fileno(), open_content(index), step)
            answer, complaint = child.stdout.read(), child.stderr.read()
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    return _judged(answer, complaint)


def _send_content(pipe: int, content: int, step: Change) -> None:
    try:
        sent = 0
        while sent < step.size_bytes:
            count = os.sendfile(pipe, content, sent, step.size_bytes - sent)
            if not count:
                raise NotAppliedError(f"{step.path} is shorter than it was")
            sent += count
    finally:
        os.close(content)


def _judged(answer: bytes, complaint: bytes) -> list[str]:
    try:
        told: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        words = complaint.decode(errors="replace").strip().splitlines()
        raise NotAppliedError(words[-1] if words else "the committer was ended before it answered") from error
    if told["ok"]:
        return list(told["left"])
    path = told["path"] or "the workspace"
    why = "changed on the host in the meantime" if told["why"] == "conflict" else told["why"]
    stuck = f"; could not be undone: {', '.join(told['stuck'])}" if told["stuck"] else ""
    raise NotAppliedError(f"{path}: {why}{stuck}")
