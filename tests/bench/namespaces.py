"""Network namespaces of processes that do nothing, for the bench to make gates in."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands import CannotRunError

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def namespaces(count: int) -> Iterator[list[int]]:
    """Pidfds of processes that do nothing in network namespaces of their own."""
    pids, pidfds = [], []
    try:
        for _ in range(count):
            ready_read, ready_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                status = _libc.unshare(_CLONE_NEWNET)
                os.write(ready_write, b"x" if status == 0 else b"")
                os.close(ready_write)
                while True:
                    time.sleep(3600)
            os.close(ready_write)
            pids.append(pid)
            pidfds.append(os.pidfd_open(pid))
            said = os.read(ready_read, 1)
            os.close(ready_read)
            if said != b"x":
                raise CannotRunError("no network namespace can be made")
        yield pidfds
    finally:
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        close_all(pidfds)


def pid_of(pidfd: int) -> int:
    """The process that a pidfd names."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def close_all(fds: Sequence[int]) -> None:
    """Close, many at a time: the kernel waits 10 ms for each packet socket."""
    threads = [threading.Thread(target=lambda part=fds[at::16]: [os.close(fd) for fd in part]) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
