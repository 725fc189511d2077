"""Memory that is handed on: what is sealed stays as it is, and a kernel that is busy with it is asked again."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from fumehood.memory import Memory


def test_what_is_sealed_stays_as_it_is() -> None:
    with Memory(b"abc").seal() as memory:
        for change in (lambda: os.pwrite(memory.fd, b"x", 0), lambda: os.ftruncate(memory.fd, 1), lambda: os.ftruncate(memory.fd, 9)):
            with pytest.raises(PermissionError):
                change()
        assert os.pread(memory.fd, 10, 0) == b"abc"


@pytest.mark.parametrize(("refusals", "sealed"), [(9, True), (10, False)])
def test_a_kernel_that_holds_a_page_in_passing_is_asked_again(monkeypatch: pytest.MonkeyPatch, refusals: int, sealed: bool) -> None:
    seal, left = fcntl.fcntl, [refusals]

    def busy(fd: int, command: int, seals: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EBUSY, "in passing")
        return seal(fd, command, seals)

    monkeypatch.setattr(fcntl, "fcntl", busy)
    with Memory(b"abc") as memory:
        if sealed:
            memory.seal()
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd, 1)
        else:
            with pytest.raises(OSError, match="in passing"):
                memory.seal()
