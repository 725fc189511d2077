"""A ledger with a history in it, made by real ledger processes, to be copied, edited and audited."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import call, new_task
from fumehood.keys import KeyFolder, PublicKey
from fumehood.ledger.audit import Audit, Fault, Summary
from fumehood.lifecycle import State
from fumehood.store.database import FILE, opened
from ledgers import Running, running

STEPS = [state for state in State if state not in {State.OPEN, State.WAITING, State.PARKED, State.CLOSED}]
FACTS: dict[State, dict[str, Any]] = {
    State.VERIFIED: {"image_digest": "sha256:aa"},
    State.DECIDED: {"decision": "allow", "rule": "owner"},
    State.PLANNED: {"engine": "oci", "accept_risk": ["cve-1"], "wall_s": 60.0},
    State.MADE: {"engine": "oci", "container": "c1", "init": "sha256:bb"},
    State.RUNNING: {"readback": {"seccomp": "equal", "mounts": 7}},
    State.REMOVED: {"cgroup": "gone", "processes": 0},
}
REVOKED = {"gone": True, "asked": "DROP ROLE", "answer": "done"}


@dataclass(frozen=True)
class History:
    """Who did what: `closed` with a lease and an egress log, by `r1`; `lost` was swept by `r2`; `open` has a lease that lives."""

    folder: Path
    closed: str
    lease: str
    lost: str
    open: str
    living: str

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.folder, to, symlinks=True)
        return to


def whole_call(ledger: Running, *, lease: str | None = None, logged: int = 0, steps: bool = True, **given: Any) -> str:
    """One call from open to closed; its task."""
    one = call(**given)
    ledger.open(one)
    for state in STEPS if steps else ():
        ledger.ask("event", task=one.task, state=state.value, at=2.0, facts={"ms": 1.5, **FACTS.get(state, {})})
    if logged:
        entries = [{"at": 3.0, "kind": "refused" if number % 2 else "dns", "facts": {"name": f"n{number}"}} for number in range(logged)]
        ledger.ask("egress", task=one.task, entries=entries[:1], counters={"connections": 1})
        ledger.ask("egress", task=one.task, entries=entries[1:], counters={"connections": logged})
    if lease is not None:
        lend(ledger, one.task, lease)
        ledger.ask("lease_closed", lease=lease, revoked=REVOKED, error=None)
    ledger.close(one.task, exit_code=0, stdout_total_bytes=5)
    return one.task


def lend(ledger: Running, task: str, lease: str) -> None:
    """A lease that is issued."""
    ledger.ask("lease_opened", lease=lease, task=task, credential="db", provider="postgres", handle={"role": "r"}, until=99.0)
    ledger.ask("lease_issued", lease=lease, until=98.0, sealed=None, facts={"role": "r"})


def made(folder: Path) -> History:
    """Two runtimes at once, one of them killed and swept; a third one, killed with a call under way."""
    lease, living = new_task(), new_task()
    with running(folder, runtime="r1") as first, running(folder, runtime="r2") as second:
        whole_call(first)
        whole_call(second)
        closed = whole_call(first, lease=lease, logged=5)
        whole_call(second, steps=False)
        lost = call()
        first.open(lost)
        killed(first)
        second.ask("close_lost", second.broker, task=lost.task, facts={"swept_by": "r2"})
        whole_call(second)
    with running(folder, runtime="r3") as third:
        whole_call(third)
        still = call()
        third.open(still)
        lend(third, still.task, living)
        killed(third)
    return History(folder, closed, lease, lost.task, still.task, living)


def killed(ledger: Running) -> None:
    os.kill(ledger.process.pid, signal.SIGKILL)
    ledger.process.wait()


def edited(folder: Path, *statements: str) -> None:
    """Edit the file as somebody would who may: without the triggers and the foreign keys."""
    raw = sqlite3.connect(folder / FILE)
    try:
        raw.execute("DROP TRIGGER chain_keeps")
        raw.execute("DROP TRIGGER chain_holds")
        for statement in statements:
            assert raw.execute(statement).rowcount != 0, f"nothing to edit: {statement}"
        raw.commit()
    finally:
        raw.close()


def audited(
    folder: Path, *, witness: Iterable[str] = (), keys: dict[str, PublicKey] | None = None
) -> tuple[list[Fault], Summary]:
    """What a pass finds."""
    with opened(folder) as database, database.read() as conn:
        known = {key.kid: key for key in KeyFolder(folder).public()} if keys is None else keys
        audit = Audit(conn, known, witness)
        return list(audit.faults()), audit.summary


def checkpoints(folder: Path) -> list[str]:
    """The envelopes, as a witness would have them."""
    raw = sqlite3.connect(folder / FILE)
    try:
        return [envelope for (envelope,) in raw.execute("SELECT envelope FROM checkpoints ORDER BY number")]
    finally:
        raw.close()
