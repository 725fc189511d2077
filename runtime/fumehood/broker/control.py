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


def send(control: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    """Tell init something. Raises BoxFailed(BOX_DIED) when it is gone."""
    try:
        socket.send_fds(control, [message], list(fds))
    except OSError as error:
        raise BoxFailed(Reason.BOX_DIED, "the box's init went away") from error
