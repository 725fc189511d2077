"""How another process asks this broker to end a box, or all of them: two verbs on a socket that only their common user can open.

`fumehood sessions end` and `fumehood stop` are processes of their own; a box belongs to the broker that made it, and only that one
knows its engine, its cgroup and its clock. The socket lies in the runtime's folder with mode 0600, and the peer's uid is checked too.
Each peer has a thread: one that says nothing must not keep an operator's stop waiting.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fumehood import knocking, wire
from fumehood.broker.requests import refuse
from fumehood.faults import FumehoodError

_CREDENTIALS = struct.Struct("3i")


class Door:
    """The listening side. Each of `verbs` takes a request's arguments and gives its answer, or raises."""

    def __init__(self, folder: Path, verbs: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]) -> None:
        """Listen in the runtime's folder, in a thread of its own."""
        self._verbs = verbs
        self._answering = 0
        self._changed = threading.Condition()
        self._path = folder / knocking.DOOR
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            with knocking.reachable(folder) as name:
                self._socket.bind(name)
        finally:
            os.umask(before)
        self._socket.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and return when whoever was promised an answer has it: a stop ends runtimes, this one too."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._answering, knocking.ANSWER_S)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, wire.WireError):
            peer.settimeout(knocking.ANSWER_S)
            self._judge(peer)

    def _judge(self, peer: socket.socket) -> None:
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        got = wire.receive(peer)
        if got is None:
            return
        message, fds = got
        wire.close_all(fds)
        with self._promised():
            self._reply(peer, uid, message)

    def _reply(self, peer: socket.socket, uid: int, message: Mapping[str, Any]) -> None:
        try:
            answer, args = self._verbs.get(str(message.get("verb"))), message.get("args")
            if uid != os.geteuid() or answer is None:
                raise refuse("another process may only end boxes, as the same user")
            said = answer(args if isinstance(args, dict) else {})
        except FumehoodError as error:
            wire.send(peer, {"id": 0, **wire.reply_of_error(error)})
        else:
            wire.send(peer, {"id": 0, "ok": said})

    @contextlib.contextmanager
    def _promised(self) -> Iterator[None]:
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()


def end_elsewhere(runs: Path, runtime_id: str, task: str) -> None:
    """Ask the runtime that has a task's box to end it. Raises FumehoodError."""
    knocking.ask(runs / runtime_id, "end", {"task": task})
