"""Calls that outlive the request that began them: between the rounds of a question, or as a task of the Tasks extension.

A call runs in the gateway's own task group and is known to its client by a handle: unguessable, bound to the sender, and
for a round also to exactly the request that it answers. Invariants: a handle of a round works once (the next round has
another); whoever is not its sender learns nothing, not even that it exists; a request that is cancelled while it
waits ends its call, and one that waits for nobody ends with its box's deadline; how many there are is bounded. How a task
ended is kept by the ledger and no longer held here: a later process of the same state finds it too.

Sources: MCP 2026-07-28, "Multi round-trip requests"; the extension io.modelcontextprotocol/tasks (SEP-2663).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc

from fumehood.gateway import strict_json
from fumehood.gateway.exchange import Questions
from fumehood.gateway.kept import KeptResults, iso
from fumehood.gateway.protocol import CALL_FAILED, INTERNAL_ERROR, INVALID_PARAMS, TOO_MANY_REQUESTS, GatewayError
from fumehood.model import Sender
from fumehood.reasons import Reason

MAX_ONGOING = 256
MAX_HELD_BYTES = 64 * 1024
HAND_OVER_S = 10.0
TASK_TTL_S = 3600.0
ROUND_TTL_S = 600.0
POLL_MS = 500

Carry = Callable[["Ongoing"], Awaitable[dict[str, Any]]]


@dataclass(slots=True, eq=False)
class Ongoing:
    """One call under way. `bound` is what the request was, so that a later round cannot be another request's.

    `goes_on` says whether a call whose request ended unanswered goes on without it. `waits` is what it waits for beside answers; one
    that `has_waited` may end while its client has a form open, whose answer finds out how. `withdrawn`: its client cancelled the task.
    """

    sender: Sender
    bound: str
    task: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    began_s: float = field(default_factory=time.time)
    changed_s: float = field(default_factory=time.time)
    questions: Questions | None = None
    result: dict[str, Any] | None = None
    error: GatewayError | None = None
    cancelled: bool = False
    is_task: bool = False
    waits: str = ""
    has_waited: bool = False
    withdrawn: bool = False
    goes_on: Callable[[], bool] = lambda: False
    on_change: Callable[[Ongoing], None] = lambda _: None
    _answers: dict[str, Any] = field(default_factory=dict)
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _answered: anyio.Event = field(default_factory=anyio.Event)

    @property
    def is_over(self) -> bool:
        """Whether there is a result or an error."""
        return self.result is not None or self.error is not None

    async def ask(self, questions: Questions) -> Mapping[str, Any]:
        """Put questions to the client, by whatever request of its comes next, and wait for the answers."""
        self._answers, self._answered = {}, anyio.Event()
        self._tell(questions=questions)
        try:
            await self._answered.wait()
        finally:
            self._tell(questions=None)
        return self._answers

    def wait_for(self, what: str) -> None:
        """Say what it waits for; nothing any more."""
        self.waits, self.has_waited = what, True
        self._tell(questions=self.questions)

    def answer(self, answers: Mapping[str, Any]) -> None:
        """Take answers, in one go or a few at a time; those to nothing that was asked are dropped."""
        if self.questions is None:
            return
        self._answers |= {name: value for name, value in answers.items() if name in self.questions}
        if self._answers.keys() == self.questions.keys():
            self._answered.set()

    async def turn(self) -> None:
        """Return when there is something to tell the client: questions, or the end."""
        while not self.is_over and (self.questions is None or self._answered.is_set()):
            await self._changed.wait()

    def end(self, *, result: dict[str, Any] | None = None, error: GatewayError | None = None) -> None:
        """Say how the call ended."""
        self.result, self.error = result, error
        self._tell(questions=None)

    def _tell(self, *, questions: Questions | None) -> None:
        self.questions = questions
        self.changed_s = time.time()
        event, self._changed = self._changed, anyio.Event()
        event.set()
        self.on_change(self)


class Calls:
    """The calls under way of one gateway."""

    def __init__(self, tasks: anyio.abc.TaskGroup, kept: KeptResults, changed: Callable[[Ongoing], None]) -> None:
        """Carry calls in `tasks`; how a task ended goes to `kept`, and `changed` hears when `tasks/get` says another thing."""
        self._tasks = tasks
        self._kept = kept
        self._changed = changed
        self._rounds: dict[str, Ongoing] = {}
        self._of_task: dict[str, Ongoing] = {}
        self._count = 0

    async def begin(self, call: Ongoing, carry: Carry, *, patience_s: float | None) -> dict[str, Any]:
        """Start a call and wait for its first turn, or, with `patience_s`, give out a task when that takes longer."""
        self._prune()
        if self._count >= MAX_ONGOING:
            raise GatewayError(TOO_MANY_REQUESTS, f"{MAX_ONGOING} calls are waiting for answers or to be fetched")
        self._count += 1
        self._tasks.start_soon(self._carry, call, carry)
        return await self._next(call, patience_s)

    async def go_on(self, sender: Sender, bound: str, handle: str, answers: Mapping[str, Any]) -> dict[str, Any]:
        """Give a parked call the answers, and wait for its next turn. Raises `GatewayError`."""
        call = self._rounds.get(handle)
        if call is None or call.sender != sender or call.bound != bound:
            raise GatewayError(INVALID_PARAMS, "Invalid params: this requestState is not of this request, or is used up")
        if call.questions is not None and not answers.keys() >= call.questions.keys():
            raise GatewayError(INVALID_PARAMS, "Invalid params: an answer is missing in inputResponses")
        del self._rounds[handle]
        if call.is_over:
            self._count -= 1
        call.answer(answers)
        return await self._next(call, None)

    def task(self, sender: Sender, task: Any) -> Ongoing | None:
        """The call that a task id of this sender's names, while it is under way here or could not be kept."""
        self._prune()
        call = self._of_task.get(task) if isinstance(task, str) else None
        return call if call is not None and call.sender == sender else None

    async def _next(self, call: Ongoing, patience_s: float | None) -> dict[str, Any]:
        with anyio.move_on_after(patience_s) as waiting:
            try:
                await call.turn()
            except anyio.get_cancelled_exc_class():
                if not call.goes_on() and not waiting.cancelled_caught and not waiting.cancel_called:
                    call.scope.cancel()  # nobody waits for it any more
                raise
        if waiting.cancelled_caught and not call.is_over:
            call.is_task, call.on_change = True, self._changed
            self._of_task[call.task] = call
            return {"resultType": "task", **described(call)}
        if call.error is not None:
            raise call.error
        if call.result is not None:
            return call.result
        handle = secrets.token_urlsafe(32)
        self._rounds[handle] = call
        return {"resultType": "input_required", "inputRequests": dict(call.questions or {}), "requestState": handle}

    async def _carry(self, call: Ongoing, carry: Carry) -> None:
        try:
            with call.scope:
                call.end(result=await carry(call))
        except GatewayError as error:
            call.end(error=error)
        except Exception as error:
            call.end(error=GatewayError(INTERNAL_ERROR, "Internal error"))
            raise error from None
        finally:
            if not call.is_over:
                call.cancelled = True
                call.end(error=GatewayError(INTERNAL_ERROR, "the call was cancelled"))
            # One that waited for a person may end while its client has a form open: then it comes back for how that was.
            if not call.has_waited or call.cancelled or call not in self._rounds.values():
                self._rounds = {handle: each for handle, each in self._rounds.items() if each is not call}
                if not call.is_task:
                    self._count -= 1
                elif not call.cancelled:
                    await self._hand_over(call)

    async def _hand_over(self, call: Ongoing) -> None:
        """Keep how a task ended where a later process finds it too, and hold it no more."""
        answer = ending(call)
        with anyio.move_on_after(HAND_OVER_S, shield=True):
            if await self._kept.keep_answer(call.task, answer):
                del self._of_task[call.task]
                self._count -= 1
                return
        if len(strict_json.dumps(answer)) > MAX_HELD_BYTES:
            reason = Reason.RESULT_NOT_KEPT
            call.end(error=GatewayError(CALL_FAILED, f"fumehood: {reason.value}: {reason.meaning}. {reason.remedy}"))

    def _prune(self) -> None:
        """Forget tasks whose time to be fetched is over."""
        now = time.time()
        for task, call in list(self._of_task.items()):
            if call.is_over and now - call.changed_s > TASK_TTL_S:
                del self._of_task[task]
                self._count -= 1
        for handle, call in list(self._rounds.items()):
            if call.is_over and now - call.changed_s > ROUND_TTL_S:
                del self._rounds[handle]
                self._count -= 1


def described(call: Ongoing) -> dict[str, Any]:
    """A task as the extension shows it."""
    shown: dict[str, Any] = {
        "taskId": call.task,
        "status": "working",
        "createdAt": iso(call.began_s),
        "lastUpdatedAt": iso(call.changed_s),
        "ttlMs": int(TASK_TTL_S * 1000),
        "pollIntervalMs": POLL_MS,
    }
    if call.cancelled:
        return {**shown, "status": "cancelled"}
    if call.is_over:
        return {**shown, "status": "completed" if call.error is None else "failed", **ending(call)}
    if call.questions is not None:
        return {**shown, "status": "input_required", "inputRequests": dict(call.questions)}
    return {**shown, "statusMessage": call.waits} if call.waits else shown


def ending(call: Ongoing) -> dict[str, Any]:
    """How a call that is over ended: its `result`, or its `error`."""
    if call.error is None:
        return {"result": call.result}
    error = {"code": call.error.code, "message": call.error.message}
    return {"error": error | ({} if call.error.data is None else {"data": call.error.data})}
