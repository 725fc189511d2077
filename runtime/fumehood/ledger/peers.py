"""What the ledger's peers send and are sent: checked requests, and replies that nobody is waited for with.

A peer that breaks the message format, sends a descriptor with anything but `keep`, or does not read its replies loses its connection;
the others do not notice.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fumehood import wire
from fumehood.faults import Refused
from fumehood.ledger.requests import bad_request, checked

# Of one socket at a time: a worker that floods us must not keep the broker's request waiting.
BATCH = 128
_log = logging.getLogger("fumehood.ledger")


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request. `number` is None when nobody waits for its reply."""

    sock: socket.socket
    number: int | None
    verb: str
    fields: dict[str, Any]
    fd: int = -1


def receive(sock: socket.socket, requests: list[Request]) -> bool:
    """Take what has arrived on one socket. False when it has ended."""
    for _ in range(BATCH):
        try:
            got = wire.receive(sock)
        except BlockingIOError:
            return True
        except wire.WireError as error:
            _log.error("ledger: a peer was cut off: %s", error)
            return False
        if got is None:
            return False
        message, fds = got
        number = message.get("id")
        if len(fds) != (message.get("verb") == "keep") or not (number is None or isinstance(number, int)):
            wire.close_all(fds)
            _log.error("ledger: a peer was cut off: it sent what no peer of ours sends")
            return False
        try:
            verb, fields = checked(message.get("verb"), message.get("args"))
        except Refused as error:
            _log.error("ledger: a request was refused: %s", error.detail)
            wire.close_all(fds)
            reply(Request(sock, number, "", {}), wire.reply_of_error(error))
            continue
        requests.append(Request(sock, number, verb, fields, *fds))
        if verb == "event":
            reply(requests[-1], {"ok": None})
    return True


def reply(request: Request, said: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Answer whoever waits for it."""
    if request.number is None:
        return
    try:
        wire.send(request.sock, {"id": request.number, **said}, fds)
    except (wire.WireError, OSError):
        # Gone, or it does not read: its end arrives with the next select. One peer must not stop the others.
        _shut(request.sock)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def reply_all(requests: Iterable[Request], error: Exception) -> None:
    """Answer all of them with one fault."""
    for request in requests:
        if request.verb == "event":
            _log.error("ledger: an event of task %s is lost: %s", request.fields["task"], error)
        else:
            reply(request, wire.reply_of_error(error))


def not_possible(verb: str, name: str) -> dict[str, Any]:
    """The reply to what cannot be done with what it names."""
    return wire.reply_of_error(bad_request(f"{verb}: not possible for {name} in its state"))
