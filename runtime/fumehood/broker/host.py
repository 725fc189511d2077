"""What the broker knows of this host and sets up once: engines, cgroup trees, the helper programs, a private mount namespace.

The mount namespace is the broker's own and a slave of the host's: everything mounted here dies with the process, however it
ends, and nothing of it is ever seen outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fumehood.broker import cgroups, living, mounting, processes, risks
from fumehood.broker.devices import clone_devices, make_devices
from fumehood.broker.engines import Engine
from fumehood.broker.engines.docker_facts import engine_facts
from fumehood.broker.engines.oci import OciEngine
from fumehood.broker.idmaps import IdMaps
from fumehood.broker.ids import CLAIMS, IdPool
from fumehood.broker.readback import Filters
from fumehood.broker.rootfs import RootStore
from fumehood.faults import BoxFailed, Refused
from fumehood.model import Binding, Deny, Frame, UserNamespace
from fumehood.reasons import Reason
from fumehood.settings import Settings

_CLONE_NEWNS = 0x20000
_EMPTYING_S = 2.0
_PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILT = Path(__file__).parent / "init" / "bin"
_MAX_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")


@dataclass(slots=True)
class Host:
    """Made by `open_host`; one a broker. `mark` is a descriptor, which stays open as long as we live."""

    settings: Settings
    folder: Path
    trees: cgroups.Trees
    ids: IdPool
    mark: int
    devices: int
    init: Path
    helper: Path
    init_digest: str
    inotify_share: int
    idmaps: IdMaps
    engines: dict[str, Engine] = field(default_factory=dict)
    docker_risks: Mapping[str, str] | None = None
    bound_devices: tuple[str, ...] = ()

    def clone_devices(self) -> int:
        """A detached /dev for one box."""
        return clone_devices(self.devices)

    def check_binding(self, binding: Binding) -> None:
        """Refuse what this host cannot bind. As root everything can be."""

    def filters_of(self, tool: int, _control: socket.socket, _program: bytes) -> Filters:
        """The filters on the held tool, as the kernel shows them."""
        return Filters(processes.seccomp_filters(tool))

    def limits_remedy(self) -> str:
        """What to do about controllers that no tree holds."""
        return f"No tree holds {', '.join(self.trees.missing())}: enable the controller, limits need it."

    def more_findings(self) -> list[dict[str, Any]]:
        """What `doctor` says of this kind of host beyond what it says of every host."""
        return []

    def box_folder(self, task: str) -> Path:
        """A new folder for one box, in the private mount namespace."""
        place = self.folder / "private" / task
        place.mkdir(mode=0o711)
        return place

    def accepted(self, frame: Frame) -> tuple[str, ...]:
        """The risks that the profile or the host's configuration names."""
        return (*frame.accept_risk, *self.settings.accept_risk)

    def engine_for(self, frame: Frame) -> Engine:
        """The engine that the profile names, or the first that can: docker when one answers, else oci."""
        if frame.engine == "docker" or (frame.engine is None and self._docker_serves(frame)):
            self._check_docker(frame)
            return self._engine("docker", None)
        engine = self._engine("oci", frame.runtime)
        self._check_risks(engine.name, engine.risks(), frame)
        return engine

    def _docker_serves(self, frame: Frame) -> bool:
        try:
            self._check_docker(frame)
        except (BoxFailed, Refused):
            return False
        return True

    def _check_docker(self, frame: Frame) -> None:
        """Refuse what the Docker engine cannot give this frame, before anything of it is imported."""
        if frame.user_namespace is UserNamespace.ALWAYS:
            raise Refused(
                Deny(
                    reason=Reason.UNENFORCEABLE, rule="profile.user_namespace",
                    detail="the docker engine gives no user namespace of its own", remedy="Use engine: oci.",
                )
            )  # fmt: skip
        self._check_risks("docker", self._docker_risks(), frame)
        if frame.docker_image is None:
            raise BoxFailed(
                Reason.IMAGE_MISSING, "the image is not in the Docker engine",
                remedy="Run `fumehood image build` again while the engine answers.",
            )  # fmt: skip

    def _check_risks(self, engine: str, risks: Mapping[str, str], frame: Frame) -> None:
        open_risks = {name: text for name, text in risks.items() if name not in self.accepted(frame)}
        if open_risks:
            listed = "; ".join(f"{name}: {text}" for name, text in open_risks.items())
            raise Refused(
                Deny(
                    reason=Reason.RISK_NOT_ACCEPTED, rule="security.17", detail=f"engine {engine}: {listed}",
                    remedy=f"Upgrade it, use engine: oci with crun, or name {', '.join(open_risks)} in `accept_risk`.",
                )
            )  # fmt: skip

    def _docker_risks(self) -> Mapping[str, str]:
        if self.docker_risks is None:
            self.docker_risks = risks.of_docker(engine_facts(self.settings.docker_host))
        return self.docker_risks

    def _engine(self, name: str, runtime: str | None) -> Engine:
        key = name if runtime is None else f"{name}:{runtime}"
        if (known := self.engines.get(key)) is not None:
            return known
        engine = self._make_docker() if name == "docker" else self._make_oci(runtime)
        self.engines[key] = engine
        return engine

    def _make_oci(self, runtime: str | None) -> Engine:
        if runtime == "runsc":
            refuse_gvisor()
        program = find_runtime(runtime, dict(self.settings.runtimes))
        roots = RootStore(self.settings.images, self.ids.image_base, self.idmaps)
        return OciEngine(
            program=program, risks=risks.of_runtime(program), trees=self.trees, roots=roots,
            init_folder=self.init.parent, folder=self.folder / "private",
        )  # fmt: skip

    def _make_docker(self) -> Engine:
        known = self._docker_risks()
        try:
            from fumehood.broker.engines import docker as engine
        except ModuleNotFoundError as error:
            raise BoxFailed(
                Reason.ENGINE_UNAVAILABLE, "the docker package is not installed", remedy="Install fumehood[docker]."
            ) from error
        folder = self.folder / "control"
        folder.mkdir(mode=0o700, exist_ok=True)
        return engine.DockerEngine(
            url=self.settings.docker_host, trees=self.trees, init=self.init, folder=folder, risks=known
        )


def refuse_gvisor() -> NoReturn:
    """Raise BoxFailed: of its boxes nothing can be read back."""
    raise BoxFailed(
        Reason.UNENFORCEABLE, "gVisor keeps a box's processes and mounts to itself, so nothing could be read back",
        remedy="Use crun or runc.",
    )  # fmt: skip


def find_runtime(name: str | None, configured: Mapping[str, str]) -> Path:
    """The program of an OCI runtime: the one named, else crun, else runc. Raises BoxFailed(ENGINE_UNAVAILABLE)."""
    wanted = (name,) if name is not None else ("crun", "runc")
    for candidate in wanted:
        found = configured.get(candidate) or shutil.which(candidate, path=_PROGRAMS)
        if found is not None and os.access(found, os.X_OK):
            return Path(found)
    raise BoxFailed(Reason.ENGINE_UNAVAILABLE, f"no OCI runtime is installed ({', '.join(wanted)})")


def open_host(settings: Settings) -> Host:
    """Set up what every box needs. The runtime's folder and lock are held since the fork. Raises FumehoodError or OSError."""
    folder = settings.state.run / settings.runtime_id
    CLAIMS.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = living.mark(living.MARKS, settings.runtime_id, settings.state.root)
    init, init_digest = install_program(settings.state.bin, "init")
    helper, _ = install_program(settings.state.bin, "enter")
    _own_mount_namespace()
    trees = _find_trees(folder)
    private = folder / "private"
    private.mkdir(mode=0o711)
    # No noexec or nodev: image roots and /dev templates are mounted below.
    tmpfs = mounting.make_filesystem("tmpfs", [("mode", "711"), ("size", "64m")], 0)
    mounting.attach(tmpfs, str(private))
    os.close(tmpfs)
    return Host(
        settings=settings,
        folder=folder,
        trees=trees,
        ids=IdPool(settings.state.ids, settings.ids_start, settings.ids_count),
        mark=mark,
        devices=make_devices(private / "dev"),
        init=init,
        helper=helper,
        init_digest=init_digest,
        inotify_share=inotify_share(settings),
        idmaps=IdMaps(),
    )


def inotify_share(settings: Settings) -> int:
    """How many inotify instances each box may have, so that all of them together leave half to everybody else."""
    return max(1, int(_MAX_INOTIFY.read_text()) // (2 * settings.boxes))


def close_host(host: Host) -> None:
    """Remove what the runtime itself leaves once its boxes are gone; the lock goes last, with the process."""
    cgroups.remove_parent(host.trees, host.settings.runtime_id)
    host.idmaps.close()
    os.close(host.devices)
    with contextlib.suppress(OSError):
        mounting.detach(str(host.folder / "private" / "dev"))
        mounting.detach(str(host.folder / "private"))
        mounting.detach(str(host.folder / "cgroup2"))
    if host.ids.of_runtime(host.settings.runtime_id):
        return  # a box that was not verifiably removed holds its range: the next sweep finds this folder
    if remove_folder(host.folder):
        (host.ids.marks / host.settings.runtime_id).unlink(missing_ok=True)


def remove_folder(folder: Path) -> bool:
    """Remove a runtime's folder, its lock last: what cannot be removed now is then found by the next sweep. True when it is gone.

    A container's runtime that ends meanwhile still writes its state there, so it is emptied again until that is over.
    """
    until_s = time.monotonic() + _EMPTYING_S
    with contextlib.suppress(OSError):
        while folder.exists() and time.monotonic() < until_s:
            if _is_emptied(folder):
                (folder / "lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # written to once more
                    folder.rmdir()
            else:
                time.sleep(0.01)
    return not folder.exists()


def _is_emptied(folder: Path) -> bool:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)
    return [path.name for path in folder.iterdir()] in ([], ["lock"])


def _own_mount_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise BoxFailed(Reason.UNENFORCEABLE, f"no mount namespace: {os.strerror(ctypes.get_errno())}")
    # Slave: a directory that is mounted later on the host is still found, ours never propagate out.
    mounting.mount(None, "/", None, mounting.MS_REC | mounting.MS_SLAVE)


def show_unified(v2: Path, folder: Path) -> Path:
    """The v2 tree at a place of ours, where no runtime looks for it."""
    place = folder / "cgroup2"
    place.mkdir(mode=0o700)
    source = os.open(v2, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    clone = mounting.clone_mount(source)
    os.close(source)
    mounting.attach(clone, str(place))
    os.close(clone)
    return place


def _find_trees(folder: Path) -> cgroups.Trees:
    """The cgroup trees; on a hybrid host the v2 tree is moved to a place of ours, because crun 1.8 refuses to see it."""
    trees = cgroups.find_trees()
    if trees.v2 is None or not trees.v1:
        return trees
    place = show_unified(trees.v2, folder)
    mounting.detach(str(trees.v2))
    return cgroups.Trees(trees.v1, place, trees.v2_controllers)


def install_program(folder: Path, name: str) -> tuple[Path, str]:
    """Copy a static program into the state folder under its digest: a checkout may lie where no box can read."""
    source = _BUILT / name
    try:
        content = source.read_bytes()
    except FileNotFoundError as error:
        raise BoxFailed(
            Reason.UNENFORCEABLE, f"the static program `{name}` was not built", remedy="Run ./scripts/setup."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    place = folder / digest[:32]
    target = place / name
    if not (target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == digest):
        place.mkdir(mode=0o755, exist_ok=True)
        temporary = place / f".{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.chmod(0o755)
        temporary.rename(target)
    return target, f"sha256:{digest}"


def engine_report(host: Host) -> Mapping[str, Any]:
    """What each engine says of itself, for `doctor`."""
    report: dict[str, Any] = {}
    for name, runtime in (("oci", "crun"), ("oci", "runc"), ("docker", None)):
        key = name if runtime is None else f"{name} ({runtime})"
        try:
            engine = host._engine(name, runtime)  # noqa: SLF001 - same module's class
            report[key] = {"works": True, "risks": dict(engine.risks()), "user_namespace": engine.user_namespace}
        except (BoxFailed, Refused) as error:
            report[key] = {"works": False, "why": error.detail, "remedy": error.remedy or error.reason.remedy}
    return report
