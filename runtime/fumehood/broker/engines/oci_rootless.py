"""The daemonless engine for a broker that is root in its own user namespace only.

It differs where root was needed. The image is bound as it lies, its files being nobody's in the box. And on cgroup v1 only
a process's own uid may move it, so crun starts inside the box's group (`init/join.c`), the box is born in it, and crun, whose uid is
ours, is taken out before the limits are set. Until then the group has room for crun as well.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood.broker import delegation, mounting
from fumehood.broker.cgroups import Group, Trees
from fumehood.broker.engines import Launched, Spec
from fumehood.broker.engines.oci import OciEngine
from fumehood.broker.rootfs import RootStore
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

# What crun may use beside the box while it starts.
_ROOM = {"cpu": 1.0, "memory_bytes": 64 * 2**20, "pids": 16}


@dataclass(frozen=True, slots=True)
class BoundRoots(RootStore):
    """Image roots bound read-only, without an id mapping."""

    def attach(self, digest: str, _id_base: int, place: Path) -> None:
        """Mount the image's root at `place`."""
        root = self.path(digest)
        place.mkdir(mode=0o755)
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            tree = mounting.clone_mount(directory)
        finally:
            os.close(directory)
        try:
            mounting.restrict_mount(tree, mounting.RDONLY | mounting.NOSUID | mounting.NODEV)
            mounting.attach(tree, str(place))
        finally:
            os.close(tree)


class RootlessOciEngine(OciEngine):
    """Boxes by crun. `join` is the static program of that name."""

    def __init__(
        self, *, program: Path, risks: Mapping[str, str], trees: Trees, roots: RootStore, init_folder: Path, folder: Path, join: Path
    ) -> None:
        super().__init__(program=program, risks=risks, trees=trees, roots=roots, init_folder=init_folder, folder=folder)
        self._join = join

    def launch(self, spec: Spec) -> Launched:
        """Make the box. Refuses by name where its limits would not hold."""
        if self._trees.missing():
            detail, remedy = delegation.explain(self._trees)
            raise BoxFailed(Reason.UNENFORCEABLE, detail, remedy=remedy)
        launched = super().launch(spec)
        frame = spec.frame
        launched.group.limit(cpu=frame.cpu, memory_bytes=frame.memory_bytes, pids=frame.pids)
        return launched

    def _make_group(self, spec: Spec, cgroup: str) -> Group:
        frame = spec.frame
        return Group.make(
            self._trees, cgroup, cpu=max(frame.cpu, _ROOM["cpu"]),
            memory_bytes=int(frame.memory_bytes + _ROOM["memory_bytes"]), pids=int(frame.pids + _ROOM["pids"]),
        )  # fmt: skip

    def _hold(self, group: Group, init: int, runtime: int) -> None:
        """Check that init was born under the limits, and take the runtime out, which is ours and no part of the box."""
        if not group.holds(init):
            raise BoxFailed(Reason.UNENFORCEABLE, "the box was not born in its cgroup")
        Group.of_process(self._trees, os.getpid()).add(runtime)

    def _execute(self, spec: Spec, program: Path, argv: Any, passed: Any) -> int:
        group = self._live[spec.task].group
        if group is None:
            raise BoxFailed(Reason.INTERNAL, "the box has no cgroup")
        files: list[int] = []
        try:
            for folder in group.folders.values():
                file = os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                files.append(file)
            # Above every number they are duplicated to, so that none overwrites another.
            lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (*passed, *files)]
            files += lifted
            words = [str(self._join), str(len(lifted) - len(passed)), str(program), *argv[1:]]
            return super()._execute(spec, self._join, words, lifted)
        finally:
            for fd in files:
                os.close(fd)
