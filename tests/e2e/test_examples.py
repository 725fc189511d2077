"""What the examples and the README show works as it is written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUMEHOOD = Path(sys.executable).with_name("fumehood")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="boxes need root")


def readme_commands(start: str) -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


@needs_root
def test_the_library_example_runs_a_box() -> None:
    done = subprocess.run([sys.executable, ROOT / "examples/library.py"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: 42 in ")


@needs_root
@pytest.mark.parametrize("command", readme_commands("fumehood run"))
def test_the_readmes_run_commands_work(command: str, tmp_path: Path) -> None:
    argv = [str(tmp_path) if word == "/path/to/directory" else word for word in shlex.split(command)[1:]]
    done = subprocess.run([FUMEHOOD, *argv], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    if "greeting.txt" in command:
        assert (tmp_path / "greeting.txt").read_text() == "hello\n"
    else:
        assert done.stdout == "42\n"


def test_the_example_profile_is_valid_and_says_what_it_allows() -> None:
    done = subprocess.run(
        [FUMEHOOD, "profile", "explain", ROOT / "examples/git-committer.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "git_commit" in done.stdout


def test_the_readme_starts_with_exactly_two_commands() -> None:
    commands = readme_commands("./scripts/")
    assert [command.split()[0] for command in commands] == ["./scripts/demo", "./scripts/test"]
    assert all((ROOT / command.split()[0]).stat().st_mode & 0o111 for command in commands)
