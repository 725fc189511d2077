"""The exit status of `fumehood run`, and the commands that there are."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fumehood.cli.run import exit_status
from fumehood.model import Outcome, Result
from fumehood.reasons import Reason

COMMANDS = [
    ["run"], ["gateway"], ["profile", "list"], ["profile", "lint"], ["profile", "show"], ["profile", "explain"], ["profile", "schema"],
    ["image", "build"], ["image", "lock"], ["image", "list"], ["image", "import"], ["image", "rm"], ["tasks"], ["task"], ["diff"],
    ["commit"], ["discard"], ["doctor"], ["gateway", "check"], ["gateway", "token"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"result": Result.OK, "exit_code": 0}, 0),
        ({"result": Result.FAILED, "reason": Reason.EXIT_NONZERO, "exit_code": 42}, 42),
        ({"result": Result.FAILED, "reason": Reason.SIGNALLED, "signal": 15}, 143),
        ({"result": Result.FAILED, "reason": Reason.NOT_EXECUTABLE}, 127),
        ({"result": Result.FAILED, "reason": Reason.COMMIT_REFUSED, "exit_code": 0}, 125),
        ({"result": Result.FAILED, "reason": Reason.BOX_DIED}, 125),
        ({"result": Result.REFUSED, "reason": Reason.TOOL_NOT_ALLOWED}, 125),
        ({"result": Result.KILLED, "reason": Reason.WALL}, 124),
        ({"result": Result.KILLED, "reason": Reason.IDLE, "signal": 9}, 124),
        ({"result": Result.KILLED, "reason": Reason.MEMORY, "signal": 9}, 137),
        ({"result": Result.KILLED, "reason": Reason.CANCELLED}, 137),
    ],
)
def test_an_outcome_has_its_documented_exit_status(told: dict[str, Any], status: int) -> None:
    assert exit_status(Outcome(task="t", **told)) == status


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_speaks_json(command: list[str]) -> None:
    program = "from fumehood.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    # The gateway's stdout is the protocol, and nothing else.
    assert ("--json" in done.stdout) is (command != ["gateway"])
