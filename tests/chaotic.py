"""Kills at random moments of calls, and what must be true afterwards: nothing is left on the host, and no answer was a lie.

A round is some calls at once, of every ending, and one victim that is killed in the middle of them. What the client was told of a call
is kept; when the gateway has ended and another runtime has begun (which sweeps), the record of each such call must be closed and say
the same, no record may be open, and nothing of any runtime of the lab may be left. All chance comes from one seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import RISKS, Lab, children, descendants, pids, status
from live_gateway import LiveGateway, live_gateway
from own_docker import OwnDocker

SERVER = Path(__file__).parent / "e2e" / "servers" / "mixed.py"
PROFILE = """\
command: [python3, -I, -S, /workspace/mixed.py]
tools: {allow: [end]}
arguments: {open: ["*"]}
filesystem: {workspace: ro}
limits: {memory: 64MiB, pids: 16, wall: 2s}
"""
# Between its calls its box stands still, and cannot notice that somebody died.
HELD = PROFILE + "scope: session\n"
TOOLS = {"refused": "mixed__forbidden", "session": "held__end"}
CALLS = 6
ROUNDS_OF_ONE = 8  # a gateway that outlives its rounds is ended by its client after so many
FAULTS = frozenset({"internal", "bad_request", "readback_mismatch"})  # whatever was killed, it was ours to expect
SETTLED_S = 15.0
LOOKED_FOR_S = 1.0  # a box, where there is none at the moment of its kill
# The weights make most calls long enough to be met by a kill.
ENDINGS: Mapping[str, tuple[int, Callable[[random.Random], dict[str, Any]]]] = {
    "ok": (4, lambda chance: {"how": "ok", "pause": round(chance.uniform(0, 0.6), 3)}),
    "error": (1, lambda _: {"how": "error"}),
    "die": (1, lambda _: {"how": "die"}),
    "memory": (1, lambda _: {"how": "memory"}),
    "wall": (1, lambda _: {"how": "sleep", "seconds": 60}),
    "refused": (1, lambda _: {}),
    "cancelled": (2, lambda _: {"how": "sleep", "seconds": 60}),
    "session": (2, lambda chance: {"how": "ok", "pause": round(chance.uniform(0, 0.2), 3)}),
}
MORTAL = ("worker", "ledger", "broker")
VICTIMS = (*MORTAL, "engine", "init", "nobody")


@dataclass(frozen=True)
class Told:
    """What a client was told of a call."""

    task: str
    result: str
    reason: str | None


@dataclass
class Chaos:
    """All rounds of one run. `problems` is empty when everything was as it must be."""

    lab: Lab
    engine: str
    seed: int
    docker: OwnDocker | None = None  # which may be restarted
    told: list[Told] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    gateways: int = 0
    done: int = 0
    problems: list[str] = field(default_factory=list)
    _judged: int = 0

    def rounds(self, count: int) -> Iterator[int]:
        """Do them, one a step."""
        chance = random.Random(self.seed)  # noqa: S311 - moments, not secrets
        victims = [*VICTIMS, *(["dockerd"] if self.docker is not None else [])]
        while self.done < count:
            self.gateways += 1
            with live_gateway(self.lab, self._configuration()) as gateway:
                for _ in range(min(ROUNDS_OF_ONE, count - self.done)):
                    victim = chance.choice(victims)
                    self._round(gateway, chance, victim)
                    self.done += 1
                    yield self.done
                    if victim in MORTAL:
                        break
                self._end(gateway)
            self._settled(self.done)

    def judge(self) -> None:
        """What can be said when all is over, or was interrupted."""
        self._settled(self.done)
        done = self.lab.fumehood("audit", "verify", timeout=300)
        if done.status != 0:
            self.problems.append(f"audit verify: {done.stdout[-2000:]}{done.stderr[-500:]}")
        self.problems += judged(self.told, records(self.lab))  # what was told once stays

    def _configuration(self) -> Path:
        workspace = self.lab.workspace("mixed")
        shutil.copy(SERVER, workspace)
        mixed, held = self.lab.profile("mixed", PROFILE), self.lab.profile("held", HELD)
        host = f"docker_host: {self.docker.host}\n" if self.docker is not None else ""
        path = self.lab.folder / "gateway.yaml"
        path.write_text(
            f"accept_risk: [{', '.join(RISKS)}]\n{host}gateway:\n  servers:\n"
            f"    mixed: {{profile: {mixed}, workspace: {workspace}, engine: {self.engine}}}\n"
            f"    held: {{profile: {held}, workspace: {workspace}, engine: {self.engine}}}\n"
        )
        # What sweeps reads the same.
        shutil.copy(path, self.lab.folder / "fumehood.yaml")
        return path

    def _round(self, gateway: LiveGateway, chance: random.Random, victim: str) -> None:
        names = list(ENDINGS)
        longest_s = 2.2 if self.engine == "docker" else 1.6
        moment_s = chance.uniform(0.02, longest_s if victim in {*MORTAL, "dockerd"} else longest_s / 3)  # later there may be no box
        calls: dict[int, str] = {}
        cancels: list[tuple[float, int]] = []
        with suppress(BrokenPipeError):
            for _ in range(CALLS):
                ending = chance.choices(names, [ENDINGS[name][0] for name in names])[0]
                tool = TOOLS.get(ending, "mixed__end")
                number = gateway.send("tools/call", name=tool, arguments=ENDINGS[ending][1](chance))
                calls[number] = ending
                if ending == "cancelled":
                    cancels.append((chance.uniform(0.02, 1.2), number))
        began = time.monotonic()
        events: list[tuple[float, Callable[[], None]]] = [(at, lambda number=number: cancel(gateway, number)) for at, number in cancels]
        events.append((moment_s, lambda: self._kill(gateway, chance, victim)))
        for at, happen in sorted(events, key=lambda event: event[0]):
            time.sleep(max(0.0, began + at - time.monotonic()))
            happen()
        for number, ending in calls.items():
            if ending != "cancelled":
                self._hear(gateway, number, ending, victim)

    def _hear(self, gateway: LiveGateway, number: int, ending: str, victim: str) -> None:
        try:
            answer = gateway.answer(number, timeout_s=40)
        except AssertionError as error:
            self.unanswered += 1
            if victim not in MORTAL or not str(error).startswith("ended"):
                self.problems.append(f"{ending} beside {victim}: {str(error)[:400]}")
            return
        told = told_of(answer)
        if told is None:
            self.problems.append(f"{ending} beside {victim}: an answer without a task: {json.dumps(answer)[:400]}")
            return
        if told.reason in FAULTS:
            self.problems.append(f"{ending} beside {victim}: {json.dumps(answer)[:400]}")
        self.told.append(told)
        self.ended[f"{told.result} {told.reason or ''}".strip()] += 1

    def _kill(self, gateway: LiveGateway, chance: random.Random, victim: str) -> None:
        if victim == "nobody":
            return
        if victim == "dockerd" and self.docker is not None:
            self.docker.restart(chance.choice((signal.SIGKILL, signal.SIGTERM)))
            self.killed[victim] += 1
            return
        until_s = time.monotonic() + LOOKED_FOR_S
        while not (found := self._victims(gateway, victim)) and victim not in MORTAL and time.monotonic() < until_s:
            time.sleep(0.02)
        if not found:
            self.missed[victim] += 1  # no box at this moment
            return
        with suppress(ProcessLookupError):
            os.kill(chance.choice(found), signal.SIGKILL)
            self.killed[victim] += 1

    def _victims(self, gateway: LiveGateway, victim: str) -> list[int]:
        try:
            ours = _ours(gateway)
            if victim in MORTAL:
                return [ours[victim]] if victim in ours else []
            if self.engine == "docker":
                return self._of_docker(victim)
            runtimes = [pid for pid in descendants(ours["broker"]) if status(pid)["Name"] in {"crun", "runc"}]
            return runtimes if victim == "engine" else [pid for runtime in runtimes for pid in children(runtime)]
        except (OSError, KeyError):  # it ended while we looked
            return []

    def _of_docker(self, victim: str) -> list[int]:
        ids = {note.read_text() for note in (self.lab.state / "run").glob("*/control/*.id")}
        shims = [pid for pid in pids() if _shim_of(pid) in ids]
        return shims if victim == "engine" else [pid for shim in shims for pid in children(shim)]

    def _end(self, gateway: LiveGateway) -> None:
        """Let it end, by its client's leaving where it lives."""
        try:
            with suppress(BrokenPipeError):
                gateway.process.stdin.close()  # type: ignore[union-attr] # it is a pipe
            gateway.process.wait(timeout=40)
        except Exception as error:  # noqa: BLE001 - any is a finding
            self.problems.append(f"the gateway does not end: {error!r}")
            gateway.process.kill()
        log = gateway.log.read_text()
        if "Traceback" in log:
            self.problems.append(f"a traceback: {log[log.index('Traceback'):][:3000]}")

    def _settled(self, done: int) -> None:
        """Another runtime begins, which sweeps; then nothing may be left, and every record must be what was told."""
        self._sweep()
        until_s = time.monotonic() + SETTLED_S
        while (left := self._left()) and time.monotonic() < until_s:
            time.sleep(0.1)
            if time.monotonic() > until_s - SETTLED_S / 2:
                self._sweep()
        if left:
            self.problems.append(f"left after round {done}: {left[:10]}")
            self.problems += [f"  kept at {self._keep_evidence(done)}"]
        self.problems += judged(self.told[self._judged :], records(self.lab))
        self._judged = len(self.told)

    def _left(self) -> list[str]:
        return self.lab.left() + (self.docker.left() if self.docker is not None else [])

    def _sweep(self) -> None:
        swept = self.lab.fumehood("doctor", "--json")
        if not swept.stdout:
            self.problems.append(f"no start that sweeps: {swept.stderr[-500:]}")

    def _keep_evidence(self, done: int) -> str:
        place = self.lab.folder / f"log-{done}"
        shutil.copy(self.lab.folder / "gateway.log", place)
        return str(place)

    def summary(self) -> dict[str, Any]:
        """Everything that is counted, for machines."""
        return {
            "engine": self.engine, "seed": self.seed, "rounds": self.done, "gateways": self.gateways, "killed": dict(self.killed), "no box to kill": dict(self.missed),
            "answers": len(self.told), "unanswered": self.unanswered, "endings": dict(self.ended), "problems": self.problems,
        }  # fmt: skip


def told_of(answer: Mapping[str, Any]) -> Told | None:
    """What an answer tells of its call; None when it names none. Pure."""
    if (error := answer.get("error")) is not None:
        facts = error.get("data") or {}
    else:
        meta = answer["result"].get("_meta", {})
        facts = meta.get("fumehood/outcome") or {"task": meta.get("fumehood/task"), "result": "ok", "reason": None}
    if not facts.get("task"):
        return None
    return Told(facts["task"], facts["result"], facts["reason"])


def judged(told: list[Told], found: Mapping[str, tuple[str, str | None, str | None]]) -> list[str]:
    """What is wrong of records beside what clients were told. `found`: state, result and reason by task. Pure."""
    wrong = [f"the record of {task} is still {state}" for task, (state, _, _) in found.items() if state != "closed"]
    for each in told:
        record = found.get(each.task)
        if each.result == "lost" or each.reason == "ledger_unavailable":
            continue  # that it has no record, or that its record will not say more, is what was told
        if record is None:
            wrong.append(f"told of {each.task}: {each.result} {each.reason}, and there is no record")
        elif (record[1], record[2]) != (each.result, each.reason):
            wrong.append(f"told of {each.task}: {each.result} {each.reason}; its record says {record[1]} {record[2]}")
    return wrong


def records(lab: Lab) -> dict[str, tuple[str, str | None, str | None]]:
    """State, result and reason of every record, while no ledger runs."""
    with ExitStack() as stack:
        connection = stack.enter_context(sqlite3.connect(f"file:{lab.state}/ledger/ledger.db?mode=ro", uri=True))
        rows = connection.execute("SELECT task, state, result, reason FROM records").fetchall()
    return {task: (state, result, reason) for task, state, result, reason in rows}


def cancel(gateway: LiveGateway, number: int) -> None:
    """Have the client take a request back."""
    told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
    assert gateway.process.stdin is not None
    with suppress(BrokenPipeError):
        gateway.process.stdin.write(json.dumps(told).encode() + b"\n")


def _ours(gateway: LiveGateway) -> dict[str, int]:
    """Those that there are at this moment: it may be the gateway's first."""
    found = {"worker": gateway.process.pid}
    for pid in sorted(children(gateway.process.pid)):  # the operator process is the last of root's
        name = "broker" if os.stat(f"/proc/{pid}").st_uid == 0 else "ledger"
        found.setdefault(name, pid)
    return found


def _shim_of(pid: int) -> str:
    """The container of a containerd shim; empty for any other process."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if "containerd-shim" in words[0] and "-id" in words:
            return words[words.index("-id") + 1]
    return ""
