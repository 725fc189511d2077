"""Runs a command, or a conversation with a server, in the call's own box, and says how it ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio

from fumehood.execution.parking import Parkable
from fumehood.execution.pipes import FRAME_SLACK_BYTES, Heard, Kept, Lines, Pipes, collect, feed
from fumehood.execution.screening import Told
from fumehood.execution.visiting import BROKEN, converse_remotely, run_visit
from fumehood.execution.work import Call, Command, Exchange, Hosting, RemoteBox, RunningBox, Visit, VisitedBox, Work
from fumehood.faults import BoxFailed, ExchangeFailed
from fumehood.model import Outcome, Plan, Result
from fumehood.ports import Exited
from fumehood.reasons import Reason
from fumehood.screening.judging import Screen
from fumehood.screening.known import KnownSecrets

# The whole environment of a tool, beside what its profile adds.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the box's private one
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}


async def run(box: RunningBox | VisitedBox | RemoteBox, work: Work, plan: Plan, known: KnownSecrets) -> Outcome:
    """Run the work to its end and describe it, without the secrets that came out. Raises BoxFailed when the box goes wrong."""
    screen = Screen(plan.call, known)
    outcome = await _run(box, work, plan, screen)
    return screen.outcome(outcome, from_server=not isinstance(work, Command))


async def _run(box: RunningBox | VisitedBox | RemoteBox, work: Work, plan: Plan, screen: Screen) -> Outcome:
    if isinstance(work, Call):
        if not isinstance(box, RemoteBox):
            raise BoxFailed(Reason.BAD_REQUEST, "only a remote server is called without being started")
        return await converse_remotely(box, work, plan, screen)
    if isinstance(box, RemoteBox):
        raise BoxFailed(Reason.BAD_REQUEST, "nothing can be started at a remote server")
    if isinstance(work, Visit):
        if not isinstance(box, VisitedBox):
            raise BoxFailed(Reason.BAD_REQUEST, "a visit needs a session")
        return await run_visit(box, work, plan, screen)
    if isinstance(box, VisitedBox):
        raise BoxFailed(Reason.BAD_REQUEST, "a session takes only visits")
    return await _run_own(box, work, plan, screen)


async def _run_own(box: RunningBox, work: Command | Exchange | Hosting, plan: Plan, screen: Screen) -> Outcome:
    limits = plan.limits
    env = {**ENVIRONMENT, **dict(plan.call.profile.environment)}
    stdout, stderr = Kept(limits.output_bytes), Kept(limits.output_bytes)
    pipes = Pipes(stdin=not isinstance(work, Command) or work.stdin is not None)
    try:
        if isinstance(work, Command):
            for source, path in work.put:
                await box.put(source, path)
        try:
            await box.start(work.argv, env, (pipes.box_in, pipes.box_out, pipes.box_err))
        finally:
            pipes.close_box_ends()
        if isinstance(work, Command):
            ended = await _run_command(box, work, pipes, stdout, stderr, limits.idle_s, screen)
            outcome = _classify(plan.call.task, ended)
            for path, target in work.get if outcome.result is Result.OK else ():
                await box.get(path, target, work.get_bytes)
        else:
            outcome = await _run_exchange(box, work, pipes, stderr, plan, screen)
    finally:
        pipes.close()
    return replace(
        outcome,
        stdout=bytes(stdout.data),
        stderr=bytes(stderr.data),
        stdout_truncated=stdout.total > len(stdout.data),
        stderr_truncated=stderr.total > len(stderr.data),
        stdout_total_bytes=stdout.total,
        stderr_total_bytes=stderr.total,
    )


async def _run_command(
    box: RunningBox, work: Command, pipes: Pipes, stdout: Kept, stderr: Kept, idle_s: float | None, screen: Screen
) -> Exited:
    told = None if work.on_output is None else Told(work.on_output, screen)
    hear = None if told is None else told.hear
    async with anyio.create_task_group() as tasks:
        heard = Heard()
        if work.stdin is not None:
            tasks.start_soon(feed, work.stdin, pipes)
        if idle_s is not None:
            tasks.start_soon(_watch_idle, box, heard, idle_s)
        async with anyio.create_task_group() as readers:
            readers.start_soon(collect, box, pipes.our_out, "stdout", stdout, hear, heard)
            readers.start_soon(collect, box, pipes.our_err, "stderr", stderr, hear, heard)
            ended = await box.wait()
        tasks.cancel_scope.cancel()
    if told is not None:
        told.end()
    return ended


async def _run_exchange(
    box: RunningBox, work: Exchange | Hosting, pipes: Pipes, stderr: Kept, plan: Plan, screen: Screen
) -> Outcome:
    """Converse until the conversation is over, fails, or the box ends on its own; then end the box and describe."""
    heard = Heard()
    lines = Lines(pipes, plan.limits.result_bytes + FRAME_SLACK_BYTES, heard)
    streams = Parkable(lines, box.park, box.resume, heard, screen)
    said: list[Any] = []
    failure: list[ExchangeFailed] = []
    ended: list[Exited] = []

    async def converse() -> None:
        try:
            if isinstance(work, Hosting):
                await work.greet(streams)
                idle.cancel()  # from here on the residence has its own
                await work.residence.host(plan, box, lines)
                said.append(None)
            else:
                said.append(await work.converse(streams))
        except ExchangeFailed as error:
            failure.append(error)
        # Without this, a server that ignores the end of its input would run on into its limit. Why one died the kernel's counters say.
        died = any(error.reason is Reason.SERVER_DIED for error in failure)
        await box.kill(Reason.SERVER_DIED if died else Reason.CANCELLED)

    async def wait() -> None:
        ended.append(await box.wait())
        if isinstance(work, Hosting):
            work.residence.end()

    async def watch() -> None:
        if plan.limits.idle_s is not None:
            with idle:
                await _watch_idle(box, heard, plan.limits.idle_s)

    idle = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect, box, pipes.our_err, "stderr", stderr, None, heard)
        tasks.start_soon(wait)
        tasks.start_soon(watch)
        await converse()
        idle.cancel()
    outcome = _classify(plan.call.task, ended[0])
    if isinstance(work, Hosting) and said and outcome.reason not in {None, Reason.CANCELLED, Reason.SESSION_ENDED}:
        # It did not end because it was over.
        return replace(outcome, result=Result.FAILED) if outcome.reason in BROKEN else outcome
    if said:
        return replace(outcome, result=Result.OK, reason=None, detail="", value=said[0])
    return _broken_off(outcome, failure[0], bytes(stderr.data))


def _broken_off(outcome: Outcome, failure: ExchangeFailed, stderr: bytes) -> Outcome:
    """The outcome of a conversation that failed: why, unless the box was ended for a reason of its own."""
    if outcome.result is Result.KILLED and outcome.reason not in {Reason.CANCELLED, Reason.SERVER_DIED}:
        return outcome
    words = stderr.decode(errors="replace").strip().splitlines()
    detail = failure.detail + (f"; its stderr ends: {words[-1][:300]}" if words else "")
    return replace(outcome, result=Result.FAILED, reason=failure.reason, detail=detail, value=failure.value)


async def _watch_idle(box: RunningBox, heard: Heard, idle_s: float) -> None:
    while True:
        with anyio.move_on_after(idle_s) as waiting:
            await heard.event.wait()
        if waiting.cancelled_caught and not heard.parked:
            await box.kill(Reason.IDLE)
            return


def _classify(task: str, ended: Exited) -> Outcome:
    outcome = Outcome(task=task, result=Result.OK, exit_code=ended.exit_code, signal=ended.signal, usage=ended.usage)
    if ended.killed is not None:
        return replace(outcome, result=Result.KILLED, reason=ended.killed, detail=ended.detail)
    if ended.failed is not None:
        return replace(outcome, result=Result.FAILED, reason=ended.failed, detail=ended.detail)
    if ended.signal is not None:
        return replace(outcome, result=Result.FAILED, reason=Reason.SIGNALLED, detail=f"signal {ended.signal}")
    if ended.exit_code != 0:
        return replace(outcome, result=Result.FAILED, reason=Reason.EXIT_NONZERO, detail=f"exit status {ended.exit_code}")
    return outcome
