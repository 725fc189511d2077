"""Rules that every front door keeps, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fumehood

ROOT = Path(fumehood.__path__[0])
FRONT_DOORS = [path for path in ROOT.rglob("*.py") if "open_workspace(" in path.read_text() and path.stem != "given"]


def calls(path: Path) -> list[str]:
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called]


def test_run_the_gateway_and_delegation_are_the_front_doors_with_a_workspace() -> None:
    found = sorted(path.relative_to(ROOT).as_posix() for path in FRONT_DOORS)
    assert found == ["cli/gateway.py", "cli/run.py", "delegate/runtime.py"]


@pytest.mark.parametrize("path", FRONT_DOORS, ids=lambda path: path.stem)
def test_the_broker_is_told_the_one_workspace_before_a_worker_exists_that_could_name_another(path: Path) -> None:
    assert "with_workspace" in calls(path)
