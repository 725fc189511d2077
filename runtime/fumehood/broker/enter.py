"""Calls the static helper that acts inside a box's namespaces (`init/enter.c`): no Python thread ever goes there."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fumehood.broker import processes
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Move:
    """Attach a detached mount at a place inside the box."""

    fd: int
    place: str


@dataclass(frozen=True, slots=True)
class Cover:
    """Attach a detached mount of a file over a plain file inside the box; left out where there is none."""

    fd: int
    place: str


@dataclass(frozen=True, slots=True)
class Unmount:
    """Detach whatever is mounted at a place inside the box."""

    place: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Set a per-user-namespace ceiling of /proc/sys/user."""

    name: str
    value: int


Operation = Move | Cover | Unmount | Ceiling
_ABSENT = "absent "


def enter(helper: Path, pidfd: int, operations: Sequence[Operation], *, user_namespace: bool) -> list[str]:
    """Do `operations` in order inside the box whose PID 1 the pidfd names; the places that had nothing to cover.

    Raises BoxFailed(BOX_FAILED).
    """
    argv = [str(helper), "3", *(["user"] if user_namespace else [])]
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, pidfd, 3)]
    number = 4
    for operation in operations:
        match operation:
            case Ceiling(name, value):
                argv += ["max", name, str(value)]
            case Unmount(place):
                argv += ["umount", place]
            case Move(fd, place) | Cover(fd, place):
                actions.append((os.POSIX_SPAWN_DUP2, fd, number))
                argv += ["move" if isinstance(operation, Move) else "cover", str(number), place]
                number += 1
    # The helper's numbers start above every descriptor it is given, so that one dup2 cannot overwrite another's source.
    lifted = _lift(actions, number)
    words_read, words_write = os.pipe()
    try:
        pid = os.posix_spawn(helper, argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, words_write, 2), *lifted])
    finally:
        os.close(words_write)
        for source in {action[1] for action in lifted}:
            os.close(source)
    status = _wait(pid)
    with os.fdopen(words_read, "rb") as words:
        said = words.read(4096).decode("ascii", "replace").strip()
    if status != 0:
        raise BoxFailed(Reason.BOX_FAILED, f"inside the box: {said or f'helper ended {status}'}")
    return [line.removeprefix(_ABSENT) for line in said.splitlines() if line.startswith(_ABSENT)]


def _lift(actions: Sequence[tuple[int, ...]], lowest: int) -> list[tuple[int, ...]]:
    """The same actions with their sources duplicated to numbers from `lowest` on."""
    return [(kind, fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, lowest), target) for kind, source, target in actions]


def _wait(pid: int) -> int:
    """The helper's exit code; it is killed at the deadline. It is our child, so its pid cannot be reused meanwhile."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_DEADLINE_S * 1000):
            processes.kill(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
