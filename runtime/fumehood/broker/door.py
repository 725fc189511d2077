"""How another runtime's broker asks this one to end a box: one verb on a socket that only their common user can open.

`fumehood sessions end` is a process of its own; the box belongs to the broker that made it, and only that one knows its
engine, its cgroup and its clock. The socket lies in the runtime's folder with mode 0600, and the peer's uid is checked too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fumehood import wire
from fumehood.broker.requests import refuse, task_of
from fumehood.faults import BoxFailed, FumehoodError
from fumehood.reasons import Reason

_NAME = "door"
_ANSWER_S = 10.0
_CREDENTIALS = struct.Struct("3i")


class Door:
    """The listening side. `end` ends the box of a task, or raises."""

    def __init__(self, folder: Path, end: Callable[[str], None]) -> None:
        """Listen in the runtime's folder, in a thread of its own."""
        self._end = end
        self._path = folder / _NAME
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            with _reachable(folder) as name:
                self._socket.bind(name)
        finally:
            os.umask(before)
        self._socket.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError, wire.WireError):
                peer.settimeout(_ANSWER_S)
                self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        got = wire.receive(peer)
        if got is None:
            return
        message, fds = got
        wire.close_all(fds)
        try:
            if uid != os.geteuid() or message.get("verb") != "end":
                raise refuse("another runtime may only end a box, as the same user")
            self._end(task_of(message.get("args", {})))
        except FumehoodError as error:
            wire.send(peer, {"id": 0, **wire.reply_of_error(error)})
        else:
            wire.send(peer, {"id": 0, "ok": {}})


def end_elsewhere(runs: Path, runtime_id: str, task: str) -> None:
    """Ask the runtime that has a task's box to end it. Raises FumehoodError."""
    folder = runs / runtime_id
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.settimeout(_ANSWER_S)
        try:
            with _reachable(folder) as name:
                there.connect(name)
            wire.request(there, "end", {"task": task})
        except (OSError, wire.WireError) as error:
            raise BoxFailed(
                Reason.RUNTIME_DIED, f"the runtime {runtime_id} does not answer", remedy="The next start of fumehood sweeps it."
            ) from error


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """A name for the socket that fits into the 108 bytes of a socket's address, however deep the state folder lies."""
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{held}/{_NAME}"
    finally:
        os.close(held)
