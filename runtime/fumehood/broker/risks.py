"""Known holes of installed container runtimes, judged by the distribution's revision, not by the upstream number (rule 17).

Debian fixes an old version in place, so `1.1.5` alone says nothing. A hole that nothing of ours closes must be named in
`accept_risk` before the runtime is used, and every record shows that it was.
Sources: GHSA-9493-h29p-rfm2 (CVE-2025-31133), GHSA-qw9x-cqr3-wc7r (CVE-2025-52565), GHSA-cgrx-mc8f-2prm (CVE-2025-52881),
Debian security tracker.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

_RUNC_2025 = {
    "cve-2025-31133": "a race on masked paths can write to /proc outside the box",
    "cve-2025-52565": "a race on /dev/console can bind host paths",
    "cve-2025-52881": "a runtime's writes to /proc can be redirected",
}
_RUNC_FIXED = ((1, 2, 8), (1, 3, 3), (1, 4, 0))
# Debian revisions that carry the fixes to an older upstream version, by the upstream version they patch.
_RUNC_FIXED_DEBIAN: Mapping[tuple[int, int, int], str] = {}


def runc_risks(version: str) -> dict[str, str]:
    """The holes of a runc whose version reads like `1.1.5+ds1-1+deb12u1`."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(.*)", version)
    if found is None:
        return {"runc-unknown": f"the version `{version}` says nothing"}
    upstream = (int(found[1]), int(found[2]), int(found[3]))
    if upstream in _RUNC_FIXED_DEBIAN and _RUNC_FIXED_DEBIAN[upstream] in found[4]:
        return {}
    for fixed in _RUNC_FIXED:
        if upstream[:2] == fixed[:2]:
            return {} if upstream >= fixed else dict(_RUNC_2025)
    return {} if upstream >= max(_RUNC_FIXED) else dict(_RUNC_2025)


def of_runtime(program: Path) -> dict[str, str]:
    """The holes of the OCI runtime at `program`."""
    if program.name != "runc":
        return {}
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    commit = re.search(r"^commit: (\S+)", said, re.MULTILINE)
    number = re.search(r"^runc version (\S+)", said, re.MULTILINE)
    # Debian's build writes its full revision where upstream writes a commit.
    candidates = [found[1] for found in (commit, number) if found is not None and found[1][:1].isdigit()]
    return runc_risks(candidates[0] if candidates else "")


def of_docker(facts: Mapping[str, str]) -> dict[str, str]:
    """The holes of the runtime that a Docker engine drives, from its own facts (`runc`, `default_runtime`)."""
    if facts.get("default_runtime", "runc") != "runc":
        return {}
    return runc_risks(facts.get("runc", ""))
