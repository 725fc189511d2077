"""Everything is stopped by a file: what cannot be understood counts as stopped, and the ledger opens no record while it is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import fakes
from fumehood import evidence, stopping
from fumehood.evidence.client import opening
from fumehood.faults import Refused
from fumehood.model import Outcome, Result
from fumehood.policies.known import Account
from fumehood.reasons import Reason
from fumehood.state import StateFolder
from fumehood.stopping import Stop
from ledgers import Running, client, running

STOP = Stop(who="ada", uid=7, at_s=1_000_000_000.0, why="a key leaked")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def test_what_was_written_is_read_until_it_is_removed(state: StateFolder) -> None:
    assert stopping.read(state) is stopping.denied(state) is None
    stopping.write(state, STOP)
    assert stopping.read(state) == STOP
    assert state.stopped.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in state.root.iterdir()] == ["stopped"], "nothing half written is left"
    deny = stopping.denied(state)
    assert deny is not None
    assert (deny.reason, deny.rule) == (Reason.STOPPED, "operator.stop")
    assert deny.detail.startswith("ada (uid 7) stopped everything at 2001-09-")
    assert deny.detail.endswith(": a key leaked")
    assert stopping.remove(state)
    assert not stopping.remove(state)
    assert stopping.read(state) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"who": 1}', b'{"who":"a","uid":"x","at_s":1,"why":""}', b"x" * 10_000])
def test_what_cannot_be_understood_counts_as_stopped(state: StateFolder, content: bytes) -> None:
    state.stopped.write_bytes(content)
    assert stopping.denied(state) is not None


def test_a_directory_in_its_place_counts_as_stopped(state: StateFolder) -> None:
    state.stopped.mkdir()
    assert stopping.denied(state) is not None


def test_why_drives_no_terminal(state: StateFolder) -> None:
    stopping.write(state, Stop(who="a\x1b[2J", uid=0, at_s=0.0, why="x\n\u202ey"))
    found = stopping.read(state)
    assert found is not None
    assert found.line().isprintable()


@pytest.fixture
def ledger(state: StateFolder) -> Iterator[Running]:
    with running(state.ledger) as found:
        yield found


def test_the_ledger_opens_no_record_and_no_lease_and_closes_what_is_open(state: StateFolder, ledger: Running) -> None:
    before, after = fakes.call(), fakes.call()
    ledger.open(before)
    stopping.write(state, STOP)
    lease = {"lease": fakes.new_task(), "task": before.task, "credential": "c", "provider": "p", "handle": {}, "until": None}
    for verb, args in (("open", opening(after)), ("lease_opened", lease)):
        with pytest.raises(Refused) as caught:
            ledger.ask(verb, **args)
        assert caught.value.reason is Reason.STOPPED
        assert "a key leaked" in caught.value.detail
    record = ledger.ask("task", task=after.task)["record"]
    assert (record["result"], record["reason"], record["rule"]) == ("refused", "stopped", "operator.stop")
    assert record["closed_at"] is not None
    ledger.close(before.task)
    stopping.remove(state)
    ledger.open(fakes.call())


@pytest.mark.anyio
async def test_a_call_is_refused_with_who_and_why_and_has_one_record(state: StateFolder, ledger: Running) -> None:
    stopping.write(state, STOP)
    one = fakes.call()
    async with client(ledger) as real, evidence.record(one, fakes.ports(real)) as log:
        await log.note(Outcome)  # type: ignore[type-var]  # never looked at: there is no open record
    assert (log.outcome.result, log.outcome.reason, log.outcome.rule) == (Result.REFUSED, Reason.STOPPED, "operator.stop")
    assert "ada (uid 7)" in log.outcome.detail
    assert "could not be closed" not in log.outcome.detail


def test_operations_are_noted_newest_first_and_bounded(ledger: Running) -> None:
    note = {"who": "ada", "uid": 7, "why": "w", "facts": {"boxes_killed": 2}}
    ledger.ask("operated", action="stop", **note)
    ledger.ask("operated", action="start", **note)
    found = ledger.ask("operations")["operations"]
    assert [(row["action"], row["who"], row["facts"]) for row in found] == [
        ("start", "ada", {"boxes_killed": 2}),
        ("stop", "ada", {"boxes_killed": 2}),
    ]
    for wrong in ({"action": "shrug", **note}, {"action": "stop", **note, "why": "x" * 2000}, {"action": "stop"}):
        with pytest.raises(Refused):
            ledger.ask("operated", **wrong)


@pytest.mark.anyio
async def test_a_call_without_a_box_is_ended_as_by_an_operator_and_its_record_closed() -> None:
    ports = fakes.ports()
    one = fakes.call()
    ended = anyio.Event()

    async def carry() -> None:
        async with evidence.record(one, ports) as log:
            await anyio.sleep_forever()
        assert (log.outcome.result, log.outcome.reason, log.outcome.detail) == (Result.KILLED, Reason.OPERATOR, "stopped by a test")
        ended.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carry)
            await anyio.wait_all_tasks_blocked()
            ports.halting.halt("stopped by a test")
            await ended.wait()
    assert ports.ledger.closed[one.task].reason is Reason.OPERATOR  # type: ignore[attr-defined]
    async with evidence.record(fakes.call(), ports) as later:
        await anyio.lowlevel.checkpoint()
        later.conclude(Outcome(task="x", result=Result.OK))
    assert later.outcome.result is Result.OK, "what begins later is not the worker's to refuse"


@pytest.mark.anyio
async def test_a_stop_while_the_record_is_being_opened_ends_the_call_too() -> None:
    class Slow(fakes.FakeLedger):
        async def open(self, call: fakes.ToolCall, account: Account | None = None) -> None:
            await super().open(call, account)
            ports.halting.halt("now")

    ports = fakes.ports(Slow())
    async with evidence.record(fakes.call(), ports) as log:
        await anyio.sleep_forever()
    assert log.outcome.reason is Reason.OPERATOR


def test_the_file_is_json_that_an_operator_can_read(state: StateFolder) -> None:
    stopping.write(state, STOP)
    assert json.loads(state.stopped.read_text()) == {"who": "ada", "uid": 7, "at_s": 1_000_000_000.0, "why": "a key leaked"}
