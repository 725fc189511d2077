"""Ledgers to measure: a process with several writers, and a store that has as many calls as are wanted."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ledger process of the tests

from fakes import call
from fumehood.evidence.client import closing, opening
from fumehood.ledger.attesting import Chain
from fumehood.lifecycle import State
from fumehood.model import Outcome, Result, task_id
from fumehood.store import records
from fumehood.store.database import Database
from ledgers import Running, client

STEPS = [state for state in State if state not in {State.OPEN, State.WAITING, State.PARKED, State.CLOSED}]
_READBACK = {
    "seccomp": "equal", "mounts": [{"at": f"/mount/{number}", "kind": "overlay", "options": "ro,nosuid,nodev"} for number in range(12)],
    "limits": {f"limit{number}": number for number in range(16)}, "capabilities": "none",
}  # fmt: skip
FACTS = {
    State.VERIFIED: {"image": "python", "image_digest": "sha256:" + "2" * 64},
    State.DECIDED: {"decision": "allow", "rule": "owner"},
    State.PLANNED: {"engine": "oci", "cpu": 1.0, "memory_bytes": 2**29, "wall_s": 60.0, "accept_risk": []},
    State.MADE: {"engine": "oci", "container": "fumehood-1", "init": "sha256:" + "3" * 64},
    State.RUNNING: {"readback": _READBACK},
    State.REMOVED: {"cgroup": "gone", "processes": 0, "mounts": "gone"},
}


async def write(ledger: Running, writers: int, seconds: float, warm_s: float = 1.0) -> tuple[int, list[float], list[float], int]:
    """Calls that were opened and closed after a while, each answer waited for, how long each open and close took in ms, and all calls."""
    everything = 0
    opens: list[float] = []
    closes: list[float] = []
    since = time.monotonic() + warm_s
    until = since + seconds

    async with client(ledger) as worker:

        async def one() -> None:
            nonlocal everything
            while time.monotonic() < until:
                made = call(task=task_id(time.time_ns() // 1_000_000, os.urandom(10)))
                began = time.perf_counter()
                await worker.open(made)
                opened = time.perf_counter()
                await worker.close(Outcome(task=made.task, result=Result.OK))
                everything += 1
                if time.monotonic() > since:
                    closes.append((time.perf_counter() - opened) * 1e3)
                    opens.append((opened - began) * 1e3)

        async with anyio.create_task_group() as group:
            for _ in range(writers):
                group.start_soon(one)
    return len(closes), opens, closes, everything


def fill(
    database: Database, folder: Path, calls: int, *, steps: bool, at_once: int = 500, tell: Callable[[int], None] = lambda _: None
) -> None:
    """Write closed calls as a ledger would, in larger transactions."""
    chain = Chain("00000000000000000000000000", "boot", folder)
    for start in range(0, calls, at_once):
        with database.write(durable=False) as conn:
            for _ in range(min(at_once, calls - start)):
                made, now_s = call(), time.time()
                chain.begin(conn, now_s)
                records.open_record(conn, opening(made), runtime_id="00000000000000000000000000", boot_id="boot", at_s=now_s)
                chain.opened(conn, made.task, now_s)
                for state in STEPS if steps else ():
                    step = records.Step(state, now_s, {"ms": 1.5, **FACTS.get(state, {})})
                    records.add_event(conn, made.task, step, runtime_id="00000000000000000000000000")
                ended = closing(Outcome(task=made.task, result=Result.OK, exit_code=0))
                del ended["task"]
                records.close_record(conn, made.task, ended, runtime_id="00000000000000000000000000", at_s=now_s)
                chain.closed(conn, made.task, now_s, lost=False)
        chain.sign(database)
        tell(start + at_once)
    chain.end(database)


def size_of(folder: Path) -> int:
    """Bytes on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def mark(folder: Path, calls: int) -> None:
    """Say what a kept store has, for the next run."""
    folder.with_suffix(".json").write_text(json.dumps({"calls": calls}))


def marked(folder: Path) -> int:
    """What a kept store has; 0 for none."""
    try:
        return int(json.loads(folder.with_suffix(".json").read_text())["calls"])
    except (OSError, ValueError, KeyError):
        return 0
