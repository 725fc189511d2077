"""What the broker and a box's init say to each other: pure encoding, mirrored by `init/init.c`.

One SEQPACKET datagram a message, the first byte its kind. From the broker: `F`rame, `S`tart, `G`o, `K`ill, `E`nd. From init:
`U`p, `R`eady, `H`eld, e`X`ited, `Q`uiet, `E`xec failed, `!` a step failed. Init's reports are always nine bytes:
kind and two signed 32-bit numbers. Nothing of the tool ever travels here. On `P`rove the held tool answers with a `T`ried a call and
the `B`ytes of its filter (`proving.py`), on `C`heck with what each probe of the fence was answered (`fencing.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

MESSAGE_BYTES = 192 * 1024
STRINGS_MAX = 16384
REPORT_BYTES = 9

GO = b"G"
KILL = b"K"
END = b"E"

# The numbers init.c gives to its steps: what could not be done.
STEPS = {
    1: "frame too short", 2: "setrlimit", 3: "filter size", 4: "no_new_privs", 5: "seccomp", 10: "start format",
    11: "argument count", 12: "argument format", 13: "pipe", 14: "fork", 20: "dup2", 21: "close_range",
    22: "chdir /workspace", 30: "message too long", 31: "unexpected control data", 32: "unexpected descriptors",
    33: "go before start", 34: "unknown message", 35: "prove format", 36: "check before start",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """One report of init's."""

    kind: str
    first: int
    second: int


def frame_message(filter_program: bytes, open_files: int) -> bytes:
    """The limits and the seccomp filter (classic BPF, 8 bytes an instruction) that init puts on itself."""
    return b"F" + struct.pack("=II", open_files, len(filter_program) // 8) + filter_program


def start_message(argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    """The tool's arguments and environment. Raises BoxFailed(BAD_REQUEST) when they cannot be carried."""
    strings = [*argv, *(f"{name}={value}" for name, value in env.items())]
    if not argv or len(strings) > STRINGS_MAX or any("\0" in text for text in strings):
        raise BoxFailed(Reason.BAD_REQUEST, "the command needs 1 to 16384 arguments and variables without NUL")
    try:
        body = b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in strings)
    except UnicodeEncodeError as error:
        raise BoxFailed(Reason.BAD_REQUEST, "the command holds text that stands for no bytes") from error
    if len(body) + 9 >= MESSAGE_BYTES:
        raise BoxFailed(
            Reason.BAD_REQUEST, f"the command line has {len(body)} bytes, at most {MESSAGE_BYTES - 10} fit",
            remedy="Pass long input on stdin or in a file.",
        )  # fmt: skip
    return b"S" + struct.pack("=II", len(argv), len(env)) + body


def parse_report(data: bytes) -> Report:
    """A report of init's. Raises BoxFailed when it is none, or tells of a failed step."""
    if len(data) != REPORT_BYTES:
        raise BoxFailed(Reason.BOX_DIED, "the box's init went away" if not data else "init said something malformed")
    first, second = struct.unpack("=ii", data[1:])
    kind = chr(data[0])
    if kind == "!":
        raise BoxFailed(Reason.BOX_FAILED, f"init could not do `{STEPS.get(first, str(first))}`: errno {second}")
    return Report(kind, first, second)
