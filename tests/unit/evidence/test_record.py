"""Every way out of a call closes its record, and says truthfully how it was left."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace

import anyio
import pytest

from fakes import FakeClock, FakeLedger, call, ports
from fumehood import evidence
from fumehood.evidence import Log
from fumehood.evidence.record import LifecycleError
from fumehood.faults import BoxFailed, ExchangeFailed, FumehoodError, LedgerGone, Refused
from fumehood.lifecycle import Event, State
from fumehood.model import (
    Binding,
    Decision,
    Deny,
    Frame,
    Grant,
    Image,
    Outcome,
    Plan,
    Result,
    ToolCall,
    UserNamespace,
    Verdict,
    Verified,
    WorkspaceMode,
)
from fumehood.policies.known import Account
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio
# `evidence.record` is the function; the module of that name is found by its path.
MODULE = importlib.import_module("fumehood.evidence.record")
DENY = Deny(reason=Reason.TOOL_NOT_ALLOWED, rule="policy.tools", detail="no git_push", remedy="Ask.")


def verified(of: ToolCall) -> Verified:
    return Verified(call=of, image=Image(name="python", digest="sha256:" + "2" * 64, docker_id=None))


def verdict(of: ToolCall) -> Verdict:
    return Verdict(verified=verified(of), decision=Decision.ALLOW, rule="policy.owner")


def plan(of: ToolCall) -> Plan:
    frame = Frame(
        image="sha256:" + "2" * 64,
        docker_image=None,
        engine="oci",
        runtime=None,
        cpu=1.0,
        memory_bytes=2**29,
        pids=128,
        open_files=1024,
        tmp_bytes=2**26,
        seccomp=of.profile.seccomp,
        user_namespace=UserNamespace.ALWAYS,
        accept_risk=(),
    )
    binding = Binding(
        workspace=WorkspaceMode.RW,
        workspace_fd=None,
        workspace_path="/home/u/src",
        disk_bytes=2**28,
        disk_unlimited=False,
        mounts=(),
        wall_s=60.0,
    )
    return Plan(grant=Grant(verdict=verdict(of)), frame=frame, binding=binding)


async def admit(log: Log, of: ToolCall) -> None:
    await log.note(verified(of))
    await log.note(verdict(of))
    await log.note(Grant(verdict=verdict(of)))
    await log.note(plan(of))


async def carry(log: Log, of: ToolCall, clock: FakeClock) -> None:
    await admit(log, of)
    for event, seconds in (
        (Event.MAKE, 0.1),
        (Event.BIND, 0.01),
        (Event.START, 0.02),
        (Event.EXIT, 1.5),
        (Event.SETTLE, 0.03),
        (Event.REMOVE, 0.04),
    ):
        clock.advance(seconds)
        facts = {"engine": "oci", "container": "fumehood-x"} if event is Event.MAKE else {}
        await log.event(event, **facts)


async def left_by(error: BaseException, *, ran: bool = False) -> tuple[Outcome, FakeLedger]:
    """The outcome of a call whose body raises `error`."""
    ledger, clock, one = FakeLedger(), FakeClock(), call()
    with anyio.fail_after(5):
        async with evidence.record(one, ports(ledger, clock)) as log:
            if ran:
                await carry(log, one, clock)
            raise error
    assert ledger.closed[one.task] == log.outcome
    return log.outcome, ledger


async def test_a_call_that_succeeds_is_closed_with_its_outcome_and_the_time_of_each_stage() -> None:
    ledger, clock, one = FakeLedger(), FakeClock(), call()
    async with evidence.record(one, ports(ledger, clock)) as log:
        clock.advance(0.005)
        await carry(log, one, clock)
        log.conclude(Outcome(task=one.task, result=Result.OK, exit_code=0))
    assert (log.outcome.engine, log.outcome.container) == ("oci", "fumehood-x")
    assert log.outcome.timings_ms == pytest.approx(
        {
            "open": 0,
            "verify": 5,
            "make": 100,
            "bind": 10,
            "start": 20,
            "run": 1500,
            "settle": 30,
            "remove": 40,
            "total": 1705,
        }
    )
    assert ledger.closed == {one.task: log.outcome}
    assert [state for _, state, _ in ledger.events] == [state.value for state in State if state not in {State.WAITING, State.PARKED}][1:-1]
    assert ledger.facts_of(State.VERIFIED)["image_digest"] == "sha256:" + "2" * 64
    assert ledger.facts_of(State.DECIDED)["rule"] == "policy.owner"
    assert ledger.facts_of(State.PLANNED)["workspace_path"] == "/home/u/src"
    assert ledger.facts_of(State.MADE)["ms"] == pytest.approx(105)


async def test_a_denial_is_raised_and_closed_as_refused_with_its_rule_and_remedy() -> None:
    ledger, one = FakeLedger(), call()
    async with evidence.record(one, ports(ledger)) as log:
        await log.note(verified(one))
        await log.note(DENY)
        pytest.fail("a denied call went on")
    outcome = log.outcome
    assert (outcome.result, outcome.reason, outcome.rule) == (Result.REFUSED, Reason.TOOL_NOT_ALLOWED, "policy.tools")
    assert (outcome.detail, outcome.remedy) == ("no git_push", "Ask.")
    assert ledger.closed[one.task] == outcome


async def test_without_a_record_the_first_stage_is_refused_and_nothing_is_closed() -> None:
    ledger, one = FakeLedger(gone=True), call()
    async with evidence.record(one, ports(ledger)) as log:
        await log.note(verified(one))
        pytest.fail("a call ran without a record")
    assert (log.outcome.result, log.outcome.reason) == (Result.REFUSED, Reason.LEDGER_UNAVAILABLE)
    assert ledger.closed == {}


async def test_without_a_record_no_step_of_a_box_is_taken_either() -> None:
    async with evidence.record(call(), ports(FakeLedger(gone=True))) as log:
        await log.event(Event.MAKE)
        pytest.fail("a box was made without a record")
    assert log.outcome.result is Result.REFUSED


async def test_a_ledger_that_hangs_at_opening_refuses_the_call_and_is_told_to_close_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(FakeLedger):
        async def open(self, call: ToolCall, account: Account | None = None) -> None:
            await super().open(call, account)  # written, but nobody was told
            await anyio.sleep_forever()

    monkeypatch.setattr(MODULE, "OPEN_DEADLINE_S", 0.05)
    ledger, one = Slow(), call()
    with anyio.fail_after(5):
        async with evidence.record(one, ports(ledger)) as log:
            await log.note(verified(one))
    assert log.outcome.reason is Reason.LEDGER_UNAVAILABLE
    assert ledger.closed[one.task].result is Result.REFUSED


@pytest.mark.parametrize("reason", [Reason.BOX_FAILED, Reason.BOX_DIED, Reason.ENGINE_UNAVAILABLE])
async def test_a_box_that_fails_closes_the_record_as_failed(reason: Reason) -> None:
    outcome, _ = await left_by(BoxFailed(reason, "crun said no"))
    assert (outcome.result, outcome.reason, outcome.detail) == (Result.FAILED, reason, "crun said no")


@pytest.mark.parametrize("reason", [Reason.WALL, Reason.MEMORY, Reason.OUTPUT, Reason.READBACK_MISMATCH])
async def test_a_kill_reason_closes_the_record_as_killed_whoever_raises_it(reason: Reason) -> None:
    for error in (BoxFailed(reason), ExchangeFailed(reason), Refused(Deny(reason=reason, rule="x"))):
        outcome, _ = await left_by(error)
        assert (outcome.result, outcome.reason) == (Result.KILLED, reason)


async def test_an_exchange_that_fails_closes_the_record_as_failed() -> None:
    outcome, _ = await left_by(ExchangeFailed(Reason.SERVER_GARBAGE, "not JSON"), ran=True)
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.SERVER_GARBAGE)
    assert outcome.container == "fumehood-x"
    assert outcome.timings_ms["run"] == pytest.approx(1500)


async def test_a_refusal_after_the_tool_ran_is_a_failure_because_refused_means_nothing_ran() -> None:
    outcome, _ = await left_by(Refused(Deny(reason=Reason.COMMIT_REFUSED, rule="files.11")), ran=True)
    assert (outcome.result, outcome.reason, outcome.rule) == (Result.FAILED, Reason.COMMIT_REFUSED, "files.11")


async def test_an_error_inside_a_task_group_keeps_its_code() -> None:
    outcome, _ = await left_by(ExceptionGroup("tasks", [ExceptionGroup("inner", [BoxFailed(Reason.BOX_DIED)])]))
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.BOX_DIED)


async def test_a_fault_of_ours_is_internal_and_told_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="fumehood"):
        outcome, _ = await left_by(KeyError("line one\nline two\x1b[31m"))
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.INTERNAL)
    assert "KeyError" in outcome.detail
    assert "test_record.py:" in outcome.detail
    (line,) = caplog.messages
    assert "\n" not in line
    assert "\x1b" not in line


async def test_a_body_that_never_concludes_is_a_fault_of_ours() -> None:
    ledger, one = FakeLedger(), call()
    async with evidence.record(one, ports(ledger)) as log:
        pass
    assert (log.outcome.result, log.outcome.reason) == (Result.FAILED, Reason.INTERNAL)


async def test_cancellation_closes_the_record_as_killed_and_goes_on() -> None:
    ledger, one, after = FakeLedger(), call(), False
    with anyio.fail_after(5):
        with anyio.CancelScope() as scope:
            async with evidence.record(one, ports(ledger)):
                scope.cancel()
                await anyio.sleep_forever()
            after = True
    assert scope.cancelled_caught
    assert not after
    assert (ledger.closed[one.task].result, ledger.closed[one.task].reason) == (Result.KILLED, Reason.CANCELLED)


async def test_closing_waits_for_the_ledger_though_the_caller_is_being_cancelled() -> None:
    class Slow(FakeLedger):
        async def close(self, outcome: Outcome) -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()  # each would raise, were it not shielded
            await super().close(outcome)

    ledger, one = Slow(), call()
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with evidence.record(one, ports(ledger)):
            scope.cancel()
            await anyio.sleep_forever()
    assert one.task in ledger.closed


async def test_an_interrupt_closes_the_record_and_goes_on() -> None:
    ledger, one = FakeLedger(), call()
    with pytest.raises(KeyboardInterrupt):
        async with evidence.record(one, ports(ledger)):
            raise KeyboardInterrupt
    assert ledger.closed[one.task].reason is Reason.CANCELLED


async def test_a_record_that_cannot_be_closed_in_time_is_told_and_the_outcome_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hung(FakeLedger):
        async def close(self, outcome: Outcome) -> None:
            assert outcome.result is Result.OK
            await anyio.sleep_forever()

    monkeypatch.setattr(MODULE, "CLOSE_DEADLINE_S", 0.05)
    one = call()
    with anyio.fail_after(5):
        async with evidence.record(one, ports(Hung())) as log:
            log.conclude(Outcome(task=one.task, result=Result.OK, exit_code=0))
    assert (log.outcome.result, log.outcome.exit_code) == (Result.OK, 0)
    assert "could not be closed" in log.outcome.detail
    assert any(one.task in line and "could not be closed" in line for line in caplog.messages)


async def test_a_ledger_that_goes_before_the_tool_runs_ends_the_call_as_refused() -> None:
    ledger, one, clock = FakeLedger(ends_at=State.BOUND), call(), FakeClock()
    async with evidence.record(one, ports(ledger, clock)) as log:
        await carry(log, one, clock)
        pytest.fail("the tool ran without a ledger")
    assert (log.outcome.result, log.outcome.reason) == (Result.REFUSED, Reason.LEDGER_UNAVAILABLE)


async def test_a_ledger_that_goes_while_the_tool_runs_costs_neither_removal_nor_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, one, clock = FakeLedger(ends_at=State.EXITED), call(), FakeClock()
    async with evidence.record(one, ports(ledger, clock)) as log:
        await carry(log, one, clock)
        log.conclude(Outcome(task=one.task, result=Result.OK, exit_code=0))
    assert log.outcome.result is Result.OK
    assert "could not be closed" in log.outcome.detail
    assert any("exited" in line for line in caplog.messages)


async def test_a_box_may_be_removed_from_wherever_its_call_had_come_to() -> None:
    ledger, one = FakeLedger(), call()
    async with evidence.record(one, ports(ledger)) as log:
        await admit(log, one)
        await log.event(Event.MAKE, engine="oci", container="c")
        await log.event(Event.REMOVE)
        await log.event(Event.REMOVE)
        log.conclude(Outcome(task=one.task, result=Result.OK))
    assert ledger.states[one.task] is State.CLOSED


@pytest.mark.parametrize("event", [Event.MAKE, Event.START, Event.SETTLE, Event.CLOSE])
async def test_a_step_that_cannot_follow_is_a_fault_of_ours(event: Event) -> None:
    async with evidence.record(call(), ports()) as log:
        with pytest.raises(LifecycleError):
            await log.event(event)
        raise Refused(DENY)
    with pytest.raises(LifecycleError):
        await log.event(Event.REMOVE)


async def test_a_call_is_concluded_once_and_has_no_outcome_before() -> None:
    one = call()
    done = Outcome(task=one.task, result=Result.OK)
    async with evidence.record(one, ports()) as log:
        log.conclude(done)
        with pytest.raises(LifecycleError):
            log.conclude(replace(done, result=Result.FAILED))
        with pytest.raises(LifecycleError):
            _ = log.outcome
    assert log.outcome.result is Result.OK


async def test_every_error_with_a_code_ends_with_that_code() -> None:
    for kind in (BoxFailed, ExchangeFailed, LedgerGone, FumehoodError):
        for reason in Reason:
            outcome, _ = await left_by(kind(reason))
            assert outcome.reason is reason
