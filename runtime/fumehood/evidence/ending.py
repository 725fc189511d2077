"""What an exception that left a call's body says about the call. Pure.

Invariants: `refused` means that nothing ran, so what is refused after the tool was started is a failure; a reason that
says we ended the call makes it `killed` whoever raises it; whatever has no code is a fault of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fumehood.faults import FumehoodError, LedgerGone, Refused, Repeated
from fumehood.model import Outcome, Result
from fumehood.reasons import Reason

KILLS = frozenset(
    {
        Reason.WALL,
        Reason.IDLE,
        Reason.PARKED,
        Reason.MEMORY,
        Reason.OUTPUT,
        Reason.CANCELLED,
        Reason.OPERATOR,
        Reason.READBACK_MISMATCH,
    }
)
_LINE_CHARS = 300


def ending(task: str, error: BaseException, *, ran: bool) -> Outcome:
    """The outcome of a call whose body was left by `error`."""
    leaves = list(_leaves(error))
    if any(not isinstance(leaf, Exception) for leaf in leaves):
        return Outcome(task=task, result=Result.KILLED, reason=Reason.CANCELLED)
    for leaf in leaves:
        if not isinstance(leaf, FumehoodError):
            detail = f"{type(leaf).__name__}: {one_line(leaf)}{_where(leaf)}"
            return Outcome(task=task, result=Result.FAILED, reason=Reason.INTERNAL, detail=detail)
    told = next(leaf for leaf in leaves if isinstance(leaf, FumehoodError))
    if isinstance(told, Repeated):
        return Outcome(task=task, result=Result.REPEATED, reason=told.reason, detail=told.detail, repeats=told.earlier)
    if told.reason in KILLS:
        result = Result.KILLED
    elif isinstance(told, Refused | LedgerGone) and not ran:
        result = Result.REFUSED
    else:
        result = Result.FAILED
    outcome = Outcome(task=task, result=result, reason=told.reason, detail=told.detail, remedy=told.remedy)
    return replace(outcome, rule=told.deny.rule, retry_after_s=told.deny.retry_after_s) if isinstance(told, Refused) else outcome


def unrecorded(outcome: Outcome, problem: str) -> Outcome:
    """What is told of an outcome that its record could not be closed with, and so will not have.

    Attack: a caller acts on an answer, then somebody kills the ledger; the evidence would say that nobody knows what happened.
    """
    how = f"it ended as {outcome.result.value}" + (f" ({outcome.reason.value})" if outcome.reason is not None else "")
    told = f"{how}, and its record could not be closed: {problem}"
    detail = f"{outcome.detail}; {told}" if outcome.detail else told
    if outcome.result is Result.REFUSED:
        return replace(outcome, reason=Reason.LEDGER_UNAVAILABLE, detail=detail, remedy=None)
    return replace(outcome, result=Result.LOST, reason=Reason.RUNTIME_DIED, detail=detail, remedy=None)


def one_line(error: BaseException) -> str:
    """An error's own words on one line. They may quote a box's output: what is not printable could drive a terminal."""
    words = error.detail or error.reason.meaning if isinstance(error, FumehoodError) else str(error)
    line = "".join(letter if letter.isprintable() else " " for letter in words[:_LINE_CHARS])
    return " ".join(line.split())


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in what a task group raised, in order."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _where(error: BaseException) -> str:
    """Where it was raised, without reading the source files as `traceback` does."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})"
