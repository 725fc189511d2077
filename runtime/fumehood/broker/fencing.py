"""The fence test of a box that is made ahead: what its held tool can reach, tried before the tool's first instruction (rule 27).

The tool is a child of init's that has not executed anything: it has the box's uid, namespaces and system call filter, and the code is
ours (`init.c` mirrors the order). A probe that reaches something is a hole in this very box, whatever the plan said, so the box is
killed and never offered. A gate that stands shut resets what connects and refuses what asks; without a gate there is no way at all.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from fumehood.broker import control
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

PROBES = (
    "a literal address", "a literal IPv6 address", "the metadata address", "the IPv6 metadata address", "an unlisted name",
    "the engine's socket", "a raw socket", "a packet socket",
)  # fmt: skip
_DEADLINE_S = 5.0


def try_fence(tool: int, sock: socket.socket) -> dict[str, str]:
    """What each probe was answered, by errno's name; `reached` where nothing stopped it. Raises BoxFailed."""
    control.send(sock, b"C")
    found: dict[str, str] = {}
    for number, name in enumerate(PROBES):
        report, sender = control.receive_report(sock, _DEADLINE_S)
        if (report.kind, report.first, sender) != ("C", number, tool):
            raise BoxFailed(Reason.BOX_FAILED, "the held tool did not try the fence")
        found[name] = errno.errorcode.get(report.second, str(report.second)) if report.second else "reached"
    return found


def judge_fence(found: Mapping[str, str]) -> list[str]:
    """Pure: what could be reached, a sentence each."""
    return [f"the box reaches {name}" for name in PROBES if found.get(name, "reached") == "reached"]
