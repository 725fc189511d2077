"""What all tests share: the folder of helpers on the path, and no silent skips of security tests in CI.

A test that needs root or an engine is skipped where there is none. On a laptop that is honest; in CI (`FUMEHOOD_CI=1`, root, every
engine) a skipped security test is an attack that nobody tried, so the run fails.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

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
