"""Takes away what runtimes that died left behind, and closes their records as lost (rule 5): at the start, and again by timer.

A runtime is dead when its lock can be taken; a live one holds it. Even then a resource is touched only when the ledger has an open
record of that runtime for its task, and the resource's own name, full id and label agree: labels alone can be written
by whoever makes an image or a container. What does not agree is left alone.

Of a runtime whose state folder is gone there is no ledger to ask. Its mark (`living.py`) says that it is dead, and its cgroups and
claims on id ranges name it, in places where nobody else could have made them; they go. Containers stay: what they say of
themselves may be others' words. What no mark tells of is left alone, but for cgroups with nothing in them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood import wire
from fumehood.broker import cgroups, living, processes
from fumehood.broker.host import Host, remove_folder
from fumehood.broker.tickets import sweep_tickets
from fumehood.faults import FumehoodError
from fumehood.state import PREFIX

RUNTIMES_END_S = 2.0
EVERY_S = 60.0
AT_ONCE = 16  # a tick's work is bounded; what is left over is the next one's
_asking = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one dead runtime had left. `done` is False when something of it stays, for the next sweep."""

    runtime: str
    records: int = 0
    cgroups: int = 0
    containers: int = 0
    id_ranges: int = 0
    elsewhere: bool = False
    done: bool = True

    def line(self) -> str:
        """What to tell an operator."""
        counted = {
            "records closed as lost": self.records, "cgroups": self.cgroups, "containers": self.containers,
            "id ranges": self.id_ranges,
        }  # fmt: skip
        found = ", ".join(f"{number} {what}" for what, number in counted.items() if number) or "its folder alone"
        where = " of a state folder that is gone" if self.elsewhere else ""
        return f"swept the dead runtime {self.runtime}{where}: {found}{'' if self.done else '; the rest is tried again'}"


class Sweeping:
    """Sweeps by timer, in a thread of its own, until it is closed; first what `remove_rest` still has of this runtime's own boxes."""

    def __init__(self, host: Host, ledger: socket.socket, remove_rest: Callable[[], Iterator[str]]) -> None:
        """Begin to wait: what was dead at the start is swept by then."""
        self._host = host
        self._remove_rest = remove_rest
        self._ledger = ledger
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Begin no further sweep. One that still runs ends with the process, and what it was at is found again."""
        self._over.set()
        self._thread.join(RUNTIMES_END_S)

    def _serve(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                for line in itertools.islice(self._lines(), AT_ONCE):
                    print(f"fumehood: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the log of a process that has no other
                    if self._over.is_set():
                        return
            except Exception:  # noqa: BLE001 - what one tick met must not keep the next from looking
                traceback.print_exc(file=sys.stderr)

    def _lines(self) -> Iterator[str]:
        for task in self._remove_rest():
            yield f"removed the box of task {task}, which could not be removed before"
        for found in sweep(self._host, self._ledger):
            yield found.line()


def sweep(host: Host, ledger: socket.socket) -> Iterator[Swept]:
    """Sweep every dead runtime of this state folder, then what those of vanished ones left; one a step."""
    for folder in sorted(host.settings.state.run.iterdir()):
        if folder.name == host.settings.runtime_id:
            continue
        with living.taken(folder / "lock") as lock:
            if lock is not None:
                found = _sweep_runtime(host, folder, ledger)
                if found is not None:
                    yield found
            elif not (folder / "lock").exists() and living.never_began(folder):
                remove_folder(folder)
    _close_forgotten(host, ledger)
    for runtime_id in living.dead_elsewhere(host.ids.marks):
        yield _sweep_elsewhere(host, runtime_id)
    cgroups.remove_empty(host.trees, lambda name: (host.ids.marks / name).exists())


def _sweep_runtime(host: Host, folder: Path, ledger: socket.socket) -> Swept | None:
    runtime_id = folder.name
    tasks = open_tasks(ledger, runtime_id)
    if tasks is None:
        return None  # without the ledger's word nothing is touched
    facts: dict[str, dict[str, Any]] = {row["task"]: {"swept_by": host.settings.runtime_id} for row in tasks}
    groups = cgroups.remove_tree(host.trees, runtime_id)
    for task in groups:
        facts.setdefault(task, {})["cgroup_removed"] = True
    containers, swept = _sweep_containers(host, folder, ledger, facts)
    for row in tasks:
        close_lost(ledger, row["task"], facts[row["task"]])
    held, slots = host.ids.of_runtime(runtime_id), []
    if swept:  # else the folder's notes and the id ranges stay for a time at which the engine answers
        slots = [slot for slot in held if processes.end_of_ids(host.ids.range_of(slot), RUNTIMES_END_S)]
        for slot in slots:
            host.ids.give_back(slot, runtime_id)
        sweep_tickets(host.settings.state.locks)
        await_runtimes(folder)
        swept = slots == held and remove_folder(folder)
    if swept:
        (host.ids.marks / runtime_id).unlink(missing_ok=True)
    return Swept(
        runtime=runtime_id, records=len(tasks), cgroups=len(groups), containers=containers, id_ranges=len(slots), done=swept
    )


def _sweep_elsewhere(host: Host, runtime_id: str) -> Swept:
    groups = cgroups.remove_tree(host.trees, runtime_id)
    slots = list(host.ids.claimed(runtime_id))
    # A container's process may still have ids of the range, whatever became of who made it (rule 14).
    free = [slot for slot in slots if not any(processes.of_ids(host.ids.range_of(slot)))]
    for slot in free:
        host.ids.unclaim(slot, runtime_id)
    if done := free == slots:
        (host.ids.marks / runtime_id).unlink(missing_ok=True)
    return Swept(runtime=runtime_id, cgroups=len(groups), id_ranges=len(free), elsewhere=True, done=done)


def await_runtimes(folder: Path) -> None:
    """Wait until no crun or runc that was given a place in this folder is left.

    It lives until its container is killed, here at the latest, and then cleans up after it; for that it makes the folder anew.
    """
    until_s = time.monotonic() + RUNTIMES_END_S
    while any(os.fsencode(f"{folder}/") in words for words in processes.commands()) and time.monotonic() < until_s:
        time.sleep(0.01)


def _sweep_containers(host: Host, folder: Path, ledger: socket.socket, facts: dict[str, dict[str, Any]]) -> tuple[int, bool]:
    """Remove the dead runtime's containers: each must have its record, its name, both labels and its noted id.

    The record may be closed already: a worker that outlives its broker closes it. How many are gone, and whether all are: not when the
    engine could not be asked.
    """
    control = folder / "control"
    if not control.is_dir() or not any(control.iterdir()):
        return 0, True
    from docker.errors import DockerException

    from fumehood.broker.engines import docker as engine

    number, removed = 0, True
    try:
        with contextlib.closing(engine.connect(host.settings.docker_host)) as api:
            for container in api.containers(all=True, filters={"label": f"{PREFIX}={folder.name}"}):
                task = container["Labels"].get(f"{PREFIX}.task", "")
                if f"/{PREFIX}-{task}" not in container["Names"] or _runtime_of(ledger, task) != folder.name:
                    continue
                noted = control / f"{task}.id"
                if noted.exists() and noted.read_text() != container["Id"]:
                    continue
                gone = engine.remove_container(api, container["Id"])
                facts.setdefault(task, {})["container_removed"] = gone
                number += gone
                removed = removed and gone
    except (FumehoodError, DockerException, OSError):
        return number, False
    return number, removed


def _runtime_of(ledger: socket.socket, task: str) -> str | None:
    """Whose task this is, by the ledger's word; None when it knows no such task. A prefix of an id names none."""
    try:
        result = _ask(ledger, "task", {"task": task})
    except (FumehoodError, wire.WireError, OSError):
        return None
    record: Mapping[str, Any] = result["record"]
    return str(record["runtime_id"]) if record["task"] == task else None


def open_tasks(ledger: socket.socket, runtime_id: str) -> list[Mapping[str, Any]] | None:
    """The open records of a runtime, by the ledger's word; None when it gives none."""
    try:
        result = _ask(ledger, "open_tasks", {"runtime_id": runtime_id})
    except (FumehoodError, wire.WireError, OSError):
        return None
    rows: list[Mapping[str, Any]] = result
    return rows


def close_lost(ledger: socket.socket, task: str, facts: Mapping[str, Any]) -> None:
    """Have a record closed as lost, if it is still open."""
    with contextlib.suppress(FumehoodError, wire.WireError, OSError):
        _ask(ledger, "close_lost", {"task": task, "facts": dict(facts)})


def _close_forgotten(host: Host, ledger: socket.socket) -> None:
    """Close records whose runtime has left no folder: it was removed cleanly, but its ledger died before the end."""
    with contextlib.suppress(FumehoodError, wire.WireError, OSError):
        result = _ask(ledger, "runtimes_open", {})
        for runtime_id in result:
            if not (host.settings.state.run / runtime_id).exists():
                for row in open_tasks(ledger, runtime_id) or []:
                    close_lost(ledger, row["task"], {"swept_by": host.settings.runtime_id})


def _ask(ledger: socket.socket, verb: str, args: Mapping[str, Any]) -> Any:
    """Ask the ledger, one at a time: an operator's stop and the timer share the socket."""
    with _asking:
        result, _ = wire.request(ledger, verb, args)
        return result
