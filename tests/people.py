"""A policy that asks, for tests of what comes of it: a patch of the gateway's, and the operator's commands beside it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from typing import Any

from fumehood.approvals.prompt import FOLDED
from lab import FUMEHOOD, Lab

# Every call of a tool is asked about; `need` is what `permission.Need` takes. The file can be changed while the gateway runs.
ASKS = """
import json
from dataclasses import replace
from fumehood.admission import policy
from fumehood.model import Decision, Deny, Kind
from fumehood.permission import Need
judging = policy.evaluate
NEED = {need}
def evaluate(verified, *args, **more):
    found = judging(verified, *args, **more)
    if isinstance(found, Deny) or verified.call.kind is not Kind.TOOL:
        return found
    return replace(found, decision=Decision.ASK, rule="policy.asks", why=("it is a test",), need=NEED)
policy.evaluate = evaluate
"""


def asks(need: str = "Need()") -> str:
    """A patch that makes policy ask."""
    return ASKS.replace("{need}", need)


def program(patch: str) -> list[str]:
    """The command line that runs `fumehood` patched."""
    import sys

    return [sys.executable, "-c", f"{patch}\nfrom fumehood.cli.main import main\nimport sys\nsys.argv[0] = 'fumehood'\nmain()"]


def listed(lab: Lab, *options: str) -> list[dict[str, Any]]:
    """What `fumehood approvals list --json` prints."""
    done = lab.fumehood("approvals", "list", "--json", *options)
    assert done.status == 0, done.stderr
    found: list[dict[str, Any]] = done.said
    return found


def waiting(lab: Lab, number: int = 1, timeout_s: float = 30) -> list[dict[str, Any]]:
    """Those calls that wait, when there are so many."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = [row for row in listed(lab) if row["kind"] == "call" and row["state"] == "open"]
        if len(found) == number:
            return found
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)  # another process's progress, with a deadline


def at_terminal(lab: Lab, *args: str, types: str = "y\n", timeout_s: float = 40) -> tuple[int, str]:
    """The status and the output of `fumehood approvals ...` at a terminal where a person types this once they are asked."""
    ours, theirs = pty.openpty()
    config = ("--config", str(lab.folder / "gateway.yaml")) if (lab.folder / "gateway.yaml").exists() else ()
    process = subprocess.Popen(
        lab.as_user(str(FUMEHOOD), "approvals", *args, *config), cwd=lab.cwd, stdin=theirs, stdout=theirs, stderr=theirs, env={**lab.env, "TERM": "dumb"},
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said, typed = b"", False
    deadline_s = time.monotonic() + timeout_s
    try:
        with contextlib.suppress(OSError):  # its end of the terminal is closed
            while select.select([ours], [], [], max(0, deadline_s - time.monotonic()))[0]:
                data = os.read(ours, 65536)
                if not data:
                    break
                said += data
                if not typed and b"[y/N]" in said:
                    os.write(ours, types.encode())
                    typed = True
        return process.wait(20), said.decode(errors="replace").replace("\r\n" + FOLDED, "")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
