"""The daemonless engine: crun or runc on a bundle of ours, in the foreground, one runtime process a box.

Cgroups are ours (`cgroups.py`), made before and removed after, because crun 1.8 refuses hybrid hosts: it runs with its cgroup
manager off, and the broker hides the v2 tree of a hybrid host from it. The root is the image's, seen through an
idmapped read-only clone, so that the image's files belong to root of *this* box's range. In the
foreground the runtime is our child: it ends with the box, and cleans up behind a broker that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood.broker import processes
from fumehood.broker.cgroups import RUNTIMES_OWN, Group, Trees, remove_runtimes_own
from fumehood.broker.control import receive_report
from fumehood.broker.engines import HOSTNAME, INIT_FOLDER, MASKED, READ_ONLY, UP_DEADLINE_S, Launched, Spec
from fumehood.broker.ids import BOX_UID
from fumehood.broker.rootfs import RootStore
from fumehood.broker.teardown import Teardown
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason
from fumehood.state import PREFIX

_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_REMOVE_DEADLINE_S = 5.0


def runtime_spec(spec: Spec, root: Path, init_folder: Path, cgroup: str | None) -> dict[str, Any]:
    """The OCI runtime specification of a box: pure, compared whole in tests. Source: OCI runtime-spec 1.0.2."""
    ids = [{"containerID": 0, "hostID": spec.id_base, "size": spec.id_count}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": BOX_UID, "gid": BOX_UID},
            "args": [f"{INIT_FOLDER}/init"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {name: [] for name in _CAPABILITY_SETS},
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": HOSTNAME,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            # The runtime insists on filling a /dev; the broker puts its own over it before anything runs.
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": INIT_FOLDER, "type": "bind", "source": str(init_folder), "options": ["bind", "ro", "nosuid", "nodev"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network", "user", "cgroup")],
            "uidMappings": ids,
            "gidMappings": ids,
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            **({} if cgroup is None else {"cgroupsPath": cgroup}),
        },
    }


@dataclass(slots=True)
class _Live:
    """What one box holds of the host until it is removed."""

    root: Path
    group: Group | None = None
    runtime_pid: int | None = None
    pidfd: int | None = None


class OciEngine:
    """Boxes by crun or runc. `program` is the runtime's path, `init_folder` holds the static init alone."""

    name = "oci"
    user_namespace = True

    def __init__(
        self, *, program: Path, risks: Mapping[str, str], trees: Trees, roots: RootStore, init_folder: Path, folder: Path
    ) -> None:
        self.runtime = program.name
        self._program = program
        self._risks = risks
        self._trees = trees
        self._roots = roots
        self._init_folder = init_folder
        self._folder = folder
        self._live: dict[str, _Live] = {}

    def risks(self) -> Mapping[str, str]:
        """Known holes of the installed runtime."""
        return self._risks

    def launch(self, spec: Spec) -> Launched:
        """Make the box and wait until its init is up."""
        live = _Live(root=spec.folder / "root")
        self._live[spec.task] = live
        cgroup = f"{PREFIX}/{spec.runtime_id}/{spec.task}"
        self._roots.attach(spec.frame.image, spec.id_base, live.root)
        live.group = self._make_group(spec, cgroup)
        document = runtime_spec(spec, live.root, self._init_folder, self._runtimes_group(cgroup))
        (spec.folder / "config.json").write_text(json.dumps(document))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            live.runtime_pid = self._spawn(spec, theirs.fileno())
            theirs.close()
            self._trees.warm()  # while the runtime works
            pid = self._await_up(spec, ours)
            runtime_pid = live.runtime_pid
            live.pidfd = processes.verified_pidfd(pid, lambda pid: _is_init_of(pid, runtime_pid), "the box's init")
            self._hold(spec, live.group, pid, runtime_pid)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return Launched(
            control=ours, pid=pid, pidfd=live.pidfd, container=spec.container, group=live.group,
            facts={"runtime": self.runtime, "runtime_pid": runtime_pid, "userns": "own"},
        )  # fmt: skip

    def remove(self, spec: Spec, teardown: Teardown) -> None:
        """End what is left of the box and take away its mounts, cgroup and folder."""
        live = self._live.get(spec.task)
        if live is None:
            return
        if (pidfd := live.pidfd) is not None:
            live.pidfd = None
            teardown.take("init", lambda: processes.end(pidfd, _REMOVE_DEADLINE_S))
        if (runtime_pid := live.runtime_pid) is not None:
            live.runtime_pid = None
            teardown.take("runtime", lambda: _reap(runtime_pid, _REMOVE_DEADLINE_S))
        if (group := live.group) is not None:
            group.kill()
            own = f"{PREFIX}/{spec.runtime_id}/{spec.task}{RUNTIMES_OWN}"
            teardown.take("cgroup", lambda: group.remove() and remove_runtimes_own(self._trees, own))
        teardown.take("root", lambda: self._roots.detach(live.root))
        shutil.rmtree(self._folder / "state" / spec.container, ignore_errors=True)
        if teardown.is_clean:
            del self._live[spec.task]

    def _make_group(self, spec: Spec, cgroup: str) -> Group:
        frame = spec.frame
        return Group.make(self._trees, cgroup, cpu=frame.cpu, memory_bytes=frame.memory_bytes, pids=frame.pids)

    def _runtimes_group(self, cgroup: str) -> str | None:
        """The group that the runtime may make for itself."""
        return f"/{cgroup}{RUNTIMES_OWN}"

    def _hold(self, _spec: Spec, group: Group, init: int, _runtime: int) -> None:
        """Put init under the limits, from outside."""
        group.add(init)

    def _spawn(self, spec: Spec, control: int) -> int:
        manager = ["--cgroup-manager", "disabled"] if self.runtime == "crun" else []
        argv = [
            str(self._program), "--root", str(self._folder / "state"), *manager, "run", "--preserve-fds", "1",
            "--bundle", str(spec.folder), spec.container,
        ]  # fmt: skip
        return self._execute(spec, self._program, argv, [control])

    def _execute(self, spec: Spec, program: Path, argv: list[str], passed: Sequence[int]) -> int:
        """Start a program whose words go to the runtime's log, with `passed` as its descriptors from 3 on."""
        log = os.open(spec.folder / "runtime.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        # Never the host's /dev/null: crun gives its standard streams to the box's user, and the owner may chmod the node.
        empty, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)
        try:
            return os.posix_spawn(
                program, argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, empty, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(passed, 3)),
                ],
                setsigmask=(),
                setpgroup=0,  # a Ctrl-C at the operator's terminal is ours to handle, not the runtime's
            )  # fmt: skip
        finally:
            os.close(log)
            os.close(empty)

    def _await_up(self, spec: Spec, control: socket.socket) -> int:
        try:
            report, pid = receive_report(control, UP_DEADLINE_S)
        except BoxFailed as error:
            said = (spec.folder / "runtime.log").read_text(errors="replace").strip().splitlines()
            words = said[-1][:400] if said else error.detail
            raise BoxFailed(Reason.BOX_FAILED, f"{self.runtime}: {words}") from error
        if report.kind != "U":
            raise BoxFailed(Reason.BOX_FAILED, f"init said `{report.kind}` first")
        return pid


def _is_init_of(pid: int, runtime_pid: int) -> bool:
    """The process is PID 1 of its namespace and a child of the runtime we started."""
    status = processes.status_fields(pid)
    return status["NSpid"].split()[-1] == "1" and int(status["PPid"]) == runtime_pid


def _reap(pid: int, timeout_s: float) -> bool:
    """Reap the runtime, our child; kill it at the deadline."""
    with contextlib.suppress(ChildProcessError):
        pidfd = os.pidfd_open(pid)
        try:
            if not processes.wait_ended(pidfd, timeout_s):
                processes.kill(pidfd)
            os.waitpid(pid, 0)
        finally:
            os.close(pidfd)
    return True
