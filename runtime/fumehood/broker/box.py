"""One box from its making to its verified removal, the same for every engine.

make -> bind -> start -> wait -> settle -> remove, each called once by the worker, each blocking, each in a thread of
the broker's. `kill` may come at any time from another thread, and `remove` from any state: it ends whatever is under way first.
The worker is not trusted: what it asks was checked by `requests.py`, and nothing here believes more than that.

The tool's first instruction runs only after `readback.judge` found nothing: until then it is held before its exec by init.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fumehood.broker import control, filters, mounting, processes, protocol, readback
from fumehood.broker.devices import private_tmpfs
from fumehood.broker.directory import check_directory
from fumehood.broker.engines import INIT_FOLDER, Engine, Launched, Spec
from fumehood.broker.enter import Ceiling, Move, Operation, Unmount, enter
from fumehood.broker.fencing import judge_fence, try_fence
from fumehood.broker.freezing import freeze, thaw
from fumehood.broker.host import Host
from fumehood.broker.network import Gate, close_packets, gather_gate, judge_gate, listening, open_gate
from fumehood.broker.passwd import name_uid
from fumehood.broker.settling import settle
from fumehood.broker.supplies import Supplied, make_supply
from fumehood.broker.teardown import Teardown
from fumehood.broker.tickets import take_ticket
from fumehood.broker.workspace import Workspace, make_mounts, make_workspace
from fumehood.faults import BoxFailed, Refused
from fumehood.model import Binding, Deny, Frame, Usage, WorkspaceMode
from fumehood.ports import Exited, Listen, Made, Settled
from fumehood.reasons import Reason

_READY_DEADLINE_S = 5.0
_QUIET_DEADLINE_S = 2.0
_KILL_GRACE_S = 0.15
_FROZEN_STEP_S = 0.2
_LIFETIME_S = 24 * 3600.0
_SHM_BYTES = 64 * 2**20
_NULL = os.makedev(1, 3)
_COUNTERS = (
    "cpu_user_s", "cpu_system_s", "oom_kills", "pids_limit_hits", "cpu_throttled_s", "io_read_bytes", "io_write_bytes",
)  # fmt: skip
# Per user namespace, set from outside before anything of the image runs (rule 14). Everything that nests is off.
_CEILINGS = (
    "max_user_namespaces", "max_pid_namespaces", "max_mnt_namespaces", "max_net_namespaces", "max_uts_namespaces",
    "max_ipc_namespaces", "max_cgroup_namespaces", "max_time_namespaces",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Frozen:
    """Since when a box stands still (monotonic seconds), and what ends it if nobody lets it go on."""

    since: float
    alarm: threading.Timer


class Box:
    """The container of one task."""

    def __init__(self, host: Host, task: str, frame: Frame) -> None:
        self._host = host
        self._settings = host.settings  # the roots of this moment: an order in mid-call is for boxes made after it
        self._frame = frame
        self.task = task
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._spec: Spec | None = None
        self._launched: Launched | None = None
        self._slot: int | None = None
        self._filter = b""
        self._binding: Binding | None = None
        self._workspace: Workspace | None = None
        self._mounts: list[Workspace] = []
        self._supplied: dict[str, str] = {}  # files over others of the image's: what the mount table must show, by place
        self._gate: Gate | None = None
        self._held = contextlib.ExitStack()
        self._given_up = threading.Event()
        self._killed: Reason | None = None
        self._gone = False
        self._started = self._deadline = 0.0
        self._pause = threading.Lock()
        self._frozen: _Frozen | None = None
        self._metered = Usage()
        self._exited: Exited | None = None

    def make(self) -> Made:
        """Bring up the container and close it in; init waits afterwards."""
        with self._lock:
            self._check_alive()
            frame = self._frame
            if (deny := filters.check_floor(frame.seccomp)) is not None:
                raise Refused(deny)
            self._filter = filters.cached_filter(frame.seccomp, self._host.settings.state.seccomp)
            self._engine = self._host.engine_for(frame)
            self._slot = self._host.ids.take(self._host.settings.runtime_id)
            spec = Spec(
                task=self.task, runtime_id=self._host.settings.runtime_id, frame=frame,
                folder=self._host.box_folder(self.task), id_base=self._host.ids.base(self._slot),
                id_count=self._host.ids.size,
            )  # fmt: skip
            self._spec = spec
            self._launched = launched = self._engine.launch(spec)
            self._close_in(spec, launched, user_namespace=self._engine.user_namespace)
            control.send(launched.control, protocol.frame_message(self._filter, frame.open_files))
            self._expect("R", _READY_DEADLINE_S)
            facts = {
                **launched.facts, "init": self._host.init_digest, "id_base": spec.id_base,
                "accepted_risks": sorted(set(self._engine.risks()) & set(self._host.accepted(frame))),
            }  # fmt: skip
            return Made(engine=self._engine.name, container=launched.container, facts=facts)

    def network(self, listens: Sequence[Listen]) -> tuple[dict[str, Any], list[int]]:
        """Make the gate's sockets inside the box's network, once, before anything of the call is in it."""
        with self._lock:
            self._check_alive()
            launched, _ = self._up()
            if self._gate is not None or self._binding is not None:
                raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="broker.network", detail="the box's network is settled"))
            self._gate, sockets = open_gate(launched.pidfd, listens)
            if self._gate.facts["refusals_seen"]:
                self._held.callback(close_packets, os.dup(sockets[-1]))
            return dict(self._gate.facts), sockets

    def bind(
        self, binding: Binding, directory: int | None, files: Sequence[Supplied] = (), contents: int | None = None
    ) -> dict[str, Any]:
        """Attach the call's workspace, read-only mounts and files. Takes the directory's ticket first, within `wall`."""
        with self._lock:
            self._check_alive()
            launched, spec = self._up()
            settings = self._settings
            self._host.check_binding(binding)
            self._binding = binding
            moves: list[Operation] = []
            facts: dict[str, Any] = {"workspace": binding.workspace.value}
            if directory is not None:
                ours = check_directory(directory, settings, binding.workspace)
                self._held.callback(os.close, ours)
                exclusive = binding.workspace is not WorkspaceMode.RO
                held = take_ticket(
                    settings.state.locks, ours, exclusive=exclusive, deadline_s=binding.wall_s, given_up=self._given_up
                )
                self._held.callback(held.release)
                facts["waited_s"] = round(held.waited_s, 4)
                directory = ours
            self._workspace = make_workspace(
                binding, directory, box_uid=spec.host_uid, folder=spec.folder / "workspace", settings=settings
            )
            if self._workspace is not None:
                moves.append(Move(self._workspace.mount_fd, "/workspace"))
                facts.update(self._workspace.facts)
            if binding.mounts:
                self._mounts = make_mounts(binding.mounts, box_uid=spec.host_uid, folder=spec.folder / "mounts", settings=settings)
                facts["mounts"] = {mount.name: mount.source for mount in binding.mounts}
                moves.append(Move(self._mount_points(binding), "/mnt"))
                moves.extend(Move(mount.mount_fd, mount.place) for mount in self._mounts)
            if files and contents is not None:
                supply = make_supply(files, contents, box_uid=spec.host_uid, folder=spec.folder / "supplies")
                self._held.callback(supply.close)
                places = supply.attach(self._host.helper, launched.pidfd)
                self._supplied.update(places)
                facts["supplied"] = {**supply.facts, "places": sorted(places)}
            if moves:
                enter(self._host.helper, launched.pidfd, moves, user_namespace=False)
            return facts

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], stdio: Sequence[int], *, check_fence: bool = False
    ) -> dict[str, Any]:
        """Start the tool held, read back what the kernel applied, and let it go. Returns the read-back.

        `check_fence`: the held tool tries what it must not reach first, for a box that waits for its call.
        """
        with self._lock:
            self._check_alive()
            launched, spec = self._up()
            message = protocol.start_message(argv, env)
            for fd in [fd for fd in stdio if _is_pipe(fd)]:
                # /dev/stdout is opened anew by many programs: the pipe must belong to the tool's uid.
                os.fchown(fd, spec.host_uid, spec.host_uid)
            control.send(launched.control, message, stdio)
            tool = self._expect("H", _READY_DEADLINE_S)
            pidfd = processes.verified_pidfd(tool, launched.group.holds, "the held tool")
            try:
                filters_on = self._host.filters_of(tool, launched.control, self._filter)
                found = readback.gather(tool, pidfd, launched.group, filters_on)
                wrong = readback.judge(self._expected(spec), found)
                if self._gate is not None:
                    found["gate"] = gather_gate(tool, pidfd)
                    wrong += judge_gate(self._gate, found["gate"])
                if check_fence:
                    found["fence"] = try_fence(tool, launched.control)
                    wrong += judge_fence(found["fence"])
                if wrong:
                    raise BoxFailed(Reason.READBACK_MISMATCH, "; ".join(wrong)[:1000])
                _set_oom_score(launched.pid, -999)
                _set_oom_score(tool, 500)
            finally:
                os.close(pidfd)
            launched.group.baseline()
            self._started = time.monotonic()
            self._deadline = self._started + (self._binding.wall_s if self._binding else 0)
            control.send(launched.control, protocol.GO)
            return found

    def wait(self) -> Exited:
        """Wait for the tool's end, at most until `wall`, and for the last process; read the numbers."""
        with self._lock:
            self._check_alive()
            launched, _ = self._up()
            status: protocol.Report | None = None
            failed: tuple[Reason, str] | None = None
            limit: float | None = None  # set once the tool has ended, or was told to
            while True:
                try:
                    report, _ = control.receive_report(launched.control, max(0.0, self._left_s(limit)))
                except BoxFailed as error:
                    if error.reason is not Reason.BOX_DIED and self._left_s(limit) > 0:
                        continue  # frozen or thawed meanwhile, so the limit has moved
                    if error.reason is Reason.BOX_DIED or (self._killed is not None and limit is not None):
                        failed = None if self._killed else (error.reason, error.detail)
                        break
                    self.kill(Reason.WALL)
                    limit = time.monotonic() + _QUIET_DEADLINE_S
                    continue
                if report.kind == "E":
                    failed = (Reason.NOT_EXECUTABLE, os.strerror(report.first))
                elif report.kind == "X":
                    status = report
                    limit = time.monotonic() + _QUIET_DEADLINE_S
                elif report.kind == "Q":
                    break
            self._exited = self._describe(launched, status, failed)
            return self._exited

    def kill(self, reason: Reason) -> None:
        """End every process of the box now. The first reason stays."""
        if self._killed is None:
            self._killed = reason
        launched = self._launched
        if launched is None:
            return
        with contextlib.suppress(BoxFailed, OSError):
            control.send(launched.control, protocol.KILL)
        with self._pause:
            thaw(launched.group)  # init is frozen with the rest, and v1 lets nothing frozen die

    def freeze(self, seconds: float) -> Usage:
        """Stop the tool and init where they stand, for at most `seconds`. `wall` stands still meanwhile.

        Returns what was used since the start or the last thaw. Raises BoxFailed.
        """
        launched, _ = self._up()
        with self._pause:
            now = time.monotonic()
            since = now if self._frozen is None else self._frozen.since
            if self._frozen is None:
                if self._killed is not None or self._exited is not None:
                    raise BoxFailed(Reason.BOX_DIED, "the box has ended")
                freeze(launched.group)
            # Not for ever, whatever a worker that was taken over asks for.
            left_s = max(0.0, min(seconds, self._started + _LIFETIME_S - now))
            if self._frozen is not None:
                self._frozen.alarm.cancel()
            self._frozen = _Frozen(since=since, alarm=threading.Timer(left_s, self.kill, (Reason.PARKED,)))
            self._frozen.alarm.daemon = True
            self._frozen.alarm.start()
            total = launched.group.usage()
            return _since(self._metered, total)

    def thaw(self) -> None:
        """Let it go on."""
        launched, _ = self._up()
        with self._pause:
            if self._frozen is None:
                return
            self._metered = launched.group.usage()
            self._deadline += time.monotonic() - self._frozen.since
            self._frozen.alarm.cancel()
            self._frozen = None
            thaw(launched.group)

    def survey(self) -> dict[str, Any]:
        """How many processes a box that stands still has beside init, and which sockets listen that are not the gate's."""
        launched, _ = self._up()
        with self._pause:
            if self._frozen is None:
                raise BoxFailed(Reason.BAD_REQUEST, "only a box that stands still can be surveyed")
            ours = {} if self._gate is None else self._gate.sockets
            return {
                "processes": len(launched.group.members()) - 1,
                "listeners": sorted(told for inode, told in listening(launched.pidfd).items() if inode not in ours),
            }

    def put(self, source: int, path: str) -> None:
        """Copy a file into the workspace, as a new file of the tool's own. Raises BoxFailed."""
        with self._lock:
            self._check_alive()
            _, spec = self._up()
            self._copy(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, lambda ours: (source, ours), spec.host_uid)

    def get(self, path: str, target: int, most_bytes: int | None) -> None:
        """Copy a regular file of the workspace out, of at most so many bytes, after the tool's end. Raises BoxFailed."""
        with self._lock:
            self._check_alive()
            if self._exited is None:
                raise BoxFailed(Reason.BAD_REQUEST, "files are read after the tool's end")
            # Not blocking: the tool may have left a fifo under that name.
            self._copy(path, os.O_RDONLY | os.O_NONBLOCK, lambda ours: (ours, target), None, most_bytes)

    def settle(self, action: str, protect: Sequence[str]) -> Settled:
        """Commit, hold or discard what the tool changed; only after its end."""
        with self._lock:
            self._check_alive()
            if self._exited is None or self._workspace is None:
                return Settled()
            settings = self._host.settings
            return settle(self._workspace, action, protect, task=self.task, settings=settings)

    def remove(self) -> dict[str, Any]:
        """Remove everything and check that it is gone. Idempotent; never raises for what is gone already.

        Where the facts are not `clean` (an engine that does not answer) it may be asked again, and goes on with what is left.
        """
        self._gone = True
        self._given_up.set()
        teardown = Teardown()
        self._end_quickly()
        with self._lock:
            if (spec := self._spec) is None:
                return {}
            if self._launched is not None:
                with contextlib.suppress(BoxFailed, OSError):
                    control.send(self._launched.control, protocol.END)
                self._launched.control.close()
                processes.wait_ended(self._launched.pidfd, _KILL_GRACE_S)
            self._launched = None  # its descriptors are the engine's to close
            if self._engine is not None:
                self._engine.remove(spec, teardown)
            if mounts := [*self._mounts, *([self._workspace] if self._workspace else [])]:
                teardown.take("workspace", lambda: not [mount for mount in mounts if not mount.close()])
            self._held.close()
            teardown.take("folder", lambda: _removed(spec.folder))
            if self._slot is not None and teardown.is_clean:
                slot, ours = self._slot, self._settings.runtime_id
                teardown.take("id_range", lambda: self._host.ids.give_back(slot, ours))
            if teardown.is_clean:
                self._spec = None
            return teardown.facts()

    def _close_in(self, spec: Spec, launched: Launched, *, user_namespace: bool) -> None:
        """Everything between an init that waits and a box: our /dev and /tmp, no /sys, no way back to the host's files."""
        owned: list[int] = []
        try:
            owned.append(self._host.clone_devices())
            owned.append(private_tmpfs(_SHM_BYTES, spec.host_uid))
            owned.append(private_tmpfs(self._frame.tmp_bytes, spec.host_uid))
            operations: list[Operation] = []
            if user_namespace:
                operations += [Ceiling(name, 0) for name in _CEILINGS]
                operations += [
                    Ceiling("max_inotify_instances", self._host.inotify_share),
                    Ceiling("max_inotify_watches", 8192),
                ]
            places = {mount["place"] for mount in readback.parse_mounts(Path(f"/proc/{launched.pid}/mountinfo").read_text())}
            wanted = ("/dev", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", INIT_FOLDER)
            operations += [Unmount(place) for place in wanted if place in places]
            operations += [Move(owned[0], "/dev"), Move(owned[1], "/dev/shm"), Move(owned[2], "/tmp")]  # noqa: S108 - inside the box
            if not user_namespace:
                root = self._settings.images / self._frame.image.replace(":", "-") / "rootfs"
                named = name_uid(root, spec.host_uid, spec.folder / "names")
                owned += [cover.fd for cover in named]
                operations += named
                self._supplied.update({cover.place: f"/{Path(cover.place).name}" for cover in named})
            absent = enter(self._host.helper, launched.pidfd, operations, user_namespace=user_namespace)
            for place in absent:
                del self._supplied[place]
        finally:
            for fd in owned:
                os.close(fd)

    def _copy(
        self, path: str, flags: int, ends: Callable[[int], tuple[int, int]], owner: int | None, most_bytes: int | None = None
    ) -> None:
        if self._workspace is None:
            raise BoxFailed(Reason.WORKSPACE_MISSING, "files are copied to and from the workspace, and there is none")
        try:
            ours = mounting.open_beneath(self._workspace.mount_fd, path, flags, mode=0o600 if flags & os.O_CREAT else 0)
            try:
                if owner is not None:
                    os.fchown(ours, owner, owner)
                if not stat.S_ISREG(os.fstat(ours).st_mode):
                    raise BoxFailed(Reason.BAD_REQUEST, f"{path} is not a regular file")
                source, target = ends(ours)
                if owner is None:
                    os.ftruncate(target, 0)
                copied = 0
                while chunk := os.read(source, 2**20):
                    copied += len(chunk)
                    # Counted, not asked for: a file may grow, and its target may be memory.
                    if most_bytes is not None and copied > most_bytes:
                        raise BoxFailed(Reason.RESULT_TOO_LARGE, f"{path} has more than {most_bytes} bytes")
                    os.write(target, chunk)
            finally:
                os.close(ours)
        except OSError as error:
            raise BoxFailed(Reason.BAD_REQUEST, f"{path}: {error.strerror}") from error

    def _mount_points(self, binding: Binding) -> int:
        """A read-only tmpfs for /mnt with a directory for each mount: the image's own /mnt cannot be written to."""
        base = private_tmpfs(65536, 0)
        self._held.callback(os.close, base)
        for mount in binding.mounts:
            os.mkdir(mount.name, 0o755, dir_fd=base)
        mounting.restrict_mount(base, mounting.RDONLY)
        return base

    def _expected(self, spec: Spec) -> readback.Expected:
        binding = self._binding
        mode = binding.workspace if binding is not None else WorkspaceMode.NONE
        places = {WorkspaceMode.NONE: None, WorkspaceMode.RO: "ro"}
        kinds = {WorkspaceMode.SCRATCH: "tmpfs", WorkspaceMode.DIRECT: None}
        return readback.Expected(
            uid=spec.host_uid,
            gid=spec.host_uid,
            user_namespace=self._engine is not None and self._engine.user_namespace,
            id_base=spec.id_base,
            id_count=spec.id_count,
            filter_digest=readback.filter_digest(self._filter),
            memory_bytes=spec.frame.memory_bytes,
            pids=spec.frame.pids,
            cpu_quota_us=max(1000, round(spec.frame.cpu * 100_000)),
            open_files=spec.frame.open_files,
            workspace=places.get(mode, "rw"),
            workspace_kind=kinds.get(mode, "overlay"),
            mounts=tuple(mount.name for mount in binding.mounts) if binding is not None else (),
            bound_devices=self._host.bound_devices,
            supplied=self._supplied,
        )

    def _left_s(self, limit: float | None) -> float:
        """How long to wait for the tool; a box that stands still is looked at again, because its clock does too."""
        if limit is not None:
            return limit - time.monotonic()
        return _FROZEN_STEP_S if self._frozen is not None else self._deadline - time.monotonic()

    def _describe(
        self, launched: Launched, status: protocol.Report | None, failed: tuple[Reason, str] | None
    ) -> Exited:
        try:
            usage = launched.group.usage()
        except OSError:
            usage = Usage()
        killed = self._killed
        signal = status.second or None if status is not None else None
        # A session whose server went away is ended for that; why it went, only the kernel's counter says.
        if killed in {None, Reason.SERVER_DIED} and signal == 9 and usage.oom_kills:
            killed = Reason.MEMORY
        reason, detail = failed or (None, "")
        return Exited(
            exit_code=status.first if status is not None and not signal else None,
            signal=signal,
            killed=killed,
            failed=reason,
            detail=detail,
            usage=usage,
        )

    def _expect(self, kind: str, timeout_s: float) -> int:
        launched, _ = self._up()
        report, pid = control.receive_report(launched.control, timeout_s)
        if report.kind != kind:
            raise BoxFailed(Reason.BOX_FAILED, f"init said `{report.kind}`, expected `{kind}`")
        return pid

    def _end_quickly(self) -> None:
        """Make whatever holds the lock return: the tool first, and init itself when it does not answer."""
        launched = self._launched
        if self._frozen is not None:
            self._frozen.alarm.cancel()
        if launched is None:
            return
        if not self._lock.locked():
            thaw(launched.group)
            return
        self.kill(Reason.CANCELLED)
        if not self._lock.acquire(timeout=_KILL_GRACE_S):
            processes.kill(launched.pidfd)
            return
        self._lock.release()

    def _check_alive(self) -> None:
        if self._gone:
            raise BoxFailed(Reason.BOX_DIED, "the box is being removed")

    def _up(self) -> tuple[Launched, Spec]:
        self._check_alive()
        if self._launched is None or self._spec is None:
            raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="broker", detail="the box was not made"))
        return self._launched, self._spec


def _since(before: Usage, now: Usage) -> Usage:
    """What was used between two readings. A peak is the whole box's so far: the kernel keeps no other."""

    def spent(name: str) -> Any:
        earlier, later = getattr(before, name) or 0, getattr(now, name)
        return None if later is None else max(0, round(later - earlier, 6))

    return replace(now, **{name: spent(name) for name in _COUNTERS})


def _removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _is_pipe(fd: int) -> bool:
    """True for an anonymous pipe, False for /dev/null; anything else is refused.

    A worker that was taken over passed a file of root's as a stream, and the chown made it the box's. A directory would lead
    out of the box, a terminal could be typed into.
    """
    found = os.fstat(fd)
    if stat.S_ISFIFO(found.st_mode) and str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("pipe:"):
        return True
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL:
        return False
    raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="broker.streams", detail="a stream is neither a pipe nor /dev/null"))


def _set_oom_score(pid: int, score: int) -> None:
    """The tool goes before its init. The pid is held by its pidfd or is our init's.

    Lowering needs CAP_SYS_RESOURCE, which a root in a container may lack: raising the tool's alone is enough.
    """
    with contextlib.suppress(PermissionError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(score))
