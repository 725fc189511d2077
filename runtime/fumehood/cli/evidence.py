"""What `receipt`, `audit` and `keys` share: one order to a process of the ledger's uid, and its answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    import socket


@contextmanager
def keeper() -> Iterator[socket.socket]:
    """The process, and this one without rights: files of the caller's are opened before."""
    from fumehood import launch

    with launch.keeping(launch.settings()) as sock:
        yield sock


def answers(sock: socket.socket, order: Mapping[str, Any], fds: Sequence[int] = ()) -> Iterator[tuple[Any, bool]]:
    """Each line, and at last what the order came to: (value, whether it is the last). Raises FumehoodError."""
    from fumehood import wire

    try:
        wire.send(sock, order, fds)
        while (got := wire.receive(sock)) is not None:
            message, _ = got
            if "line" in message:
                yield message["line"], False
                continue
            yield (message["done"], True) if "done" in message else (wire.result_of_reply(message), True)
            return
    except wire.WireError as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"the ledger: {error}") from error
    raise FumehoodError(Reason.STATE_UNAVAILABLE, "the process that reads the ledger died")


def answer(order: Mapping[str, Any], fds: Sequence[int] = ()) -> Any:
    """What an order without lines came to."""
    with keeper() as sock:
        return next(value for value, is_last in answers(sock, order, fds) if is_last)


@contextmanager
def given(files: Mapping[str, Path | None]) -> Iterator[dict[str, int]]:
    """Descriptors of the files that the caller named, opened with the caller's own rights. Raises FumehoodError."""
    found: dict[str, int] = {}
    try:
        for name, path in files.items():
            if path is not None:
                found[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        yield found
    except OSError as error:
        told = f"{error.filename}: {error.strerror}"
        raise FumehoodError(Reason.BAD_REQUEST, told, remedy="Name a file that you may read.") from None
    finally:
        for fd in found.values():
            os.close(fd)
