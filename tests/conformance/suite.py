"""One run of the conformance suite against one address, and what two runs say about the gateway between them.

Invariants: a scenario passes only when something of it was checked and succeeded and nothing failed or warned; a scenario that
was not run has not passed; whatever passes directly has to pass through the gateway, and the other way round proves
nothing (the gateway refuses some things by itself, which a careless server would let through).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["pass", "fail", "warn", "skip", "absent"]
REVISIONS = ("2026-07-28", "2025-11-25")
_DEADLINE_S = 600.0
_FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")
_LINE = re.compile(r"^  - (?P<name>[\w-]+)$", re.MULTILINE)


class SuiteError(Exception):
    """The suite itself could not run."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one scenario found: how many checks ended how, and the first complaints."""

    verdict: Verdict
    passed: int = 0
    failed: int = 0
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario, both ways. `required` by the revision, or only run and reported."""

    scenario: str
    required: bool
    direct: Found
    gateway: Found | None

    @property
    def worse(self) -> bool:
        """Whether it passes directly and not through the gateway."""
        return self.direct.verdict == "pass" and self.gateway is not None and self.gateway.verdict != "pass"


ABSENT = Found("absent")


def judge(checks: Sequence[Mapping[str, Any]]) -> Found:
    """The verdict on one scenario's checks."""
    states = [str(check.get("status")) for check in checks]
    complaints = tuple(
        f"{check.get('id')}: {check.get('errorMessage')}" for check in checks if check.get("status") in ("FAILURE", "WARNING")
    )
    verdict: Verdict = "skip"
    if "FAILURE" in states:
        verdict = "fail"
    elif "WARNING" in states:
        verdict = "warn"
    elif "SUCCESS" in states:
        verdict = "pass"
    return Found(verdict, states.count("SUCCESS"), states.count("FAILURE"), complaints[:5])


def compare(
    required: Sequence[str], direct: Mapping[str, Found], gateway: Mapping[str, Found] | None
) -> list[Row]:
    """Both runs side by side: what is required first, in the suite's order, then what else was run."""
    others = [name for name in direct if name not in required]
    return [
        Row(name, name in required, direct.get(name, ABSENT), None if gateway is None else gateway.get(name, ABSENT))
        for name in (*required, *others)
    ]


@dataclass(frozen=True, slots=True)
class Suite:
    """The installed suite, in the folder of the peers."""

    peers: Path

    def required(self, revision: str) -> list[str]:
        """The server scenarios that a revision requires."""
        told = self._run("list", "--requirements", revision)
        _, found, rest = told.partition("Server scenarios")
        if not found:
            raise SuiteError(f"the suite lists no server scenarios: {told[:300]}")
        return [match["name"] for match in _LINE.finditer(rest.partition("Client scenarios")[0])]

    def run(self, url: str, revision: str, scenario: str | None = None) -> dict[str, Found]:
        """Run every scenario of a revision (or one) against a server, in the suite's order."""
        with tempfile.TemporaryDirectory(prefix="fumehood-conformance-") as folder:
            chosen = ["--scenario", scenario, "--spec-version", revision] if scenario else ["--requirements", revision]
            self._run("server", "--url", url, *chosen, "--output-dir", folder, failing=True)
            found = {}
            for path in sorted(Path(folder).iterdir(), key=lambda each: each.stat().st_mtime_ns):
                if (match := _FOLDER.fullmatch(path.name)) is None:
                    raise SuiteError(f"a result of the suite has the strange name {path.name}")
                found[match["scenario"]] = judge(json.loads((path / "checks.json").read_text()))
        if not found:
            raise SuiteError("the suite ran no scenario")
        return found

    def _run(self, *words: str, failing: bool = False) -> str:
        program = self.peers / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
        try:
            done = subprocess.run(
                [self.peers / "bin" / "node", program, *words], capture_output=True, text=True, timeout=_DEADLINE_S,
                env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SuiteError(f"the suite did not end within {_DEADLINE_S:.0f} s") from error
        if done.returncode != 0 and not failing:
            raise SuiteError(f"the suite ended with status {done.returncode}: {done.stderr[-500:]}")
        return done.stdout
