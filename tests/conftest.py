"""What all tests share: fixtures, and no silent skips of security tests in CI.

A module or folder whose tests make real boxes has a fixture `lab` of its own, from `lab.lab_for`: `engine` and `nothing_left` are
about that one.

A test that needs root or an engine is skipped where there is none. On a laptop that is honest; in CI (`FUMEHOOD_CI=1`, root, every
engine) a skipped security test is an attack that nobody tried, so the run fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from lab import Lab, docker_answers, needs_oci

# No test is timed: a busy machine fails none.
hypothesis.settings.register_profile("fumehood", deadline=None)
hypothesis.settings.load_profile("fumehood")
_skipped: list[str] = []


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and "tests/security/" in report.nodeid:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and os.environ.get("FUMEHOOD_CI") == "1" and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("FUMEHOOD_CI") == "1":
        terminalreporter.section("security tests skipped, which fails in CI", red=True)
        for name in _skipped:
            terminalreporter.line(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def has_docker() -> bool:
    return docker_answers()


@pytest.fixture(scope="module", params=["oci", "docker"])
def engine(request: pytest.FixtureRequest, lab: Lab, has_docker: bool) -> str:  # noqa: ARG001 - root comes first
    """Each engine in turn, or a skip where it is not there."""
    name: str = request.param
    if name == "docker" and not has_docker:
        pytest.skip("no Docker engine answers")
    if name == "oci":
        needs_oci()
    return name


@pytest.fixture
def nothing_left(lab: Lab) -> Iterator[None]:
    """After the test nothing of any runtime of the lab's is left on the host."""
    yield
    assert lab.left() == []
