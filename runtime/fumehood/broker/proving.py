"""Proof of a box's system call filter where the kernel shows its bytes to root alone (rule 15).

PTRACE_SECCOMP_GET_FILTER needs CAP_SYS_ADMIN on the host. Without it three things together stand for the bytes: init, whose code is
ours and which nothing in the box can change, sends back the program that it handed to the kernel; the kernel says that
exactly one filter is on; and the held tool, a child of init's that has not executed anything yet, makes system calls that no box
may have and is answered as this program answers them. An allow-all filter, a second one, or none at all gives other answers:
without a filter each of these calls does nothing and says something else.

`answer_of` is pure: classic BPF as seccomp(2) allows it. The calls are chosen so that their arguments make them harmless.
"""

from __future__ import annotations

import errno
import operator
import platform
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fumehood.broker import control, processes
from fumehood.broker.readback import Filters
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_DEADLINE_S = 5.0
_ALL = 2**64 - 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
_ENTRY = struct.Struct("=q4Q")

# Name -> (number on x86-64, number elsewhere, arguments). What the kernel itself would say is never what a filter says.
CALLS: Mapping[str, tuple[int, int, tuple[int, int, int, int]]] = {
    "unshare": (272, 97, (0, 0, 0, 0)),  # succeeds and does nothing
    "setns": (308, 268, (_ALL, 0, 0, 0)),
    "keyctl": (250, 219, (_ALL, 0, 0, 0)),
    "add_key": (248, 217, (0, 0, 0, 0)),
    "clone3": (435, 435, (0, 0, 0, 0)),
    "openat2": (437, 437, (_ALL, 0, 0, 0)),
    "pidfd_getfd": (438, 438, (_ALL, _ALL, 0, 0)),
    "open_tree": (428, 428, (_ALL, 0, _ALL, 0)),
    "fchmod setuid": (91, 52, (_ALL, 0o4755, 0, 0)),
    "ioctl TIOCSTI": (16, 29, (_ALL, 0x5412, 0, 0)),
    "socket AF_VSOCK": (41, 198, (40, _ALL, 0, 0)),
}


def answer_of(program: bytes, number: int, arguments: Sequence[int]) -> int:
    """The errno that a filter gives to a call, 0 if it lets it pass. Raises BoxFailed for what no probe may meet: a kill."""
    data = struct.pack("=iIQ6Q", number, _ARCHITECTURES[platform.machine()], 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while at < len(code):
        step, if_true, if_false, value = code[at]
        at += 1
        if step == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif step == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= value
        elif step == 0x05:  # BPF_JMP | BPF_JA
            at += value
        elif step == 0x06:  # BPF_RET | BPF_K
            if value & 0xFFFF0000 == _ERRNO:
                return int(value & 0xFFFF)
            if value == _ALLOW:
                return 0
            break
        else:
            compare = _COMPARED.get(step)
            if compare is None:
                break
            at += if_true if compare(accumulator, value) else if_false
    raise BoxFailed(Reason.UNENFORCEABLE, "the filter cannot be tried out: it would kill the one who tries")


# BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET
_COMPARED: Mapping[int, Callable[[int, int], object]] = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge, 0x45: operator.and_}


def planned_answers(program: bytes) -> dict[str, int]:
    """The errno that each test call must get; calls that a policy answers by a kill are left out."""
    planned: dict[str, int] = {}
    for name in CALLS:
        try:
            planned[name] = answer_of(program, *_call(name))
        except BoxFailed:
            continue
    return planned


def _call(name: str) -> tuple[int, tuple[int, int, int, int]]:
    on_x86, elsewhere, arguments = CALLS[name]
    return (on_x86 if platform.machine() == "x86_64" else elsewhere), arguments


def prove(tool: int, sock: socket.socket, program: bytes) -> Filters:
    """Have init and the held tool show the filter. Raises BoxFailed when they do not answer."""
    planned = planned_answers(program)
    entries = [_ENTRY.pack(number, *arguments) for number, arguments in map(_call, planned)]
    control.send(sock, b"P" + struct.pack("=I", len(entries)) + b"".join(entries))
    answers: dict[str, Any] = {}
    for name in planned:
        report, sender = control.receive_report(sock, _DEADLINE_S)
        if report.kind != "T" or sender != tool:
            raise BoxFailed(Reason.BOX_FAILED, "the held tool did not try the test system calls")
        answers[name] = report.second
    echoed = control.receive_program(sock, tool, len(program), _DEADLINE_S)
    status = processes.status_fields(tool)
    proof = {
        "how": "init's word, the kernel's count, and test system calls in the held tool",
        "mode": status["Seccomp"],
        "filters": status.get("Seccomp_filters", "not told"),
        "answers": _named(answers),
        "planned": _named(planned),
    }
    return Filters([echoed], proof)


def _named(answers: Mapping[str, int]) -> dict[str, str]:
    return {name: errno.errorcode.get(number, "allowed" if number == 0 else str(number)) for name, number in answers.items()}
