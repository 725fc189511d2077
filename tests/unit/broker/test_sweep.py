"""Sweeping kills only the dead: locks, the ledger's word, and what is left alone."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from boxlike import settings_for
from fumehood import wire
from fumehood.broker import sweep
from fumehood.broker.cgroups import Trees
from fumehood.broker.host import Host
from fumehood.broker.ids import IdPool
from fumehood.faults import FumehoodError

ME, DEAD, ALIVE = "m" * 26, "d" * 26, "a" * 26


@dataclass
class SmallLedger:
    """A ledger process's few answers, over a real socket. `open_records` maps tasks to their runtimes."""

    open_records: dict[str, str]
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def serve(self, sock: socket.socket) -> None:
        with sock:
            while (got := wire.receive(sock)) is not None:
                message, _ = got
                wire.send(sock, {"id": message["id"], **self.answer(message["verb"], message["args"])})

    def answer(self, verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((verb, args))
        if verb == "open_tasks":
            return {"ok": [{"task": task} for task, runtime in self.open_records.items() if runtime == args["runtime_id"]]}
        if verb == "runtimes_open":
            return {"ok": sorted(set(self.open_records.values()))}
        if verb == "close_lost":
            self.open_records.pop(args["task"], None)
            return {"ok": {"closed": True}}
        return {"deny": {"reason": "bad_request", "rule": "", "detail": verb, "remedy": None}}


@contextmanager
def talking(ledger: SmallLedger) -> Iterator[socket.socket]:
    ours, theirs = wire.pair()
    thread = threading.Thread(target=ledger.serve, args=(theirs,))
    thread.start()
    with ours:
        yield ours
        ours.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    chosen = settings_for(tmp_path, runtime_id=ME, docker_host="unix:///nowhere")
    chosen.state.ids.mkdir()
    made = object.__new__(Host)
    made.settings, made.trees = chosen, Trees({}, None, frozenset())
    claims = chosen.state.root / "claims"
    claims.mkdir()
    made.ids = IdPool(chosen.state.ids, 2**29, 65_536 * 8, claims)
    runtime(made, ME)
    return made


def runtime(host: Host, name: str, *, lock: bool = True) -> Path:
    folder = host.settings.state.run / name
    folder.mkdir()
    if lock:
        (folder / "lock").touch()
    return folder


def test_a_dead_runtime_is_swept_and_its_records_closed_as_lost(host: Host) -> None:
    folder = runtime(host, DEAD)
    slot = host.ids.take(DEAD)
    ledger = SmallLedger({"t1": DEAD, "t2": DEAD})
    with talking(ledger) as sock:
        sweep.sweep(host, sock)
    assert (folder.exists(), ledger.open_records, host.ids.of_runtime(DEAD)) == (False, {}, [])
    assert slot not in host.ids.of_runtime(ME)


def test_a_live_runtime_is_left_alone(host: Host) -> None:
    folder = runtime(host, ALIVE)
    slot = host.ids.take(ALIVE)
    held = os.open(folder / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    ledger = SmallLedger({"t": ALIVE})
    try:
        with talking(ledger) as sock:
            sweep.sweep(host, sock)
    finally:
        os.close(held)
    assert folder.exists()
    assert host.ids.of_runtime(ALIVE) == [slot]
    assert ledger.open_records == {"t": ALIVE}


def test_without_the_ledgers_word_nothing_is_touched(host: Host) -> None:
    folder = runtime(host, DEAD)
    host.ids.take(DEAD)
    ours, theirs = wire.pair()
    theirs.close()
    with ours:
        sweep.sweep(host, ours)
    assert folder.exists()
    assert host.ids.of_runtime(DEAD) != []


def test_our_own_runtime_is_not_swept(host: Host) -> None:
    ledger = SmallLedger({"t": ME})
    with talking(ledger) as sock:
        sweep.sweep(host, sock)
    assert (host.settings.state.run / ME).exists()
    assert ledger.open_records == {"t": ME}


def test_records_of_a_runtime_without_a_folder_are_closed(host: Host) -> None:
    ledger = SmallLedger({"t": DEAD, "mine": ME})
    with talking(ledger) as sock:
        sweep.sweep(host, sock)
    assert ledger.open_records == {"mine": ME}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker-py keeps the socket that failed
def test_an_engine_that_does_not_answer_keeps_the_notes_and_the_id_ranges(host: Host) -> None:
    pytest.importorskip("docker")
    folder = runtime(host, DEAD)
    (folder / "control").mkdir()
    (folder / "control" / "t.id").write_text("c" * 64)
    slot = host.ids.take(DEAD)
    ledger = SmallLedger({"t": DEAD})
    with talking(ledger) as sock:
        sweep.sweep(host, sock)
    assert (folder / "control" / "t.id").exists()
    assert host.ids.of_runtime(DEAD) == [slot]
    assert ledger.open_records == {}
    gc.collect()  # under this test's filter


def test_id_ranges_are_never_given_twice_and_never_the_images(host: Host) -> None:
    taken = [host.ids.take(f"{number}") for number in range(7)]
    assert sorted(taken) == list(range(1, 8))
    with pytest.raises(FumehoodError, match="in use"):
        host.ids.take("one more")
    host.ids.give_back(3)
    assert host.ids.take("next") == 3


def test_two_state_folders_never_hand_out_one_id_range(host: Host, tmp_path: Path) -> None:
    other = IdPool(tmp_path, host.ids.start, host.ids.count, host.ids.claims)
    first = {host.ids.take("a") for _ in range(3)}
    second = {other.take("a") for _ in range(4)}
    assert not first & second
    with pytest.raises(FumehoodError, match="in use"):
        other.take("a")


def test_a_crun_that_still_cleans_up_is_waited_for(tmp_path: Path) -> None:
    # As it does: what it was given as its root is made again when it is gone.
    crun = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; mkdir -p {tmp_path}/r/private/state"])
    while b"mkdir" not in Path(f"/proc/{crun.pid}/cmdline").read_bytes():
        pass  # it is being started
    sweep.await_runtimes(tmp_path / "r")
    assert (tmp_path / "r/private/state").exists()
    assert crun.wait(5) == 0
