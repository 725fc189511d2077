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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from boxlike import settings_for
from fumehood import wire
from fumehood.broker import living, sweep
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
def host(tmp_path: Path) -> Iterator[Host]:
    chosen = settings_for(tmp_path, runtime_id=ME, docker_host="unix:///nowhere")
    chosen.state.ids.mkdir()
    made = object.__new__(Host)
    made.settings, made.trees = chosen, Trees({}, None, frozenset())
    claims = chosen.state.root / "claims"
    claims.mkdir()
    marks = chosen.state.root / "marks"
    made.ids = IdPool(chosen.state.ids, 2**29, 65_536 * 8, claims, marks)
    made.mark = living.mark(marks, ME, chosen.state.root)
    (chosen.state.run / ME).mkdir()
    yield made
    os.close(made.mark)


def runtime(host: Host, name: str, *, lock: bool = True) -> Path:
    folder = host.settings.state.run / name
    folder.mkdir()
    if lock:
        (folder / "lock").touch()
    marked(host, name, host.settings.state.root)
    return folder


def marked(host: Host, name: str, state: Path) -> None:
    """The mark of a runtime that is dead, as it had it while it lived."""
    os.close(living.mark(host.ids.marks, name, state))


def swept(host: Host, ledger: SmallLedger) -> list[sweep.Swept]:
    with talking(ledger) as sock:
        return list(sweep.sweep(host, sock))


def test_a_dead_runtime_is_swept_and_its_records_closed_as_lost(host: Host) -> None:
    folder = runtime(host, DEAD)
    slot = host.ids.take(DEAD)
    ledger = SmallLedger({"t1": DEAD, "t2": DEAD})
    found = swept(host, ledger)
    assert (folder.exists(), ledger.open_records, host.ids.of_runtime(DEAD)) == (False, {}, [])
    assert slot not in host.ids.of_runtime(ME)
    assert found == [sweep.Swept(runtime=DEAD, records=2, id_ranges=1)]
    assert [path.name for path in host.ids.marks.iterdir()] == [ME]


def test_a_live_runtime_is_left_alone(host: Host) -> None:
    folder = runtime(host, ALIVE)
    slot = host.ids.take(ALIVE)
    held = os.open(folder / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    ledger = SmallLedger({"t": ALIVE})
    try:
        assert swept(host, ledger) == []
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
        assert list(sweep.sweep(host, ours)) == []
    assert folder.exists()
    assert host.ids.of_runtime(DEAD) != []


def test_our_own_runtime_is_not_swept(host: Host) -> None:
    ledger = SmallLedger({"t": ME})
    assert swept(host, ledger) == []
    assert (host.settings.state.run / ME).exists()
    assert ledger.open_records == {"t": ME}


def test_records_of_a_runtime_without_a_folder_are_closed(host: Host) -> None:
    ledger = SmallLedger({"t": DEAD, "mine": ME})
    swept(host, ledger)
    assert ledger.open_records == {"mine": ME}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker-py keeps the socket that failed
def test_an_engine_that_does_not_answer_keeps_the_notes_and_the_id_ranges(host: Host) -> None:
    pytest.importorskip("docker")
    folder = runtime(host, DEAD)
    (folder / "control").mkdir()
    (folder / "control" / "t.id").write_text("c" * 64)
    slot = host.ids.take(DEAD)
    ledger = SmallLedger({"t": DEAD})
    assert [each.done for each in swept(host, ledger)] == [False]
    assert (folder / "control" / "t.id").exists()
    assert host.ids.of_runtime(DEAD) == [slot]
    assert ledger.open_records == {}
    gc.collect()  # under this test's filter


def test_a_claim_that_was_made_when_its_runtime_died_is_freed_too(host: Host) -> None:
    runtime(host, DEAD)
    slot = host.ids.take(DEAD)
    (host.ids.folder / str(slot)).unlink()  # between claim and note, or between note and claim on the way back
    swept(host, SmallLedger({}))
    assert not (host.ids.claims / str(slot)).exists()


def test_a_claim_of_another_since_the_reboot_is_not_freed_with_a_dead_runtimes_note(host: Host, tmp_path: Path) -> None:
    runtime(host, DEAD)
    slot = host.ids.take(DEAD)
    (host.ids.claims / str(slot)).unlink()  # the reboot
    other = replace(host.ids, folder=tmp_path / "other")
    other.folder.mkdir()
    held = living.mark(host.ids.marks, ALIVE, tmp_path)
    while other.take(ALIVE) != slot:
        pass
    swept(host, SmallLedger({}))
    os.close(held)
    assert host.ids.of_runtime(DEAD) == []
    assert slot in host.ids.claimed(ALIVE), "two live boxes would share a range"


def test_what_a_runtime_of_a_vanished_state_folder_claimed_is_freed(host: Host, tmp_path: Path) -> None:
    marked(host, DEAD, tmp_path / "gone")
    other = replace(host.ids, folder=tmp_path)
    slots = [other.take(DEAD) for _ in range(2)]
    assert swept(host, SmallLedger({})) == [sweep.Swept(runtime=DEAD, id_ranges=2, elsewhere=True)]
    assert [path.name for path in host.ids.marks.iterdir()] == [ME]
    assert not any((host.ids.claims / str(slot)).exists() for slot in slots)


def test_a_live_runtime_is_left_alone_though_its_state_folder_cannot_be_seen(host: Host, tmp_path: Path) -> None:
    held = living.mark(host.ids.marks, ALIVE, tmp_path / "elsewhere")
    slot = replace(host.ids, folder=tmp_path).take(ALIVE)
    assert swept(host, SmallLedger({})) == []
    os.close(held)
    assert (host.ids.claims / str(slot)).exists()


def test_a_dead_runtime_of_another_state_folder_that_stands_is_its_own_to_sweep(host: Host, tmp_path: Path) -> None:
    (tmp_path / "other" / "run" / DEAD).mkdir(parents=True)
    marked(host, DEAD, tmp_path / "other")
    slot = replace(host.ids, folder=tmp_path / "other").take(DEAD)
    assert swept(host, SmallLedger({})) == []
    assert (host.ids.claims / str(slot)).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process of another uid")
def test_an_id_range_that_a_process_still_has_stays_claimed(host: Host, tmp_path: Path) -> None:
    marked(host, DEAD, tmp_path / "gone")
    slot = replace(host.ids, folder=tmp_path).take(DEAD)
    uid = host.ids.base(slot) + 1000
    with subprocess.Popen(["/bin/sleep", "60"], user=uid, group=uid) as left:
        assert [each.done for each in swept(host, SmallLedger({}))] == [False]
        assert (host.ids.claims / str(slot)).exists()
        left.kill()
    assert [each.done for each in swept(host, SmallLedger({}))] == [True]
    assert not (host.ids.claims / str(slot)).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process of another uid")
def test_a_process_that_an_engine_left_with_a_dead_runtimes_ids_is_ended_before_the_range_is_free(host: Host) -> None:
    runtime(host, DEAD)
    uid = host.ids.base(host.ids.take(DEAD)) + 1000
    beside = host.ids.base(9) + 1000  # of a slot that nobody here holds
    with subprocess.Popen(["/bin/sleep", "60"], user=uid, group=uid) as left, subprocess.Popen(["/bin/sleep", "60"], user=beside) as other:
        assert [each.id_ranges for each in swept(host, SmallLedger({}))] == [1]
        assert left.wait(5) == -9
        assert other.poll() is None
        other.kill()
    assert host.ids.of_runtime(DEAD) == []


def test_a_claim_without_a_mark_is_left_alone(host: Host) -> None:
    (host.ids.claims / "5").touch()  # an older fumehood's, which may live
    assert swept(host, SmallLedger({})) == []
    assert (host.ids.claims / "5").exists()


def test_a_folder_whose_runtime_died_before_it_had_a_lock_goes_when_it_is_old(host: Host) -> None:
    new, old = (runtime(host, name, lock=False) for name in (ALIVE, DEAD))
    (old / ".lock").touch()
    os.utime(old, (0, 0))
    swept(host, SmallLedger({}))
    assert (new.exists(), old.exists()) == (True, False)


def test_a_mark_whose_runtime_died_before_it_said_anything_goes_when_it_is_old(host: Host) -> None:
    for name in (ALIVE, DEAD):
        (host.ids.marks / name).touch()
    os.utime(host.ids.marks / DEAD, (0, 0))
    assert swept(host, SmallLedger({})) == []
    assert sorted(path.name for path in host.ids.marks.iterdir()) == sorted((ALIVE, ME))


def test_the_timer_sweeps_what_died_meanwhile_and_tells_of_it(
    host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "EVERY_S", 0.01)
    with talking(ledger := SmallLedger({"t": DEAD})) as sock:
        sweeping = sweep.Sweeping(host, sock, lambda: iter(()))
        folder = runtime(host, DEAD)
        while folder.exists():
            pass
        sweeping.close()
    assert ledger.open_records == {}
    assert f"swept the dead runtime {DEAD}: 1 records closed as lost\n" in capfd.readouterr().err


def test_a_tick_is_bounded_and_the_next_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "EVERY_S", 0.01)
    monkeypatch.setattr(sweep, "AT_ONCE", 2)
    dead = [runtime(host, f"{number}" * 26) for number in range(5)]
    with talking(SmallLedger({})) as sock:
        sweeping = sweep.Sweeping(host, sock, lambda: iter(()))
        while any(folder.exists() for folder in dead):
            pass
        sweeping.close()


def test_a_tick_that_fails_does_not_end_the_timer(host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ticks = threading.Semaphore(0)

    def fail(*_: object) -> Iterator[sweep.Swept]:
        ticks.release()
        raise OSError("the disk")

    monkeypatch.setattr(sweep, "EVERY_S", 0.01)
    monkeypatch.setattr(sweep, "sweep", fail)
    with talking(SmallLedger({})) as sock:
        sweeping = sweep.Sweeping(host, sock, lambda: iter(()))
        assert all(ticks.acquire(timeout=5) for _ in range(2))
        sweeping.close()
    assert "the disk" in capfd.readouterr().err


def test_id_ranges_are_never_given_twice_and_never_the_images(host: Host) -> None:
    taken = [host.ids.take(ME) for _ in range(7)]
    assert sorted(taken) == list(range(1, 8))
    with pytest.raises(FumehoodError, match="in use"):
        host.ids.take(ME)
    host.ids.give_back(3, ME)
    assert host.ids.take(ME) == 3


def test_two_state_folders_never_hand_out_one_id_range(host: Host, tmp_path: Path) -> None:
    other = replace(host.ids, folder=tmp_path)
    first = {host.ids.take(ME) for _ in range(3)}
    second = {other.take(ME) for _ in range(4)}
    assert not first & second
    with pytest.raises(FumehoodError, match="in use"):
        other.take(ME)


def test_a_crun_that_still_cleans_up_is_waited_for(tmp_path: Path) -> None:
    # As it does: what it was given as its root is made again when it is gone.
    crun = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; mkdir -p {tmp_path}/r/private/state"])
    while b"mkdir" not in Path(f"/proc/{crun.pid}/cmdline").read_bytes():
        pass  # it is being started
    sweep.await_runtimes(tmp_path / "r")
    assert (tmp_path / "r/private/state").exists()
    assert crun.wait(5) == 0
