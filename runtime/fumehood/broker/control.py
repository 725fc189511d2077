"""The control socket of one box: bounded waits for init's reports, with the kernel's word on who sent them."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence

from fumehood.broker.protocol import REPORT_BYTES, Report, parse_report
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_CREDENTIALS = struct.Struct("=iii")


def receive_report(control: socket.socket, timeout_s: float) -> tuple[Report, int]:
    """The next report and its sender's pid on the host. Raises BoxFailed at the end of the box or of the time."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if not poll.poll(max(0.0, timeout_s) * 1000):
        raise BoxFailed(Reason.BOX_FAILED, f"init was silent for {timeout_s:.0f} s")
    try:
        data, ancillary, _, _ = control.recvmsg(REPORT_BYTES + 1, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        data, ancillary = b"", []
    report = parse_report(data)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(value) == _CREDENTIALS.size:
            return report, _CREDENTIALS.unpack(value)[0]
    raise BoxFailed(Reason.BOX_FAILED, "the kernel did not say who sent a report")


def receive_program(control: socket.socket, sender: int, length: int, timeout_s: float) -> bytes:
    """The filter that a process of the box's shows: `B` and its bytes. One of another length comes cut short or short."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if not poll.poll(max(0.0, timeout_s) * 1000):
        raise BoxFailed(Reason.BOX_FAILED, f"init was silent for {timeout_s:.0f} s")
    data, ancillary, _, _ = control.recvmsg(length + 2, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC)
    senders = [_CREDENTIALS.unpack(value)[0] for _, kind, value in ancillary if kind == socket.SCM_CREDENTIALS]
    if data[:1] != b"B" or senders != [sender]:
        raise BoxFailed(Reason.BOX_FAILED, "the held tool did not show its filter")
    return data[1:]


def send(control: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    """Tell init something. Raises BoxFailed(BOX_DIED) when it is gone."""
    try:
        socket.send_fds(control, [message], list(fds))
    except OSError as error:
        raise BoxFailed(Reason.BOX_DIED, "the box's init went away") from error
