"""A pidfd is taken for the process that was meant, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fumehood.broker import processes
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

OPEN = Path("/proc/self/fd")


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_process_meant_is_taken_and_killed_through_its_pidfd(sleeping: subprocess.Popen[bytes]) -> None:
    pidfd = processes.verified_pidfd(sleeping.pid, lambda pid: pid == sleeping.pid, "the tool")
    try:
        assert processes.alive(pidfd)
        processes.kill(pidfd)
        assert processes.wait_ended(pidfd, 5)
        processes.kill(pidfd)
    finally:
        os.close(pidfd)


def test_a_reused_pid_is_not_acted_on(sleeping: subprocess.Popen[bytes]) -> None:
    before = len(list(OPEN.iterdir()))
    with pytest.raises(BoxFailed) as stranger:
        processes.verified_pidfd(sleeping.pid, lambda _: False, "the tool")
    assert stranger.value.reason is Reason.BOX_DIED

    def ends_meanwhile(_: int) -> bool:
        sleeping.kill()
        sleeping.wait(5)
        return True  # what was read through /proc may be of whoever has the pid now

    with pytest.raises(BoxFailed):
        processes.verified_pidfd(sleeping.pid, ends_meanwhile, "the tool")
    with pytest.raises(BoxFailed):
        processes.verified_pidfd(sleeping.pid, lambda _: True, "the tool")
    assert len(list(OPEN.iterdir())) == before
