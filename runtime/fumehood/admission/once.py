"""Did this very request run before? Then how that call ended is the answer, and nothing runs (rule 24).

A client that lost the answer to a request does not know whether it was carried out. It sends it again under a new id, with the
idempotency key that it had given it. The ledger gives a key to one call, durably and before anything of the call exists; another call
with it waits for that one's end and repeats its outcome. So nothing runs twice: not while the first is still running, not for two
gateways of one state folder, not after a crash, which leaves the honest answer `lost`.

Invariants: whoever asks is admitted first, by the policy of today (the claim takes a grant); an outcome is kept before its record is
closed, so a closed record without one has none any more, and `result_gone` says so; a repeat that is cancelled ends its own waiting
and nothing else. A request without a key is never a repeat, however equal: equal requests can be meant twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import anyio

from fumehood.faults import FumehoodError, Refused
from fumehood.memory import Memory
from fumehood.model import Deny, FileChange, Fresh, Grant, Keeping, Outcome, Repeat, Result
from fumehood.ports import Kept, Ports, Recall
from fumehood.reasons import Reason

KEEP_S = 10.0
ANSWER_S = 10.0
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
# What of an outcome is kept beside its value; what it cost is the first call's alone.
_TOLD = ("detail", "rule", "remedy", "files_total", "pending")


async def claim(grant: Grant, recall: Recall | None, ports: Ports) -> Fresh | Repeat | Deny:
    """The grant, if what it allows did not run before; else how that ended. Raises LedgerGone.

    Waits for an earlier call that still runs, at most as long as this one may (`limits.wall`).
    """
    call = grant.verdict.verified.call
    if call.idempotency_key is None:
        return Fresh(grant=grant)
    if recall is None or call.request_digest is None:
        return Deny(reason=Reason.BAD_REQUEST, rule="once.work", detail="what this call gives cannot be kept for a repeat")
    found: Fresh | Repeat | Deny = Deny(reason=Reason.LEDGER_UNAVAILABLE, rule="once.claim", detail="the ledger does not answer")
    with anyio.move_on_after(call.profile.limits.wall_s + ANSWER_S):
        try:
            found = await _claimed(grant, recall, ports)
        except Refused as error:
            found = error.deny
    return found


async def _claimed(grant: Grant, recall: Recall, ports: Ports) -> Fresh | Repeat | Deny:
    call = grant.verdict.verified.call
    ended: str | None = None
    while (earlier := await ports.ledger.claim(call.task, grant.verdict.policy)) is not None:
        kept = await _ended(earlier, call.profile.limits.wall_s, ports)
        if kept is None:
            return Deny(reason=Reason.IN_PROGRESS, rule="once.wait", detail=f"task {earlier} is still running")
        if earlier == ended:
            return _answer(earlier, kept, recall)
        # Asked again after its end: if its tool never started, the key is free, or by now another's.
        _drop(kept)
        ended = earlier
    return Fresh(grant=grant)


async def keep(outcome: Outcome, fresh: Fresh, recall: Recall | None, ports: Ports) -> Outcome:
    """The outcome, kept for requests that repeat this one, if it has a key; where that fails the outcome says so."""
    if fresh.grant.verdict.verified.call.idempotency_key is None or recall is None:
        return outcome
    problem = f"it was not on disk within {KEEP_S:g} s"
    # Shielded: the tool has run, and whoever is not told of it asks again.
    with anyio.move_on_after(KEEP_S, shield=True), Memory(_written(outcome, recall)) as memory:
        memory.seal()
        try:
            await ports.ledger.keep(outcome.task, Keeping.ONCE, memory.fd, 0, memory.size)
        except FumehoodError as error:
            problem = error.detail or error.reason.meaning
        else:
            return outcome
    told = f"it cannot be repeated: {problem}"
    return replace(outcome, detail=f"{outcome.detail}; {told}" if outcome.detail else told)


async def _ended(task: str, wait_s: float, ports: Ports) -> Kept | None:
    """How a call ended, and what is kept of it; None when it still runs after that time. Other processes' calls ring no bell."""
    until_s = ports.clock.monotonic_s() + wait_s
    pause_s = FIRST_PAUSE_S
    while True:
        kept = await ports.ledger.kept(task, Keeping.ONCE)
        if kept is None or not kept.is_open:
            return kept
        _drop(kept)
        if ports.clock.monotonic_s() >= until_s:
            return None
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _answer(task: str, kept: Kept, recall: Recall) -> Repeat | Deny:
    result = Result(kept.result or Result.LOST)
    if result is not Result.LOST and kept.fd is not None:
        try:
            return Repeat(earlier=_read(task, os.pread(kept.fd, kept.size_bytes, 0), recall))
        finally:
            os.close(kept.fd)
    _drop(kept)
    if result is Result.OK:
        detail = f"task {task} carried it out, and its result is no longer kept"
        return Deny(reason=Reason.RESULT_GONE, rule="once.result", detail=detail)
    # It has no value to lose: it was ended from outside, or with its runtime.
    return Repeat(earlier=Outcome(task=task, result=result, reason=None if kept.reason is None else Reason(kept.reason)))


def _written(outcome: Outcome, recall: Recall) -> bytes:
    told = {name: getattr(outcome, name) for name in _TOLD}
    files = [asdict(change) for change in outcome.files]
    value = recall.written(outcome.value)
    return json.dumps({**told, "result": outcome.result, "reason": outcome.reason, "files": files, "value": value}).encode()


def _read(task: str, data: bytes, recall: Recall) -> Outcome:
    """An outcome that we wrote."""
    told: Mapping[str, Any] = json.loads(data)
    return Outcome(
        task=task,
        result=Result(told["result"]),
        reason=None if told["reason"] is None else Reason(told["reason"]),
        files=tuple(FileChange(**change) for change in told["files"]),
        value=recall.read(told["value"]),
        **{name: told[name] for name in _TOLD},
    )


def _drop(kept: Kept) -> None:
    if kept.fd is not None:
        os.close(kept.fd)
