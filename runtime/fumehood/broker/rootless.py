"""The broker's host without root: what it sets up, and what it refuses by name because only root could enforce it.

The boxes are those of root, made by the same code, inside a user namespace of the broker's own (`own_namespace.py`). What differs:

* a box has 1,024 ids of the user's subordinate range, disjoint from every other live box of this user;
* limits live in the cgroups that were handed over (`own_cgroups.py`), and the runtime starts under them (`init/join.c`);
* images are root's, bound read-only: their files belong to nobody in the box, and stay readable;
* /dev holds the host's devices, bound; the filter is proven (`proving.py`), since the kernel shows its bytes to root alone;
* workspaces of host directories need id-mapped mounts, and Docker's socket is root: both refused.

Everything of a box is mounted below a place that any id may pass through, in our own mount namespace: the
user's state folder is the user's alone. What is mounted ends with the process, however it ends.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fumehood import landlock
from fumehood.broker import cgroups, living, mounting, own_cgroups, processes, proving, risks
from fumehood.broker.devices import DEVICES, bind_devices, clone_bound_devices
from fumehood.broker.engines import Engine
from fumehood.broker.engines.oci_rootless import BoundRoots, RootlessOciEngine
from fumehood.broker.host import (
    Host,
    find_runtime,
    inotify_share,
    install_program,
    refuse_gvisor,
    remove_folder,
    show_unified,
)
from fumehood.broker.idmaps import IdMaps
from fumehood.broker.ids import IdPool
from fumehood.broker.own_namespace import enter_own_namespaces
from fumehood.broker.readback import Filters
from fumehood.faults import BoxFailed, Refused
from fumehood.model import Binding, Deny, Frame, WorkspaceMode
from fumehood.reasons import Reason
from fumehood.safe_files import inside
from fumehood.settings import Settings
from fumehood.state import PREFIX

IDS = 1024  # a box's: its uid is 1000, and a range of 65,536 holds 63 boxes
_PLACES = ("/mnt", "/media", "/srv", "/dev/shm", "/run")  # noqa: S108 - covered by a file system of ours
_SERVED = frozenset({WorkspaceMode.NONE, WorkspaceMode.SCRATCH})


@dataclass(slots=True)
class RootlessHost(Host):
    """A user's host. `join` is the program that starts a runtime in its cgroups."""

    join: Path = Path()

    def clone_devices(self) -> int:
        """A detached /dev of bound devices."""
        return clone_bound_devices(self.devices)

    def check_binding(self, binding: Binding) -> None:
        """Refuse host directories in a box: nobody but root may map the ids of their file systems."""
        asked = [f"workspace: {binding.workspace.value}"] if binding.workspace not in _SERVED else []
        asked += ["mounts"] if binding.mounts else []
        if asked:
            raise Refused(
                Deny(
                    reason=Reason.UNENFORCEABLE, rule="rootless.files",
                    detail=f"{' and '.join(asked)}: host directories need id-mapped mounts, which need root",
                    remedy="Use `workspace: scratch` with --put and --get, or run fumehood as root.",
                )
            )  # fmt: skip

    def filters_of(self, tool: int, control: socket.socket, program: bytes) -> Filters:
        """The filters on the held tool, as init and the tool itself show them."""
        return proving.prove(tool, control, program)

    def limits_remedy(self) -> str:
        """How cgroups are handed over."""
        return ". ".join(own_cgroups.explain(self.trees)) if self.trees.missing() else ""

    def more_findings(self) -> list[dict[str, Any]]:
        """That nothing is separated here, and what is refused."""
        uid = self.settings.caller_uid
        abi = landlock.version()
        kept = f"landlock (ABI {abi}) keeps" if abi else "no landlock here: nothing keeps"
        return [
            {"what": "processes", "ok": True, "found": f"without root: broker, worker and ledger all run as uid {uid};"
             f" {kept} the worker from the user's files"},
            {"what": "refused without root", "ok": True, "found": "workspace: rw, ro, direct; mounts; engine: docker;"
             " image build, lock, import, rm"},
        ]  # fmt: skip

    def _check_docker(self, frame: Frame) -> None:
        del frame
        _refuse_docker()

    def _make_docker(self) -> Engine:
        _refuse_docker()

    def _make_oci(self, runtime: str | None) -> Engine:
        if runtime == "runsc":
            refuse_gvisor()
        program = find_runtime(runtime, dict(self.settings.runtimes))
        return RootlessOciEngine(
            program=program, risks=risks.of_runtime(program), trees=self.trees,
            roots=BoundRoots(self.settings.images, 0, self.idmaps),
            init_folder=self.init.parent, folder=self.folder / "private", join=self.join,
        )  # fmt: skip


def _refuse_docker() -> NoReturn:
    raise Refused(
        Deny(
            reason=Reason.UNENFORCEABLE, rule="rootless.engine",
            detail="whoever reaches the Docker engine's socket is root on this host", remedy="Use engine: oci.",
        )
    )  # fmt: skip


def open_host(settings: Settings) -> Host:
    """Set up what every box of a user needs. Call it in a process of one thread. Raises FumehoodError or OSError."""
    trees = own_cgroups.find()
    enter_own_namespaces(settings.subuids, settings.subgids)
    own_cgroups.make_room(trees, _is_ours)
    folder = _mount_private(settings)
    private = folder / "private"
    for name in ("private", "bin"):
        (folder / name).mkdir(mode=0o711)
    trees = _hide_unified(trees, folder)
    programs = {name: install_program(folder / "bin", name) for name in ("init", "enter", "join")}
    claims, marks = (_shared(settings, name) for name in ("ids", "runtimes"))
    mark = living.mark(marks, settings.runtime_id, settings.state.root)
    return RootlessHost(
        settings=settings,
        folder=folder,
        trees=trees,
        ids=IdPool(settings.state.ids, settings.ids_start, settings.ids_count, claims=claims, marks=marks, size=IDS),
        mark=mark,
        devices=bind_devices(private / "dev"),
        init=programs["init"][0],
        helper=programs["enter"][0],
        init_digest=programs["init"][1],
        inotify_share=inotify_share(settings),
        idmaps=IdMaps(),
        bound_devices=tuple(DEVICES),
        join=programs["join"][0],
    )


def close_host(host: Host) -> None:
    """Remove what the runtime leaves on disk; the mounts end with the process, and the lock goes last."""
    cgroups.remove_parent(host.trees, host.settings.runtime_id)
    os.close(host.devices)
    if host.ids.of_runtime(host.settings.runtime_id):
        return
    if remove_folder(host.settings.state.run / host.settings.runtime_id):
        (host.ids.marks / host.settings.runtime_id).unlink(missing_ok=True)


def _is_ours(pid: int) -> bool:
    """This process, the one that started it and became the worker, or another child of that one."""
    worker = os.getppid()
    try:
        return pid in {os.getpid(), worker} or int(processes.status_fields(pid)["PPid"]) == worker
    except OSError:
        return False  # it has ended


def _mount_private(settings: Settings) -> Path:
    """A file system of ours over a folder that nothing of ours lies in, so that nothing we need is hidden."""
    needed = [str(settings.state.root), str(settings.images), __file__, sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    for place in _PLACES:
        if Path(place).is_dir() and not any(inside(os.path.realpath(path), place) for path in needed):
            tmpfs = mounting.make_filesystem("tmpfs", [("mode", "711"), ("size", "64m")], 0)
            mounting.attach(tmpfs, place)
            os.close(tmpfs)
            return Path(place)
    raise BoxFailed(Reason.UNENFORCEABLE, f"none of {', '.join(_PLACES)} can be used as a mount point")


def _hide_unified(trees: cgroups.Trees, folder: Path) -> cgroups.Trees:
    """On a hybrid host the v2 tree moves to a place of ours, because crun 1.8 refuses to see it; what we cannot unmount we cover."""
    v1, v2 = cgroups.parse_trees(Path("/proc/self/mountinfo").read_text())
    if v2 is None or not v1:
        return trees
    place = None if trees.v2 is None else show_unified(trees.v2, folder)
    cover = mounting.make_filesystem("tmpfs", [("mode", "555"), ("size", "4k")], mounting.RDONLY)
    mounting.attach(cover, str(v2))
    os.close(cover)
    return cgroups.Trees(trees.v1, place, trees.v2_controllers)


def _shared(settings: Settings, name: str) -> Path:
    """Where this user's runtimes claim id ranges and are marked, the same for all whatever their environment says (rule 14)."""
    home = Path(pwd.getpwuid(settings.caller_uid).pw_dir)
    folder = home / ".local/state" / f"{PREFIX}-{name}" / settings.boot_id
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BoxFailed(
            Reason.UNENFORCEABLE, f"{folder}: {error.strerror}; the id ranges of boxes are shared out there",
            remedy="Give the user a home directory that is theirs.",
        ) from error  # fmt: skip
    return folder
