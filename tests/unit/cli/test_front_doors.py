"""Rules that every front door keeps, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fumehood.cli

FRONT_DOORS = [path for path in Path(fumehood.cli.__path__[0]).glob("*.py") if "open_workspace(" in path.read_text()]


def calls(path: Path) -> list[str]:
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called]


def test_run_and_the_gateway_are_the_front_doors_with_a_workspace() -> None:
    assert sorted(path.stem for path in FRONT_DOORS) == ["gateway", "run"]


@pytest.mark.parametrize("path", FRONT_DOORS, ids=lambda path: path.stem)
def test_the_broker_is_told_the_one_workspace_before_a_worker_exists_that_could_name_another(path: Path) -> None:
    assert "with_workspace" in calls(path)
