from __future__ import annotations

import pytest

from fumehood.denial import Asked
from fumehood.gateway import protocol, results
from fumehood.model import Outcome, Result
from fumehood.reasons import Reason

ASKED = Asked(kind="tool", name="eat", server="s", profile="p")
KILLED = Outcome(task="t", result=Result.KILLED, reason=Reason.MEMORY)


def test_a_kill_is_told_in_the_result_and_once_more_for_programs() -> None:
    assert results.unsuccessful(results.denial(KILLED, ASKED), modern=False) == {
        "content": [{"type": "text", "text": f"fumehood: memory: {Reason.MEMORY.meaning}. {Reason.MEMORY.remedy}"}],
        "isError": True,
        "_meta": {
            "fumehood/task": "t",
            "fumehood/outcome": {
                "task": "t",
                "result": "killed",
                "reason": "memory",
                "rule": None,
                "asked": {"kind": "tool", "name": "eat", "server": "s", "profile": "p"},
                "detail": "",
                "remedy": Reason.MEMORY.remedy,
                "again": "changed",
            },
        },
    }


def test_words_of_a_box_cannot_drive_a_terminal() -> None:
    told = Outcome(
        task="t", result=Result.FAILED, reason=Reason.SERVER_DIED, detail="\x1b[2J\u202egone\r\n" + "x" * 5000
    )
    assert results.denial(told, ASKED).sentence().isprintable()
    assert len(results.denial(told, ASKED).sentence()) < 1200


def test_members_under_our_prefix_are_ours_alone() -> None:
    made = results.finished(
        {"content": [], "_meta": {"fumehood/outcome": 1, "a": 2}}, {"fumehood/task": "t"}, modern=False
    )
    assert made["_meta"] == {"a": 2, "fumehood/task": "t"}
    assert "_meta" not in results.finished({"content": [], "_meta": "odd"}, {}, modern=False)


def test_a_modern_result_is_complete_and_names_its_server() -> None:
    made = results.finished({"content": []}, {}, modern=True)
    assert made["resultType"] == "complete"
    assert made["_meta"][protocol.SERVER_INFO_KEY] == results.SERVER_INFO
    theirs = {"name": "upstream"}
    made = results.finished({"content": [], "_meta": {protocol.SERVER_INFO_KEY: theirs}}, {}, modern=True)
    assert made["_meta"][protocol.SERVER_INFO_KEY] == theirs


@pytest.mark.parametrize(
    ("result", "code"),
    [(Result.REFUSED, -32010), (Result.FAILED, -32011), (Result.KILLED, -32012), (Result.LOST, -32011)],
)
def test_an_outcome_without_a_result_is_an_error_of_our_own_range(result: Result, code: int) -> None:
    error = results.error_of(Outcome(task="t", result=result, reason=Reason.INTERNAL), ASKED)
    assert error.code == code
    assert error.data["task"] == "t"
