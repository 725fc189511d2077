"""Messages between our own processes: one JSON object a datagram on a SEQPACKET pair, descriptors beside it.

Invariants: a datagram is at most `MESSAGE_BYTES` long, holds one JSON object, and carries at most `MESSAGE_FDS`
descriptors, which arrive close-on-exec. A request is `{"id", "verb", "args"}`; its reply `{"id", "ok"}`,
`{"id", "deny"}` (fields of `model.Deny`) or `{"id", "fault": {"reason", "detail"}}`. Whatever does not fit this is
`WireError`, and the receiver ends the connection: our own processes never send it, so it is an attack or a bug.
Used by privileged processes: standard library only, except that the async client waits through anyio.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from fumehood.faults import BoxFailed, FumehoodError, LedgerGone, Refused
from fumehood.model import Deny
from fumehood.reasons import Reason

MESSAGE_BYTES = 192 * 1024
MESSAGE_FDS = 128  # a gate's sockets: 5 and two for each of at most 60 places; the kernel takes 253
_BUFFER_BYTES = 4 * MESSAGE_BYTES


class _Room(threading.local):
    """Where a thread's messages arrive: making room for the longest one cost each message 50 us."""

    def __init__(self) -> None:
        self.bytes = bytearray(MESSAGE_BYTES + 1)


_FDS_ROOM = socket.CMSG_LEN(MESSAGE_FDS * array("i").itemsize)
_room = _Room()


class WireError(Exception):
    """The other side broke the message format, or is gone."""


class TooLongError(WireError):
    """What was to be sent does not fit one message. Nothing was sent, and the connection is as good as before."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, close-on-exec, with room for several of the largest messages."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as bytes. Raises TooLongError."""
    text = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise WireError("a message holds half a character") from error
    if len(data) > MESSAGE_BYTES:
        raise TooLongError(f"a message of {len(data)} bytes is over {MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """The message in a datagram. Raises WireError."""
    try:
        message = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise WireError("not a JSON message") from error
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message. Raises WireError when the other side is gone."""
    try:
        socket.send_fds(sock, [encode(message)], list(fds))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WireError("the other process is gone") from error


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors, or None at the end. Raises WireError."""
    try:
        # Not socket.recv_fds: that of Python 3.11 drops its flags, and runtimes we start would inherit the descriptors.
        size, ancillary, flags, _ = sock.recvmsg_into([_room.bytes], _FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    data = bytes(memoryview(_room.bytes)[:size])
    _room.bytes[:size] = bytes(size)  # a tool's variables may be secret, and would stay until a message as long comes
    fds = _descriptors(ancillary)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > MESSAGE_BYTES:
        close_all(fds)
        raise WireError("a message or its descriptors are too long")
    if not data:
        close_all(fds)
        return None
    try:
        return decode(data), fds
    except WireError:
        close_all(fds)
        raise


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return found.tolist()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        os.close(fd)


def reply_of_error(error: Exception) -> dict[str, Any]:
    """The part of a reply that tells the caller what went wrong."""
    if isinstance(error, Refused):
        deny = error.deny
        return {"deny": {"reason": deny.reason.value, "rule": deny.rule, "detail": deny.detail, "remedy": deny.remedy}}
    if isinstance(error, FumehoodError):
        return {"fault": {"reason": error.reason.value, "detail": error.detail, "remedy": error.remedy, "kind": type(error).__name__}}
    return {"fault": {"reason": Reason.INTERNAL.value, "detail": f"{type(error).__name__}: {error}", "kind": ""}}


def result_of_reply(reply: Mapping[str, Any]) -> Any:
    """What a reply carries; raises `Refused`, `LedgerGone` or `BoxFailed` for one that tells of an error."""
    if "ok" in reply:
        return reply["ok"]
    if "deny" in reply:
        deny = reply["deny"]
        raise Refused(Deny(reason=Reason(deny["reason"]), rule=deny["rule"], detail=deny["detail"], remedy=deny["remedy"]))
    fault = reply.get("fault")
    if not isinstance(fault, dict):
        raise WireError("a reply without a result")
    kind = LedgerGone if fault.get("kind") == LedgerGone.__name__ else BoxFailed
    raise kind(Reason(fault["reason"]), fault["detail"], remedy=fault.get("remedy"))


def request(sock: socket.socket, verb: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
    """Ask and wait, on a blocking socket that nobody else uses. Returns the result and the descriptors of the reply."""
    send(sock, {"id": 0, "verb": verb, "args": args}, fds)
    got = receive(sock)
    if got is None:
        raise WireError("the other process is gone")
    reply, reply_fds = got
    return result_of_reply(reply), reply_fds
