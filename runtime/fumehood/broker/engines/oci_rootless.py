"""The daemonless engine for a broker that is root in its own user namespace only.

It differs where root was needed. The image is bound as it lies, its files being nobody's in the box. And on cgroup v1 only
a process's own uid may move it, so the runtime starts inside the box's group (`init/join.c`), the box is born in it, and the runtime,
whose uid is ours, is taken out before the limits are set. Until then the group has room for the runtime as well.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fumehood.broker import mounting, own_cgroups
from fumehood.broker.cgroups import Group, Trees
from fumehood.broker.engines import Launched, Spec
from fumehood.broker.engines.oci import OciEngine
from fumehood.broker.rootfs import RootStore
from fumehood.faults import BoxFailed, Refused
from fumehood.model import Deny, Usage
from fumehood.reasons import Reason

# What the runtime may use beside the box while it starts.
_ROOM_CPU, _ROOM_BYTES, _ROOM_PIDS = 1.0, 64 * 2**20, 128


class RoomyGroup(Group):
    """A box's group in which its runtime has been: what the runtime cost is not told as the box's."""

    _before = Usage()

    def baseline(self) -> None:
        """Forget what making the box cost. The kernel forgets no peak of processes, and on v2 none of memory."""
        super().baseline()
        self._before = super().usage()

    def usage(self) -> Usage:
        """The box's counters; a peak that the kernel did not forget only when it is higher than the runtime's."""
        counted = super().usage()
        processes, memory = counted.pids_peak, counted.memory_peak_bytes
        forgotten = "memory" in self.folders
        return replace(
            counted,
            pids_peak=processes if (processes or 0) > (self._before.pids_peak or 0) else None,
            memory_peak_bytes=memory if forgotten or (memory or 0) > (self._before.memory_peak_bytes or 0) else None,
        )


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
    """Boxes by crun or runc. `join` is the static program of that name."""

    def __init__(
        self, *, program: Path, risks: Mapping[str, str], trees: Trees, roots: RootStore, init_folder: Path, folder: Path, join: Path
    ) -> None:
        super().__init__(program=program, risks=risks, trees=trees, roots=roots, init_folder=init_folder, folder=folder)
        self._join = join

    def launch(self, spec: Spec) -> Launched:
        """Make the box. Refuses by name where its limits would not hold."""
        if self._trees.missing():
            detail, remedy = own_cgroups.explain(self._trees)
            raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule="rootless.limits", detail=detail, remedy=remedy))
        return super().launch(spec)

    def _make_group(self, spec: Spec, cgroup: str) -> Group:
        frame = spec.frame
        try:
            return RoomyGroup.make(
                self._trees, cgroup, cpu=frame.cpu + _ROOM_CPU, memory_bytes=frame.memory_bytes + _ROOM_BYTES,
                pids=frame.pids + _ROOM_PIDS,
            )  # fmt: skip
        except OSError as error:  # EBUSY: on v2 a group with processes of others in it passes no controller on
            detail = f"the cgroup that we are in passes no limits on: {error.strerror}"
            remedy = f"Start it in a scope of its own: `{own_cgroups.SCOPE}`."
            raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule="rootless.limits", detail=detail, remedy=remedy)) from error

    def _runtimes_group(self, _cgroup: str) -> None:
        """None: runc then leaves a box where it was born, since nothing lets it make a group of its own."""

    def _hold(self, spec: Spec, group: Group, init: int, runtime: int) -> None:
        """Check that init was born under the limits, and take the runtime out, which is ours and no part of the box."""
        if not group.holds(init):
            raise BoxFailed(Reason.UNENFORCEABLE, "the box was not born in its cgroup")
        Group.of_process(self._trees, os.getpid()).add(runtime)
        try:
            group.limit(cpu=spec.frame.cpu, memory_bytes=spec.frame.memory_bytes, pids=spec.frame.pids)
        except OSError as error:  # EBUSY: what the runtime left charged is more than the box may have
            raise BoxFailed(Reason.UNENFORCEABLE, f"cgroup limits: {error.strerror} ({error.filename})") from error

    def _execute(self, spec: Spec, program: Path, argv: list[str], passed: Sequence[int]) -> int:
        """Start the program through `join`, which takes the group's files after what is passed."""
        group = self._live[spec.task].group
        if group is None:
            raise BoxFailed(Reason.INTERNAL, "the box has no cgroup")
        files: list[int] = []
        try:
            files += [os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in group.folders.values()]
            # Above every number they are duplicated to, so that none overwrites another.
            lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (*passed, *files)]
            files += lifted
            words = [str(self._join), str(len(lifted) - len(passed)), str(program), *argv[1:]]
            return super()._execute(spec, self._join, words, lifted)
        finally:
            for fd in files:
                os.close(fd)
