"""Stopping every process of a box where it stands, and letting it go on.

Which file does it depends on the host: a group of ours has `cgroup.freeze` in the v2 tree, where there is one; an engine's group
is frozen in v1's freezer tree, where there is one, because its v2 directory may be shared with the engine itself. A task
that v1 has frozen does not even die before it is thawed; one that v2 has frozen does.
Sources: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst (`cgroup.freeze`, `cgroup.events`).
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fumehood.broker.cgroups import Group
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_DEADLINE_S = 2.0


def freeze(group: Group) -> None:
    """Return when every process of the group has stopped. Raises BoxFailed when that is not to be had."""
    try:
        folder = group.freezer
        if folder.v2:
            _write(folder.path / "cgroup.freeze", "1")
            _await(folder.path / "cgroup.events", "frozen 1")
        else:
            _write(folder.path / "freezer.state", "FROZEN")
            _await(folder.path / "freezer.state", "FROZEN")
    except OSError as error:
        raise BoxFailed(Reason.BOX_FAILED, f"the box could not be frozen: {error.strerror}") from error


def thaw(group: Group) -> None:
    """Let the group go on; nothing happens to one that runs, or that is gone."""
    with contextlib.suppress(BoxFailed, OSError):
        folder = group.freezer
        name, value = ("cgroup.freeze", "0") if folder.v2 else ("freezer.state", "THAWED")
        _write(folder.path / name, value)


def _await(path: Path, line: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while line not in path.read_text().splitlines():
        if time.monotonic() > deadline:
            raise BoxFailed(Reason.BOX_FAILED, f"the box was not frozen within {_DEADLINE_S:g} s")
        time.sleep(0.0005)  # neither file can be waited for on every kernel


def _write(path: Path, value: str) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write(value)
