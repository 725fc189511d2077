"""The ledger as a process of its own: what is answered is on disk, whatever is killed and however full the disk is."""

from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from fakes import FakeLedger, call, new_task, ports
from fumehood import evidence, wire
from fumehood.evidence.client import LedgerClient
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.lifecycle import State
from fumehood.model import Outcome, PinOf, Result
from fumehood.ports import Definition, Ledger
from fumehood.reasons import Reason
from fumehood.store.database import FILE
from fumehood.store.migrations import VERSION
from fumehood.store.pins import pin_of
from ledgers import SERVE, Running, client, running

# The ledger, dying where a power cut is worst: the rows are written and the commit has not happened.
SERVE_AND_DIE = """
import functools, os, sqlite3
commits = []
class Dying(sqlite3.Connection):
    def execute(self, sql, *values):
        if sql == "COMMIT":
            commits.append(sql)
            if len(commits) == 3:  # the first made the schema, the second a record
                os.kill(os.getpid(), 9)
        return super().execute(sql, *values)
sqlite3.connect = functools.partial(sqlite3.connect, factory=Dying)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def raw(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What is on disk, read without the ledger."""
    connection = sqlite3.connect(folder / FILE)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_record_is_on_disk_when_its_opening_is_answered_and_the_ledger_ends_with_its_peers(folder: Path) -> None:
    one = call()
    with running(folder) as ledger:
        assert ledger.ask("ping") == "pong"
        ledger.open(one)
        ledger.process.kill()
        ledger.process.wait()
        assert raw(folder, "SELECT task, runtime_id, state FROM records") == [(one.task, "r1", "open")]
    with running(folder, runtime="r2") as again:
        assert again.ask("runtimes_open", again.broker) == ["r1"]
        (lost,) = again.ask("open_tasks", again.broker, runtime_id="r1")
        assert (lost["task"], lost["boot_id"]) == (
            one.task,
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        )
        facts = {"removed": ["c1"]}
        assert again.ask("close_lost", again.broker, task=one.task, facts=facts) == {"closed": True}
        assert again.ask("close_lost", again.broker, task=one.task, facts=facts) == {"closed": False}
        assert again.ask("task", task=one.task)["record"]["reason"] == "runtime_died"
    assert again.process.returncode == 0


def test_kill_9_between_write_and_commit_leaves_no_half_record(folder: Path) -> None:
    kept, dropped = call(), call()
    with running(folder, program=SERVE_AND_DIE + SERVE) as ledger:
        ledger.open(kept)
        with pytest.raises(wire.WireError):
            ledger.open(dropped)
    assert ledger.process.returncode == -signal.SIGKILL
    with running(folder) as again:
        assert again.tasks() == [kept.task]
        again.open(dropped)
        assert again.tasks() == [dropped.task, kept.task]
    assert raw(folder, "PRAGMA integrity_check") == [("ok",)]


def test_a_closing_that_was_not_committed_leaves_the_record_to_the_sweeper(folder: Path) -> None:
    one = call()
    with running(folder, program=SERVE_AND_DIE + SERVE) as ledger:
        ledger.open(one)
        with pytest.raises(wire.WireError):
            ledger.close(one.task)
    with running(folder, runtime="r2") as again:
        assert [row["task"] for row in again.ask("open_tasks")] == [one.task]


def test_events_sent_by_a_worker_that_died_at_once_are_kept_in_order(folder: Path) -> None:
    one = call()
    steps = [state.value for state in State][1:-1]
    with running(folder) as ledger:
        ledger.open(one)
        for state in steps:
            event = {"task": one.task, "state": state, "at": 1.0, "facts": {}}
            wire.send(ledger.worker, {"id": None, "verb": "event", "args": event})
        ledger.worker.close()
        seen = ledger.ask("task", ledger.broker, task=one.task)["events"]
        assert [event["state"] for event in seen] == ["open", *steps]


def test_two_ledgers_share_one_database_and_neither_touches_the_others_records(folder: Path) -> None:
    calls = 40

    def work(ledger: Running, made: list[str]) -> None:
        for _ in range(calls):
            one = call()
            ledger.open(one)
            ledger.close(one.task)
            made.append(one.task)

    with running(folder, runtime="r1") as one, running(folder, runtime="r2") as two:
        made: list[str] = []
        threads = [threading.Thread(target=work, args=(ledger, made)) for ledger in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(one.tasks(), reverse=True) == two.tasks() == sorted(made, reverse=True)
        assert len(made) == 2 * calls
        theirs = call()
        one.open(theirs)
        with pytest.raises(Refused):
            two.close(theirs.task)
        one.close(theirs.task)


def test_four_ledgers_starting_at_once_on_an_empty_folder_all_work(folder: Path) -> None:
    with ExitStack() as stack:
        ledgers = [stack.enter_context(running(folder, runtime=f"r{number}")) for number in range(4)]
        for ledger in ledgers:
            ledger.open(call())
        assert len(ledgers[0].tasks()) == 4


def test_a_newer_schema_is_told_to_whoever_asks_and_nothing_is_opened(folder: Path) -> None:
    with running(folder) as ledger:
        ledger.open(call())
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with running(folder) as ledger:
        for ask in (lambda: ledger.ask("ping"), lambda: ledger.open(call()), ledger.tasks):
            with pytest.raises(LedgerGone) as refused:
                ask()
            assert refused.value.reason is Reason.STATE_NEWER


def test_a_signal_for_the_whole_group_does_not_end_the_ledger_before_the_worker(folder: Path) -> None:
    one = call()
    with running(folder) as ledger:
        ledger.open(one)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            ledger.process.send_signal(number)
        ledger.close(one.task)


@pytest.mark.parametrize(
    ("data", "fds"),
    [(b"not JSON", 0), (b"[1]", 0), (b'{"id":"x"}', 0), (b'{"id":1,"verb":"ping","args":{}}', 1), (b"x" * 200_000, 0)],
)
def test_a_peer_that_breaks_the_format_is_cut_off_and_the_other_served(folder: Path, data: bytes, fds: int) -> None:
    with running(folder) as ledger:
        assert ledger.ask("ping") == "pong"
        socket.send_fds(ledger.worker, [data], [0] * fds)
        assert wire.receive(ledger.worker) is None
        assert ledger.ask("ping", ledger.broker) == "pong"


def test_a_peer_that_does_not_read_its_replies_does_not_stop_the_other(folder: Path) -> None:
    with running(folder) as ledger:
        assert ledger.ask("ping") == "pong"
        try:
            while True:
                wire.send(ledger.worker, {"id": 1, "verb": "ping", "args": {}})
        except (wire.WireError, TimeoutError):
            pass
        assert ledger.ask("ping", ledger.broker) == "pong"


def test_a_request_of_the_wrong_shape_is_refused_and_the_peer_kept(folder: Path) -> None:
    with running(folder) as ledger:
        with pytest.raises(Refused) as refused:
            ledger.ask("open", task="; DROP TABLE records")
        assert refused.value.deny.reason is Reason.BAD_REQUEST
        assert ledger.ask("ping") == "pong"


def test_a_task_is_found_by_a_prefix_of_its_own_only(folder: Path) -> None:
    one, other = call(), call()
    with running(folder) as ledger:
        ledger.open(one)
        ledger.open(other)
        assert ledger.ask("task", task=one.task[:24])["record"]["task"] == one.task
        with pytest.raises(Refused) as ambiguous:
            ledger.ask("task", task=one.task[:6])
        assert ambiguous.value.deny.reason is Reason.BAD_REQUEST
        with pytest.raises(Refused) as unknown:
            ledger.ask("task", task="zzzzzz")
        assert unknown.value.deny.reason is Reason.TASK_UNKNOWN


# A disk of 12 MiB that only the ledger has, filled up to the last page from outside.
IN_SMALL_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size=12m,mode=700 tmpfs "$4" && exec "$@"'


@contextmanager
def on_small_disk(folder: Path) -> Iterator[tuple[Running, Path]]:
    if shutil.which("unshare") is None or subprocess.run([*IN_SMALL_DISK, "true"], check=False).returncode:
        pytest.skip("needs unshare and user namespaces, or root")
    folder.mkdir(mode=0o700)
    # sh gets the ledger's command line, of which the folder is the fourth word.
    with running(folder, prefix=(*IN_SMALL_DISK, MOUNT, "sh")) as ledger:
        yield ledger, Path(f"/proc/{ledger.process.pid}/root{folder}")


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (2**20, 4096):
            try:
                while filler.write(b"x" * size) == size:
                    pass
            except OSError:
                pass


def reason_of(ask: Callable[[], Any]) -> Reason | None:
    """Why a request failed, if it did."""
    try:
        ask()
    except LedgerGone as error:
        return error.reason
    return None


def test_on_a_full_disk_no_call_opens_yet_what_is_open_is_closed(folder: Path) -> None:
    running_calls = [call() for _ in range(20)]
    with on_small_disk(folder) as (ledger, disk):
        for one in running_calls:
            ledger.open(one)
        fill(disk)
        refused = [reason for reason in (reason_of(lambda: ledger.open(call())) for _ in range(200)) if reason]
        assert len(refused) > 100  # the first few may fit what the log has already
        assert set(refused) == {Reason.LEDGER_UNAVAILABLE}
        for one in running_calls:
            event = {"task": one.task, "state": "verified", "at": 1.0, "facts": {"x": "y" * 1000}}
            wire.send(ledger.worker, {"id": None, "verb": "event", "args": event})
            ledger.close(one.task, detail="d" * 1000)
        record = ledger.ask("task", task=running_calls[0].task)
        assert record["record"]["result"] == "ok"
        assert [event["state"] for event in record["events"]] == ["open", "verified", "closed"]
        with pytest.raises(LedgerGone) as gone:
            ledger.open(call())
        assert "close another" in gone.value.detail
        (disk / "filler").unlink()
        ledger.open(call())


def test_on_a_full_disk_no_definition_is_taken_in_and_what_is_known_goes_on(folder: Path) -> None:
    place: dict[str, Any] = {"server": "s", "profile": "p", "capabilities": "c", "declared": "[]"}
    known = [{"tool": "t", "text": "x" * 60_000, "trusted": True}]
    with on_small_disk(folder) as (ledger, disk):
        assert ledger.ask("pins_seen", **place, definitions=known) == {"t": "accepted"}
        fill(disk)
        seen = []
        for number in range(20):
            new = [{"tool": f"t{number}", "text": f"{number}" + "y" * 60_000, "trusted": True}]
            try:
                seen.append(ledger.ask("pins_seen", **place, definitions=new)[f"t{number}"])
            except (LedgerGone, Refused) as error:
                seen.append(error.reason)
        assert set(seen[-10:]) <= {Reason.LEDGER_UNAVAILABLE, Reason.STATE_UNAVAILABLE}
        assert ledger.ask("pins_seen", **place, definitions=known) == {"t": "accepted"}


async def answers(ledger: Ledger) -> list[str]:
    """What a ledger says to right and wrong use."""
    one, said = call(), []

    async def say(what: Any) -> None:
        try:
            await what
        except FumehoodError as error:
            said.append(f"{type(error).__name__} {error.reason.value} {error.detail.replace(one.task, 'TASK')}")
        else:
            said.append("done")

    outcome = Outcome(task=one.task, result=Result.OK)
    await say(ledger.close(outcome))
    await say(ledger.open(one))
    await say(ledger.open(one))
    of, definition = PinOf(server="s", capabilities="c"), Definition(tool="t", text="{}", trusted=True)
    said.append(f"{await ledger.pins_seen(of, 'git', '[]', [definition, replace(definition, tool='u', trusted=False)])}")
    said.append(f"{await ledger.pins_of(of, 'git')}")
    for pin, tool in ((pin_of("{}"), "t"), (pin_of("other"), "t"), (pin_of("{}"), "u")):
        said.append(f"{await ledger.open(replace(call(), tool=tool, pin=pin, pin_of=of))}")
    await say(ledger.event(one.task, "verified", {"image_digest": "sha256:aa"}))
    await say(ledger.event(one.task, "running", {}))
    await say(ledger.event(new_task(), "verified", {}))
    await say(ledger.close(outcome))
    await say(ledger.event(one.task, "removed", {}))
    await say(ledger.close(outcome))
    return said


@pytest.mark.anyio
async def test_the_fake_ledger_answers_as_the_process_does(folder: Path) -> None:
    with anyio.fail_after(20), running(folder) as ledger:
        async with client(ledger) as real:
            assert await answers(real) == await answers(FakeLedger())


@pytest.mark.anyio
async def test_a_call_whose_ledger_is_killed_in_the_middle_ends_and_says_so(folder: Path) -> None:
    one = call()
    with anyio.fail_after(20), running(folder) as ledger:
        async with client(ledger) as real:
            async with evidence.record(one, ports(real)) as log:
                ledger.process.kill()
                ledger.process.wait()
                log.conclude(Outcome(task=one.task, result=Result.OK, exit_code=0))
            assert log.outcome.result is Result.LOST
            assert "could not be closed" in log.outcome.detail
            async with evidence.record(call(), ports(real)) as refused:
                await refused.note(Outcome)  # type: ignore[type-var]  # never looked at: there is no record
            assert (refused.outcome.result, refused.outcome.reason) == (Result.REFUSED, Reason.LEDGER_UNAVAILABLE)
    with running(folder, runtime="r2") as again:
        assert [row["task"] for row in again.ask("open_tasks")] == [one.task]


@pytest.mark.anyio
async def test_fifty_calls_at_once_share_one_ledger(folder: Path) -> None:
    tasks: list[str] = []

    async def carry(real: LedgerClient) -> None:
        one = call()
        async with evidence.record(one, ports(real)) as log:
            log.conclude(Outcome(task=one.task, result=Result.OK))
        assert log.outcome.detail == ""
        tasks.append(one.task)

    with anyio.fail_after(30), running(folder) as ledger:
        async with client(ledger) as real, anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(carry, real)
    assert raw(folder, "SELECT count(*) FROM records WHERE result = 'ok'") == [(50,)]
    assert len(tasks) == 50
