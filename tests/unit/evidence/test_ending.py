"""What is told of an outcome that no record has."""

from __future__ import annotations

import pytest

from fumehood.evidence.ending import unrecorded
from fumehood.model import Outcome, Result
from fumehood.reasons import Reason

CASES = [
    (Result.OK, None, Result.LOST, Reason.RUNTIME_DIED, "it ended as ok, and"),
    (Result.FAILED, Reason.EXIT_NONZERO, Result.LOST, Reason.RUNTIME_DIED, "it ended as failed (exit_nonzero), and"),
    (Result.KILLED, Reason.WALL, Result.LOST, Reason.RUNTIME_DIED, "it ended as killed (wall), and"),
    (Result.REPEATED, Reason.REPEATED, Result.LOST, Reason.RUNTIME_DIED, "it ended as repeated (repeated), and"),
    (Result.REFUSED, Reason.TOOL_NOT_ALLOWED, Result.REFUSED, Reason.LEDGER_UNAVAILABLE, "it ended as refused (tool_not_allowed), and"),
]


@pytest.mark.parametrize(("result", "reason", "told", "why", "said"), CASES)
def test_what_has_no_record_is_told_as_lost_or_as_refused(
    result: Result, reason: Reason | None, told: Result, why: Reason, said: str
) -> None:
    outcome = unrecorded(Outcome(task="t", result=result, reason=reason, detail="before", exit_code=0), "gone")
    assert (outcome.result, outcome.reason, outcome.exit_code) == (told, why, 0)
    assert outcome.detail == f"before; {said} its record could not be closed: gone"
