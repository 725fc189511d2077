"""Acting on a process of a box without ever acting on a stranger.

A pid read a moment ago may already be someone else's. So one function here owns the order: open a pidfd, check through
/proc that it is the process meant, and check that the pidfd is still alive: what was read then belonged to it.
Sources: pidfd_open(2), proc(5), ptrace(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fumehood.broker.kernel_files import whole
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_DETACH = 17
_PTRACE_SECCOMP_GET_FILTER = 0x420C
_WALL = 0x40000000


def verified_pidfd(pid: int, check: Callable[[int], bool], what: str) -> int:
    """A pidfd of `pid`, proven to be the process that `check` accepts. Raises BoxFailed(BOX_DIED)."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise BoxFailed(Reason.BOX_DIED, f"{what} is gone") from error
    try:
        accepted = check(pid)
    except OSError:
        accepted = False
    if not accepted or not alive(pidfd):
        os.close(pidfd)
        raise BoxFailed(Reason.BOX_DIED, f"{what} is gone or is not the process expected")
    return pidfd


def alive(pidfd: int) -> bool:
    """Whether the process has not ended yet."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def wait_ended(pidfd: int, timeout_s: float) -> bool:
    """Wait until the process has ended; False at the timeout."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def kill(pidfd: int) -> None:
    """SIGKILL; a process that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def end(pidfd: int, timeout_s: float) -> bool:
    """Kill, wait, and let go of the pidfd; False when the process was still there at the timeout."""
    kill(pidfd)
    ended = wait_ended(pidfd, timeout_s)
    os.close(pidfd)
    return ended


def commands() -> Iterator[bytes]:
    """The command line of each process of our own uid."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of names
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == os.getuid():  # noqa: PTH116 - as above
                yield Path(f"/proc/{name}/cmdline").read_bytes()


def of_ids(ids: range) -> Iterator[int]:
    """Every process of the host that has a uid of this range."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of names
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid in ids:  # noqa: PTH116 - as above
                yield int(name)


def end_of_ids(ids: range, timeout_s: float) -> bool:
    """Kill whoever has a uid of this range, which is one box's alone; False when somebody is left.

    A dockerd that was killed while it made a container forgets it, and leaves its `runc init` waiting for ever.
    """
    until_s = time.monotonic() + timeout_s
    while time.monotonic() <= until_s:
        alive_ones = 0
        for pid in of_ids(ids):
            try:
                pidfd = verified_pidfd(pid, lambda pid: Path(f"/proc/{pid}").stat().st_uid in ids, "a process of the box")
            except BoxFailed:
                continue  # it has ended, whether it was reaped or not
            alive_ones += 1
            end(pidfd, max(0.0, until_s - time.monotonic()))
        if not alive_ones:
            return True
    return False


def status_fields(pid: int) -> dict[str, str]:
    """/proc/PID/status as a mapping."""
    lines = read(pid, "status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def read(pid: int, name: str) -> str:
    """A file of /proc/PID, whole. Raises OSError."""
    return whole(f"/proc/{pid}/{name}")


def seccomp_filters(pid: int) -> list[bytes]:
    """Every filter on a process as classic BPF, the oldest first.

    The process must be stoppable (ours is held in a read). Raises BoxFailed(UNENFORCEABLE) when the kernel does not
    tell (built without CONFIG_CHECKPOINT_RESTORE).
    """
    _ptrace(_PTRACE_SEIZE, pid, 0, None)
    try:
        _ptrace(_PTRACE_INTERRUPT, pid, 0, None)
        os.waitpid(pid, _WALL)
        found: list[bytes] = []
        while True:
            try:
                count = _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, len(found), None)
            except FileNotFoundError:  # no further filter
                return found
            buffer = ctypes.create_string_buffer(count * 8)
            _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, len(found), buffer)
            found.append(buffer.raw)
    except OSError as error:
        raise BoxFailed(Reason.UNENFORCEABLE, f"the kernel does not show seccomp filters: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            _ptrace(_PTRACE_DETACH, pid, 0, None)


def _ptrace(operation: int, pid: int, address: int, data: ctypes.Array[ctypes.c_char] | None) -> int:
    done: int = _libc.ptrace(operation, pid, address, data)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done
