"""Has whoever must agree agreed? What policy allows outright passes; what it asks a person about waits here (rule 23).

The question is a row of the ledger's, bound to everything that decides what the call would do. A request is held open for a while, and
is then told that it waits: the same request asked again finds the same row, so that neither a client that gave up nor a gateway that
was started anew loses it. Until a person said yes nothing of the call exists: no box, no lease, no claim of its key, and none of its
limits runs.

A yes is used up by one call, in one transaction, after everything was judged again: the tool's pin by the ledger, the call by the
policy of that moment, and by the digest whether it is still what was agreed to. What the requester's own client answers is never an
approval; where the rule says that the requester may confirm, it is recorded as that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import anyio

from fumehood.approvals import prompt
from fumehood.faults import FumehoodError, Refused
from fumehood.lifecycle import Event
from fumehood.memory import Memory
from fumehood.model import Decision, Deny, Grant, Keeping, Verdict, WorkspaceMode
from fumehood.ports import Ports, Requester, Waiting
from fumehood.reasons import Reason
from fumehood.screening.judging import for_people
from fumehood.screening.known import KnownSecrets

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
WITHDRAW_S = 2.0
_PINNABLE = frozenset({WorkspaceMode.RO, WorkspaceMode.RW, WorkspaceMode.DIRECT})
_log = logging.getLogger("fumehood")

Judge = Callable[[], Awaitable[Verdict | Deny]]


class Log(Protocol):
    """The part of a record's log that waiting writes to."""

    async def event(self, event: Event, **facts: Any) -> None:
        """Note one step."""
        ...


async def settle(verdict: Verdict, judge: Judge, requester: Requester | None, log: Log, ports: Ports) -> Grant | Deny:
    """A grant for what policy allows, or a person; `judge` is asked again after the person was. Raises LedgerGone."""
    until_s = ports.clock.monotonic_s() + ports.approvals.wait_s
    try:
        while verdict.decision is Decision.ASK:
            question = _Question(verdict, ports.known)
            if (deny := question.unanswerable(ports.approvals.approvers)) is not None:
                return deny
            waiting = await _answered(question, requester, log, ports, until_s)
            if waiting.state == "spent":
                continue  # an equal request was faster: this one is another call
            if waiting.state != "approved":
                return _refusal(verdict, waiting, ports)
            # Whatever changed while a person thought counts as it is now.
            now = await _unpinned(verdict, ports) or await judge()
            if isinstance(now, Deny):
                return now
            verdict = now
            if verdict.decision is Decision.ASK and _Question(verdict, ports.known).binding == waiting.binding:
                call = verdict.verified.call
                spent = await ports.ledger.approval_spend(waiting.id, waiting.binding, call.task)
                if spent is not None:
                    return Grant(verdict=verdict, approval=spent)
    except Refused as error:
        return error.deny
    if verdict.decision is not Decision.ALLOW:
        return Deny(reason=Reason.APPROVAL_UNAVAILABLE, rule=verdict.rule)
    return Grant(verdict=verdict)


def _in_used_box(verdict: Verdict) -> Deny | None:
    """Why nobody is asked about a call in a session: what earlier calls made of its box no question shows (rule 10)."""
    call = verdict.verified.call
    if call.session is None or call.profile.session.approvals:
        return None
    detail = f"it needs an approval, and the profile {call.profile.name} has none in a session, whose box earlier calls have used"
    remedy = "Use `scope: call`, or say `session: {approvals: true}` in the profile."
    return Deny(reason=Reason.APPROVAL_UNAVAILABLE, rule="session.approvals", detail=detail, remedy=remedy)


class _Question:
    """What is put to people about a call, and the digest that their answer is bound to. Raises Refused: it cannot be told."""

    def __init__(self, verdict: Verdict, known: KnownSecrets) -> None:
        self.verdict = verdict
        call = verdict.verified.call
        if call.server is not None and call.tool is not None and call.request_digest is None:
            # Not all that goes to a server is among the arguments: answers to what it did not ask are not.
            detail = "the request has no canonical form, so that no approval could be bound to it"
            raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="approval.binding", detail=detail))
        self.arguments = prompt.arguments_text(for_people(call.arguments, known))
        self.fields = self._fields()
        bound = {name: value for name, value in self.fields.items() if name not in ("arguments", "why", "may")}
        need = verdict.need
        names = None if need.approvers is None else sorted(need.approvers)
        self.binding = prompt.digest_of({**bound, "need": [names, need.count, need.requester]})

    def _fields(self) -> dict[str, Any]:
        from fumehood.profile.explain import sentences

        verified = self.verdict.verified
        call, image = verified.call, verified.image
        cut = prompt.cut
        return {
            "kind": call.kind.value,
            "tool": None if call.tool is None else cut(call.tool),
            "server": None if call.server is None else cut(call.server),
            "front_door": call.front_door,
            "session": call.session,
            "sender": cut(call.sender.name),
            "tenant": cut(call.sender.tenant),
            "uid": call.sender.uid,
            "request": call.request_digest,
            **prompt.shown_arguments(self.arguments),
            # What is shown has no secrets, and two calls that differ in nothing else are two.
            "given": prompt.digest_of({"arguments": prompt.arguments_text(call.arguments)}),
            "profile": call.profile.name,
            "profile_digest": call.profile.digest,
            "engine": call.profile.engine,
            "image": None if image is None else image.digest,
            "pin": call.pin,
            "policy": self.verdict.policy,
            "rule": cut(self.verdict.rule),
            "workspace": self._workspace(),
            "why": prompt.fitting(
                [cut(sentence) for sentence in self.verdict.why], f"fumehood policy explain --task {call.task}",
                prompt.REASONS_BYTES,
            ),
            "may": prompt.fitting(sentences(call.profile), f"fumehood profile explain {call.profile.name}"),
        }

    def _workspace(self) -> dict[str, Any] | None:
        call = self.verdict.verified.call
        mode = call.profile.filesystem.workspace
        if mode not in _PINNABLE or call.workspace_fd is None:
            return None
        try:
            found = os.fstat(call.workspace_fd)
        except OSError as error:
            detail = f"the workspace: {error.strerror}"
            raise Refused(Deny(reason=Reason.WORKSPACE_UNREADABLE, rule="approval.binding", detail=detail)) from error
        return {
            "path": prompt.cut(call.workspace_path or "?"), "mode": mode.value, "device": found.st_dev, "inode": found.st_ino,
            "contents": prompt.NOT_PINNED,
        }  # fmt: skip

    def unanswerable(self, approvers: frozenset[str]) -> Deny | None:
        """Why nobody could ever agree to it, if so."""
        if (deny := _in_used_box(self.verdict)) is not None:
            return deny
        need = self.verdict.need
        if need.requester:
            return None
        fit = approvers if need.approvers is None else approvers & need.approvers
        if len(fit) >= need.count:
            return None
        detail = f"it needs {prompt.needed(need)}, and of those there are {len(fit)}"
        return Deny(reason=Reason.APPROVAL_UNAVAILABLE, rule=self.verdict.rule, detail=detail)

    def told(self, waiting: Waiting) -> dict[str, Any]:
        """As `prompt.lines` takes it."""
        need = self.verdict.need
        names = None if need.approvers is None else sorted(need.approvers)
        return {
            "id": waiting.id, "binding": waiting.binding, "until": waiting.until_s, "question": self.fields,
            "need": {"approvers": names, "count": need.count, "requester": need.requester}, "votes": [],
        }  # fmt: skip


async def _answered(
    question: _Question, requester: Requester | None, log: Log, ports: Ports, until_s: float
) -> Waiting:
    """How it stands with the question when it was decided, or when nobody waits any longer. Raises Refused or LedgerGone."""
    call = question.verdict.verified.call
    need = question.verdict.need
    until_epoch_s = ports.clock.wall_s() + ports.approvals.expire_s
    waiting = await ports.ledger.approval_ask(call.task, question.binding, need, question.fields, until_epoch_s)
    try:
        told = question.told(waiting)
        needs = prompt.needed(need)
        await log.event(Event.ASK, approval=waiting.id, binding=waiting.binding, until=waiting.until_s, needs=needs)
        if waiting.is_new:
            await _keep_arguments(question, call.task, ports)
            ports.approvals.tell(told, call.task)
        return await _decided(waiting, told, call.task, requester, ports, until_s)
    except Refused:
        # Its arguments cannot be kept for who would have to see them.
        await _withdraw(waiting, call.task, ports)
        raise
    except anyio.get_cancelled_exc_class():
        if requester is not None and requester.withdraws:
            await _withdraw(waiting, call.task, ports)
        raise


async def _decided(
    waiting: Waiting, told: Mapping[str, Any], task: str, requester: Requester | None, ports: Ports, until_s: float
) -> Waiting:
    failed: list[FumehoodError] = []

    async def tell(requester: Requester) -> None:
        try:
            said = await requester.pending(told)
        except Exception as error:  # noqa: BLE001 - a client that cannot be told waits like one that was not
            _log.warning("task %s: its client could not be told of the approval %s: %r", task, waiting.id, error)
            return
        with suppress(FumehoodError):  # decided meanwhile, or its own answer is not enough: then it changes nothing
            if said is True:
                await ports.ledger.approval_confirm(waiting.id, task)
            elif said is False:
                await ports.ledger.approval_withdraw(waiting.id, task)

    async with anyio.create_task_group() as tasks:
        if requester is not None and waiting.state == "open":
            tasks.start_soon(tell, requester)
        try:
            # Others' processes decide, which ring no bell.
            pause_s = FIRST_PAUSE_S
            while waiting.state == "open" and ports.clock.wall_s() < waiting.until_s:
                left_s = until_s - ports.clock.monotonic_s()
                if left_s <= 0:
                    break
                await anyio.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                waiting = await ports.ledger.approval_state(waiting.id)
        except FumehoodError as error:
            failed.append(error)
        tasks.cancel_scope.cancel()
    if failed:
        raise failed[0]
    return waiting


async def _keep_arguments(question: _Question, task: str, ports: Ports) -> None:
    """Keep what does not fit the question where an approver can see it. Raises Refused: nobody agrees to what cannot be seen."""
    if len(question.arguments) <= prompt.ARGUMENTS_BYTES:
        return
    with Memory(question.arguments.encode()) as memory:
        memory.seal()
        await ports.ledger.keep(task, Keeping.ARGUMENTS, memory.fd, 0, memory.size)


async def _withdraw(waiting: Waiting, task: str, ports: Ports) -> None:
    with anyio.move_on_after(WITHDRAW_S, shield=True), suppress(FumehoodError):  # decided meanwhile, or out of date
        await ports.ledger.approval_withdraw(waiting.id, task)


async def _unpinned(verdict: Verdict, ports: Ports) -> Deny | None:
    """Why the tool may not be called any more, if an operator or its server changed that while the call waited."""
    call = verdict.verified.call
    if call.pin is None or call.pin_of is None or call.tool is None:
        return None
    accepted = await ports.ledger.pins_of(call.pin_of, call.profile.name)
    if accepted.get(call.tool) == call.pin:
        return None
    return Deny(reason=Reason.TOOL_CHANGED, rule="approval.pin", detail="its definition is not the accepted one any more")


def _refusal(verdict: Verdict, waiting: Waiting, ports: Ports) -> Deny:
    name, until = waiting.id, prompt.when(waiting.until_s)
    match waiting.state:
        case "denied":
            no = next(vote for vote in waiting.votes if not vote.approves)
            said = f": {no.reason}" if no.reason else ""
            return Deny(reason=Reason.APPROVAL_DENIED, rule=verdict.rule, detail=f"{no.approver} denied {name}{said}")
        case "withdrawn":
            return Deny(reason=Reason.APPROVAL_WITHDRAWN, rule=verdict.rule, detail=f"{name} was withdrawn")
        case "open" if ports.clock.wall_s() < waiting.until_s:
            remedy = f"Send the same request again: it goes on waiting for {name}, until {until}."
            return Deny(
                reason=Reason.APPROVAL_PENDING, rule=verdict.rule, detail=f"it waits for the approval {name}", remedy=remedy
            )
        case _:
            return Deny(reason=Reason.APPROVAL_EXPIRED, rule=verdict.rule, detail=f"{name} was to be approved until {until}")
