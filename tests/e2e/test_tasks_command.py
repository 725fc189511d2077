"""`fumehood tasks` and `fumehood task ID` against the installed command and a ledger of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
UNKNOWN = "0" * 26


@pytest.fixture
def state() -> Path:
    """A state folder that the ledger's user can reach: below pytest's own 0700 folders it could not."""
    folder = Path("/tmp") / f"fumehood-test-tasks-{os.getpid()}"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    return folder


def fumehood(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from fumehood.cli.main import main; main()", *arguments],
        env={**os.environ, "FUMEHOOD_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_new_state_folder_has_no_tasks_and_an_unknown_one_is_refused_in_one_line(state: Path) -> None:
    try:
        listed = fumehood(state, "tasks", "--json")
        assert (listed.returncode, json.loads(listed.stdout), listed.stderr) == (0, [], "")
        assert fumehood(state, "tasks", "--since", "1h", "--result", "lost").returncode == 0
        missing = fumehood(state, "task", UNKNOWN)
        assert missing.returncode == 125
        assert missing.stderr.startswith("fumehood: task_unknown: ")
        assert missing.stderr.count("\n") == 1
        wrong = fumehood(state, "tasks", "--since", "yesterday")
        assert (wrong.returncode, wrong.stderr.count("\n")) == (125, 1)
    finally:
        subprocess.run(["rm", "-rf", str(state)], check=True)
