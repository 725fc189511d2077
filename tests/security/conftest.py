"""Fixtures of the tests that attack real boxes: the engines, the session's lab, and the check that nothing is left."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, docker_answers, lab_for
from userlab import UserLab, open_user_lab

E2E = Path(__file__).resolve().parents[1] / "e2e"
# The raw clients and the fake spine live with the end-to-end tests, which share them.
sys.path[:0] = [path for path in (str(E2E), str(E2E / "servers")) if path not in sys.path]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with lab_for("python") as made:
        yield made


@pytest.fixture(scope="session")
def has_docker() -> bool:
    return docker_answers()


@pytest.fixture(scope="module", params=["oci", "docker"])
def engine(request: pytest.FixtureRequest, lab: Lab, has_docker: bool) -> str:  # noqa: ARG001 - root comes first
    name: str = request.param
    if name == "docker" and not has_docker:
        pytest.skip("no Docker engine answers")
    if name == "oci" and not (shutil.which("crun") or shutil.which("runc")):
        pytest.skip("no OCI runtime is installed")
    return name


@pytest.fixture
def nothing_left(lab: Lab) -> Iterator[None]:
    """After the test nothing of any runtime of ours is left on the host."""
    yield
    assert lab.left() == []


@pytest.fixture(scope="module")
def user_lab(lab: Lab) -> Iterator[UserLab]:  # noqa: ARG001 - what it needs, ours needs too
    if not (shutil.which("newuidmap") and shutil.which("crun")):
        pytest.skip("needs newuidmap and crun")
    with open_user_lab("a") as made:
        yield made
