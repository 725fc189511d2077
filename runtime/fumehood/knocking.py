"""How a process of the same user asks something of a running runtime's broker: a socket in the runtime's folder.

The listening side is `broker/door.py`. What may be asked there ends things, and begins none.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fumehood import wire
from fumehood.faults import BoxFailed, FumehoodError
from fumehood.reasons import Reason

DOOR = "door"
ANSWER_S = 10.0


@contextlib.contextmanager
def reachable(folder: Path) -> Iterator[str]:
    """A name for the socket that fits into the 108 bytes of a socket's address, however deep the state folder lies."""
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{held}/{DOOR}"
    finally:
        os.close(held)


def ask(folder: Path, verb: str, args: Mapping[str, Any]) -> Any:
    """Ask the runtime of this folder, and wait for its answer. Raises FumehoodError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.settimeout(ANSWER_S)
        try:
            with reachable(folder) as name:
                there.connect(name)
            return wire.request(there, verb, args)[0]
        except (OSError, wire.WireError) as error:
            raise BoxFailed(
                Reason.RUNTIME_DIED, f"the runtime {folder.name} does not answer", remedy="The next start of fumehood sweeps it."
            ) from error


def ask_all(folders: Sequence[Path], verb: str, seconds: float) -> dict[str, Any]:
    """Ask several at once: what each answers, by name, None for one that did not within the time. Who has no door is left out."""
    until_s = time.monotonic() + seconds
    answers: dict[str, Any] = {}
    waiting: dict[int, tuple[str, socket.socket]] = {}
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        for folder in folders:
            there = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            there.settimeout(1.0)
            try:
                with reachable(folder) as name:
                    there.connect(name)
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                continue  # it is dead, or not up yet
            except OSError:
                answers[folder.name] = None
                continue
            answers[folder.name] = None
            with contextlib.suppress(wire.WireError, OSError):
                wire.send(there, {"id": 0, "verb": verb, "args": {}})
                waiting[there.fileno()] = folder.name, there
                poll.register(there, select.POLLIN)
        while waiting and (ready := poll.poll(max(0.0, until_s - time.monotonic()) * 1000)):
            for number, _ in ready:
                name, there = waiting.pop(number)
                poll.unregister(number)
                with contextlib.suppress(wire.WireError, FumehoodError, OSError):
                    got = wire.receive(there)
                    answers[name] = None if got is None else wire.result_of_reply(got[0])
    return answers
