"""Takes away what runtimes that died left behind, and closes their records as lost (rule 5).

A runtime is dead when its lock can be taken; a live one holds it. Even then a resource is touched only when the ledger has an open
record of that runtime for its task, and the resource's own name, full id and label agree: labels alone can be written
by whoever makes an image or a container. What does not agree is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fumehood import wire
from fumehood.broker import cgroups, processes
from fumehood.broker.host import Host, remove_folder
from fumehood.broker.tickets import sweep_tickets
from fumehood.faults import FumehoodError
from fumehood.state import PREFIX

RUNTIMES_END_S = 2.0


def sweep(host: Host, ledger: socket.socket) -> None:
    """Sweep every dead runtime of this state folder."""
    for folder in sorted(host.settings.state.run.iterdir()):
        if folder.name == host.settings.runtime_id:
            continue
        lock = _take(folder / "lock")
        if lock is None:
            continue
        try:
            _sweep_runtime(host, folder, ledger)
        finally:
            os.close(lock)
    _close_forgotten(host, ledger)


def _take(path: Path) -> int | None:
    """The dead runtime's lock, now ours; None while it lives (or another sweeper is at it)."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _sweep_runtime(host: Host, folder: Path, ledger: socket.socket) -> None:
    runtime_id = folder.name
    tasks = open_tasks(ledger, runtime_id)
    if tasks is None:
        return  # without the ledger's word nothing is touched
    facts: dict[str, dict[str, Any]] = {row["task"]: {"swept_by": host.settings.runtime_id} for row in tasks}
    for task in cgroups.remove_tree(host.trees, runtime_id):
        facts.setdefault(task, {})["cgroup_removed"] = True
    swept = _sweep_containers(host, folder, ledger, facts)
    for row in tasks:
        close_lost(ledger, row["task"], facts[row["task"]])
    if not swept:
        return  # the folder's notes and the id ranges stay for a start at which the engine answers
    for slot in host.ids.of_runtime(runtime_id):
        host.ids.give_back(slot)
    sweep_tickets(host.settings.state.locks)
    await_runtimes(folder)
    remove_folder(folder)


def await_runtimes(folder: Path) -> None:
    """Wait until no crun or runc that was given a place in this folder is left.

    It lives until its container is killed, here at the latest, and then cleans up after it; for that it makes the folder anew.
    """
    until_s = time.monotonic() + RUNTIMES_END_S
    while any(os.fsencode(f"{folder}/") in words for words in processes.commands()) and time.monotonic() < until_s:
        time.sleep(0.01)


def _sweep_containers(host: Host, folder: Path, ledger: socket.socket, facts: dict[str, dict[str, Any]]) -> bool:
    """Remove the dead runtime's containers: each must have its record, its name, both labels and its noted id.

    The record may be closed already: a worker that outlives its broker closes it. False when the engine could not be asked.
    """
    control = folder / "control"
    if not control.is_dir() or not any(control.iterdir()):
        return True
    from docker.errors import DockerException

    from fumehood.broker.engines import docker as engine

    try:
        api = engine.connect(host.settings.docker_host)
        listed = api.containers(all=True, filters={"label": f"{PREFIX}={folder.name}"})
    except (FumehoodError, DockerException, OSError):
        return False
    removed = True
    for container in listed:
        task = container["Labels"].get(f"{PREFIX}.task", "")
        if f"/{PREFIX}-{task}" not in container["Names"] or _runtime_of(ledger, task) != folder.name:
            continue
        noted = control / f"{task}.id"
        if noted.exists() and noted.read_text() != container["Id"]:
            continue
        gone = engine.remove_container(api, container["Id"])
        facts.setdefault(task, {})["container_removed"] = gone
        removed = removed and gone
    return removed


def _runtime_of(ledger: socket.socket, task: str) -> str | None:
    """Whose task this is, by the ledger's word; None when it knows no such task. A prefix of an id names none."""
    try:
        result, _ = wire.request(ledger, "task", {"task": task})
    except (FumehoodError, wire.WireError, OSError):
        return None
    record: Mapping[str, Any] = result["record"]
    return str(record["runtime_id"]) if record["task"] == task else None


def open_tasks(ledger: socket.socket, runtime_id: str) -> list[Mapping[str, Any]] | None:
    """The open records of a runtime, by the ledger's word; None when it gives none."""
    try:
        result, _ = wire.request(ledger, "open_tasks", {"runtime_id": runtime_id})
    except (FumehoodError, wire.WireError, OSError):
        return None
    rows: list[Mapping[str, Any]] = result
    return rows


def close_lost(ledger: socket.socket, task: str, facts: Mapping[str, Any]) -> None:
    """Have a record closed as lost, if it is still open."""
    with contextlib.suppress(FumehoodError, wire.WireError, OSError):
        wire.request(ledger, "close_lost", {"task": task, "facts": dict(facts)})


def _close_forgotten(host: Host, ledger: socket.socket) -> None:
    """Close records whose runtime has left no folder: it was removed cleanly, but its ledger died before the end."""
    with contextlib.suppress(FumehoodError, wire.WireError, OSError):
        result, _ = wire.request(ledger, "runtimes_open", {})
        for runtime_id in result:
            if not (host.settings.state.run / runtime_id).exists():
                for row in open_tasks(ledger, runtime_id) or []:
                    close_lost(ledger, row["task"], {"swept_by": host.settings.runtime_id})
