"""Fixtures of the tests that attack real boxes: the session's lab, and the one of an ordinary user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, lab_for
from userlab import UserLab, user_lab_for

E2E = Path(__file__).resolve().parents[1] / "e2e"
# The raw clients and the fake spine live with the end-to-end tests, which share them.
sys.path[:0] = [path for path in (str(E2E), str(E2E / "servers")) if path not in sys.path]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with lab_for("python") as made:
        yield made


@pytest.fixture(scope="module")
def user_lab() -> Iterator[UserLab]:
    with user_lab_for("python", "a") as made:
        yield made
