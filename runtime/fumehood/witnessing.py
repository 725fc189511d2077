"""The witness process: takes signed checkpoints out of the host, so that the ledger need not reach anything.

It is forked with the others, with an end of a socket to the ledger and descriptors of the files, which were opened for appending with
the operator's rights. It has the worker's uid and filter, not the ledger's: what a witness answers is a stranger's, and the keys are
not to be had from here. It cannot make a checkpoint, only lose one; the ledger hears of every one that did not arrive, or hears
nothing, which it takes for the same.

A checkpoint covers all before it, so the ledger sends the newest and no queue can grow. Nothing here is waited for by a call.
Standard library only; the HTTP client is imported with the first URL.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fumehood import wire

TOLD_S = 5.0
_ERROR_CHARS = 300

Target = tuple[str, str]


def brief(sock: socket.socket, targets: Sequence[Target], files: Sequence[int]) -> None:
    """Tell the process on the other end what it serves: (kind, where) of each, with a descriptor for each file in order."""
    wire.send(sock, {"targets": [list(target) for target in targets]}, files)


def serve(sock: socket.socket) -> None:
    """Pass on what the ledger sends until it is gone."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the ledger's end is ours: its last checkpoint comes then
    with suppress(wire.WireError):
        briefing = wire.receive(sock)
        if briefing is None:
            return
        files = iter(briefing[1])
        tellers = [(where, _teller(kind, where, files.__next__)) for kind, where in briefing[0]["targets"]]
        while (got := wire.receive(sock)) is not None:
            message, _ = got
            problems = {where: _problem(tell, message["envelope"]) for where, tell in tellers}
            wire.send(sock, {"id": message["id"], "problems": problems})


def _teller(kind: str, where: str, next_file: Callable[[], int]) -> Callable[[str], None]:
    if kind == "file":
        fd = next_file()
        return lambda envelope: _append(fd, envelope)
    return lambda envelope: _post(where, envelope)


def _problem(tell: Callable[[str], None], envelope: str) -> str | None:
    try:
        tell(envelope)
    except Exception as error:  # noqa: BLE001 - whatever the other side makes of it is told, and is not our end
        words = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        return words[:_ERROR_CHARS]
    return None


def _append(fd: int, envelope: str) -> None:
    line = envelope.encode() + b"\n"
    if os.write(fd, line) != len(line):  # one write: who reads meanwhile sees whole lines
        raise OSError(0, "the disk has no room")
    os.fsync(fd)


def _post(url: str, envelope: str) -> None:
    """POST one checkpoint within `TOLD_S` in all: a server that answers a byte a second must not hold the next one up."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    kinds: dict[str, Any] = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection: http.client.HTTPConnection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=TOLD_S)
    over = threading.Timer(TOLD_S, lambda: _cut_off(connection))
    over.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, envelope.encode(), {"Content-Type": "application/json"})
        status = connection.getresponse().status
    finally:
        over.cancel()
        connection.close()
    if not 200 <= status < 300:
        raise OSError(0, f"it answered with status {status}")


def _cut_off(connection: Any) -> None:
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


