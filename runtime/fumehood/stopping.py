"""The file that says that everything is stopped: `<state>/stopped`, the operator's word to every runtime of a state folder (rule 25).

It is written by `fumehood stop --all` with the operator's own rights, in a folder that nobody else can write to, and is there until
`fumehood start` removes it: for runtimes that are started later too, and after a reboot. The ledger reads it before each record that
it opens and the broker before each box; a worker neither writes nor decides. What cannot be read or understood counts as stopped.

Standard library only: the privileged processes read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass

from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.state import StateFolder

WHY_CHARS = 300
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Who stopped everything, when (epoch), and why."""

    who: str
    uid: int
    at_s: float
    why: str = ""

    def line(self) -> str:
        """On one line; what is not printable could drive a terminal."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at_s))
        said = f"{self.who} (uid {self.uid}) stopped everything at {when}" + (f": {self.why}" if self.why else "")
        return "".join(letter if letter.isprintable() else " " for letter in said)


def read(state: StateFolder) -> Stop | None:
    """What the file says; None when there is none."""
    try:
        with state.stopped.open("rb") as file:
            told = json.loads(file.read(_MOST_BYTES))
        at_s = float(told["at_s"])
        return Stop(who=str(told["who"])[:64], uid=int(told["uid"]), at_s=at_s, why=str(told["why"])[:WHY_CHARS])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Stop(who="somebody", uid=-1, at_s=0.0, why=f"{state.stopped} cannot be read")


def denied(state: StateFolder) -> Deny | None:
    """The refusal of whatever would begin now, if everything is stopped."""
    found = read(state)
    return None if found is None else Deny(reason=Reason.STOPPED, rule="operator.stop", detail=found.line())


def write(state: StateFolder, stop: Stop) -> None:
    """Make it so, durably and at once: a reader sees all of the file or none. Raises OSError."""
    temporary = state.root / f".stopped.{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(stop), file)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(state.stopped)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(state)


def remove(state: StateFolder) -> bool:
    """Let calls begin again, durably; whether it had been stopped. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        state.stopped.unlink()
        _sync(state)
        return True
    return False


def _sync(state: StateFolder) -> None:
    folder = os.open(state.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
