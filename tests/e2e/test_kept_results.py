"""What the ledger process keeps beside records: whole or not at all, bounded, and only for this runtime's own calls."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from fakes import FakeLedger, call, new_task
from fumehood import wire
from fumehood.evidence.client import opening
from fumehood.faults import FumehoodError, Refused
from fumehood.model import Keeping, Outcome, Result
from fumehood.ports import Ledger
from fumehood.reasons import Reason
from ledgers import SERVE, Running, client, running

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
# A ledger whose store is small, or that dies between copying and naming.
SMALL = "import fumehood.store.results as r; r.BUDGET_BYTES = 1000; r.Results.__init__.__defaults__ = (1000,)\n"
DIES = """
import os, fumehood.store.results as r
rename = os.rename
def die(*args, **named):
    os.kill(os.getpid(), 9)
r.os.rename = die
"""
SLOW = "import fumehood.store.results as r; r.STEP_BYTES = 1000\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def memory(data: bytes, *, seals: int = SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def keep(ledger: Running, task: str, data: bytes = b"kept", **changed: Any) -> Any:
    fd = changed.pop("fd", None)
    fd = memory(data) if fd is None else fd
    args = {"task": task, "kind": "result", "offset": 0, "bytes": len(data), **changed}
    try:
        return wire.request(ledger.worker, "keep", args, [fd])[0]
    finally:
        os.close(fd)


def kept(ledger: Running, task: str, kind: str = "result") -> tuple[Any, bytes | None]:
    found, fds = wire.request(ledger.worker, "kept", {"task": task, "kind": kind})
    if not fds:
        return found, None
    (fd,) = fds
    with os.fdopen(fd, "rb") as file:
        return found, file.read()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "results").iterdir())


@pytest.fixture
def opened(folder: Path) -> Iterator[tuple[Running, str]]:
    with running(folder) as ledger:
        one = call()
        ledger.open(one)
        yield ledger, one.task


def test_what_is_kept_is_read_back_with_its_owner_by_a_later_runtime(folder: Path) -> None:
    one = call()
    with running(folder) as ledger:
        ledger.open(one)
        assert keep(ledger, one.task, b"x" * 5_000_000 + b"the end")["until"] > time.time() + 80_000
        ledger.close(one.task)
        assert keep(ledger, one.task, b"an answer", kind="answer"), "after the end of the call, too"
    (name, other) = files(folder)
    assert (name, other) == (f"{one.task}.answer", f"{one.task}.result")
    assert (folder / "results" / name).stat().st_mode & 0o777 == 0o600
    assert (folder / "results").stat().st_mode & 0o777 == 0o700
    with running(folder, runtime="r2") as again:
        found, data = kept(again, one.task)
        assert data == b"x" * 5_000_000 + b"the end"
        assert (found["sender"], found["sender_uid"], found["tenant"]) == ("root", 0, "local")
        assert kept(again, one.task, "answer")[1] == b"an answer"
        assert kept(again, new_task()) == (None, None)


def test_a_part_of_the_memory_is_kept_by_its_place(opened: tuple[Running, str]) -> None:
    ledger, task = opened
    keep(ledger, task, b'{"result":{}}', offset=10, bytes=2)
    assert kept(ledger, task)[1] == b"{}"


def test_nothing_is_kept_for_another_runtimes_task_or_under_a_name_that_is_none(folder: Path) -> None:
    one = call()
    with running(folder) as ledger:
        ledger.open(one)
    with running(folder, runtime="r2") as taken_over:
        for task in (one.task, new_task(), "../../" + "0" * 20, "../" + one.task, one.task[:-1] + "/", one.task + "\0", "", 7):
            with pytest.raises(Refused) as refused:
                keep(taken_over, task)  # type: ignore[arg-type]
            assert refused.value.deny.reason is Reason.BAD_REQUEST
        for wrong in ({"kind": "../x"}, {"kind": None}, {"bytes": -1}, {"bytes": 2**40}, {"offset": True}):
            with pytest.raises(Refused):
                keep(taken_over, one.task, **wrong)
        assert files(folder) == []
        assert taken_over.ask("ping") == "pong"


def test_only_sealed_memory_is_copied_from_so_that_nothing_waits_or_grows(opened: tuple[Running, str], tmp_path: Path) -> None:
    ledger, task = opened
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"kept")
    sources = [
        os.open(tmp_path / "fifo", os.O_RDWR), os.open(tmp_path / "file", os.O_RDWR), os.open("/dev/zero", os.O_RDONLY),
        memory(b"kept", seals=0), memory(b"kept", seals=fcntl.F_SEAL_GROW), os.open(tmp_path, os.O_RDONLY),
    ]  # fmt: skip
    for fd in sources:
        with pytest.raises(Refused) as refused:
            keep(ledger, task, fd=fd)
        assert refused.value.deny.reason is Reason.RESULT_NOT_KEPT
    with pytest.raises(Refused):
        keep(ledger, task, b"kept", offset=1, bytes=4)
    keep(ledger, task)
    with pytest.raises(Refused, match="kept already"):
        keep(ledger, task, b"another")
    assert kept(ledger, task)[1] == b"kept"


def test_a_descriptor_beside_any_other_verb_ends_the_connection(opened: tuple[Running, str]) -> None:
    ledger, _ = opened
    fd = memory(b"x")
    with pytest.raises(wire.WireError):
        wire.request(ledger.worker, "ping", {}, [fd])
    os.close(fd)
    assert ledger.ask("ping", ledger.broker) == "pong"


def test_a_full_store_lets_the_oldest_go_and_refuses_what_alone_is_too_much(folder: Path) -> None:
    names = []
    with running(folder, program=SMALL + SERVE) as ledger:
        for _ in range(3):
            one = call()
            ledger.open(one)
            keep(ledger, one.task, b"x" * 400)
            names.append(f"{one.task}.result")
            time.sleep(0.02)
        assert files(folder) == names[1:]
        one = call()
        ledger.open(one)
        with pytest.raises(Refused) as refused:
            keep(ledger, one.task, b"x" * 1001)
        assert refused.value.deny.reason is Reason.RESULT_NOT_KEPT
        assert files(folder) == names[1:], "for what cannot be kept nothing goes"


def test_kill_9_while_a_result_is_copied_leaves_no_half_file_after_the_next_start(folder: Path) -> None:
    one = call()
    with running(folder, program=DIES + SERVE) as ledger:
        ledger.open(one)
        with pytest.raises(wire.WireError):
            keep(ledger, one.task)
    assert ledger.process.returncode == -signal.SIGKILL
    assert files(folder) == [f".{one.task}.result"]
    with running(folder, runtime="r2") as again:
        assert kept(again, one.task)[1] is None
        assert files(folder) == []


def test_a_start_takes_nothing_from_a_living_ledgers_copy_and_others_are_answered_meanwhile(folder: Path) -> None:
    one = call()
    with running(folder, program=SLOW + SERVE) as ledger:
        ledger.open(one)
        fd = memory(b"x" * 2_000_000)
        args = {"task": one.task, "kind": "result", "offset": 0, "bytes": 2_000_000}
        wire.send(ledger.worker, {"id": 1, "verb": "keep", "args": args}, [fd])
        os.close(fd)
        assert ledger.ask("ping", ledger.broker) == "pong"
        assert files(folder) == [f".{one.task}.result"]
        with running(folder, runtime="r2") as second:
            assert second.ask("ping") == "pong"
        answer = wire.receive(ledger.worker)
        assert answer is not None
        assert "until" in answer[0]["ok"]
        assert kept(ledger, one.task)[1] == b"x" * 2_000_000


def test_what_is_too_old_or_without_a_record_goes_and_records_stay(folder: Path) -> None:
    one, two = call(), call()
    with running(folder) as ledger:
        for each in (one, two):
            ledger.open(each)
            keep(ledger, each.task)
    stray = folder / "results" / f"{new_task()}.result"
    stray.write_bytes(b"x")
    os.utime(folder / "results" / f"{one.task}.result", (1, time.time() - 90_000))
    with running(folder, runtime="r2") as again:
        assert again.ask("ping") == "pong"
        assert files(folder) == [f"{two.task}.result"]
        assert kept(again, one.task)[1] is None
        assert again.ask("prune", older_than_s=60.0) == {"removed": 0, "bytes": 0, "leases": 0, "egress": 0}
        assert again.ask("prune", older_than_s=0.0) == {"removed": 1, "bytes": 4, "leases": 0, "egress": 0}
        assert len(again.tasks()) == 2


def test_results_that_aged_while_the_ledger_ran_are_not_given_out(folder: Path) -> None:
    one = call()
    with running(folder) as ledger:
        ledger.open(one)
        keep(ledger, one.task)
        os.utime(folder / "results" / f"{one.task}.result", (1, time.time() - 90_000))
        assert kept(ledger, one.task)[1] is None


async def answers(ledger: Ledger) -> list[Any]:
    one, said = call(), []
    said.append(await ledger.kept(one.task, Keeping.RESULT))
    fd = memory(b"0123456789")
    try:
        with pytest.raises(FumehoodError):
            await ledger.keep(one.task, Keeping.RESULT, fd, 0, 10)
        await ledger.open(one)
        said.append(round(await ledger.keep(one.task, Keeping.RESULT, fd, 2, 3) - time.time(), -1))
        with pytest.raises(Refused):
            await ledger.keep(one.task, Keeping.RESULT, fd, 0, 1)
        await ledger.close(Outcome(task=one.task, result=Result.KILLED, reason=Reason.CANCELLED))
        for kind in Keeping:
            found = await ledger.kept(one.task, kind)
            assert found is not None
            said.append((found.sender, found.front_door, found.is_open, found.result, found.reason, found.size_bytes))
            if found.fd is not None:
                said.append(os.pread(found.fd, 100, 0))
                os.close(found.fd)
    finally:
        os.close(fd)
    return said


@pytest.mark.anyio
async def test_the_fake_ledger_keeps_as_the_process_does(folder: Path) -> None:
    with anyio.fail_after(20), running(folder) as ledger:
        async with client(ledger) as real:
            assert await answers(real) == await answers(FakeLedger())


def test_opening_is_what_an_owner_is_told_by(opened: tuple[Running, str]) -> None:
    ledger, task = opened
    found, data = kept(ledger, task)
    assert data is None
    assert (found["front_door"], found["state"]) == (opening(call())["front_door"], "open")
