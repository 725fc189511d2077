"""What is told of a call that did not go through: one object, and whether asking again can help."""

from __future__ import annotations

from typing import Any

import pytest

from fumehood.denial import LATER, NEVER, Again, Asked, Denial, again, of_record
from fumehood.reasons import Reason


def denial(reason: Reason) -> Denial:
    return Denial(
        task="t", result="refused", reason=reason, rule="r", detail="d", remedy=reason.remedy, asked=Asked(kind="tool", name="push", server="git")
    )


def test_no_reason_both_never_and_later_helps() -> None:
    assert NEVER.isdisjoint(LATER)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Reason.TOOL_NOT_ALLOWED, Again.NEVER),
        (Reason.TOOL_CHANGED, Again.NEVER),
        (Reason.SENDER_DENIED, Again.NEVER),
        (Reason.STOPPED, Again.NEVER),
        (Reason.ARGUMENTS_INVALID, Again.CHANGED),
        (Reason.WALL, Again.CHANGED),
        (Reason.EXIT_NONZERO, Again.CHANGED),
        (Reason.BUSY, Again.LATER),
        (Reason.UPSTREAM_UNREACHABLE, Again.LATER),
    ],
)
def test_whether_asking_again_can_help(reason: Reason, expected: Again) -> None:
    assert again(reason) is expected
    assert denial(reason).fields()["again"] == expected.value


def test_a_model_is_told_that_another_way_round_will_not_help_where_a_person_decides() -> None:
    assert denial(Reason.TOOL_NOT_ALLOWED).sentence().endswith("Asking again, or for the same by another way, will not help: a person has to allow it.")
    assert "will not help" not in denial(Reason.ARGUMENTS_INVALID).sentence()
    assert "will not help" not in denial(Reason.BUSY).sentence()


def record(**fields: Any) -> dict[str, Any]:
    return {
        "task": "t", "result": "refused", "reason": "not_allowed", "rule": "r", "detail": None, "tool": None, "command": None,
        "profile": "p", **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "kind", "name"),
    [
        ({"tool": "git_push"}, "tool", "git_push"),
        ({"tool": "prompt:review"}, "prompt", "review"),
        ({"tool": "resource:file:///workspace/a"}, "resource", "file:///workspace/a"),
        ({"tool": "odd:name"}, "tool", "odd:name"),
        ({"command": "python3"}, "command", "python3"),
        ({}, "command", None),
    ],
)
def test_a_record_says_what_was_asked(fields: dict[str, Any], kind: str, name: str | None) -> None:
    found = of_record(record(**fields))
    assert found is not None
    assert (found.asked.kind, found.asked.name, found.remedy) == (kind, name, Reason.NOT_ALLOWED.remedy)


@pytest.mark.parametrize("fields", [{"result": "ok", "reason": None}, {"result": None, "reason": None}])
def test_of_what_went_through_there_is_nothing_to_tell(fields: dict[str, Any]) -> None:
    assert of_record(record(**fields)) is None
