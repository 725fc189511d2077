"""The control groups of a box: made with limits before anything runs in them, read after the last process, removed last.

Hosts differ: v1 (a tree a controller), v2 (one tree), and hybrids (v1 controllers beside an empty v2 tree). For each
controller we use the tree that holds it; the v2 tree, where there is one, adds `cgroup.kill`, `cgroup.events` and `cpu.stat`.
Every directory of ours is `fumehood/<runtime id>/<task>` in its tree. A controller that no tree holds makes the
limit unenforceable, and a limit that cannot be enforced refuses the box.

Numbers are final when the box is empty (`populated 0`) and its directories still stand. What the kernel does not say is
None, never 0: v1's blkio, for example, does not see writes through the page cache.
Sources: Documentation/admin-guide/cgroup-v1/, Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fumehood.broker.kernel_files import whole
from fumehood.faults import BoxFailed
from fumehood.model import Usage
from fumehood.reasons import Reason
from fumehood.state import PREFIX

NEEDED = ("memory", "pids", "cpu")
_V1 = (*NEEDED, "cpuacct")
_FREEZER = "freezer"  # a controller only in v1; v2 freezes any group
_OF_V1 = frozenset({*_V1, _FREEZER})
RUNTIMES_OWN = ".rt"  # the group that an OCI runtime insists on making for itself, beside ours
_PERIOD_US = 100_000
_EMPTY_DEADLINE_S = 5.0
_MAKING_ROUNDS = 20
_RUNTIME = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")


@dataclass(frozen=True, slots=True)
class Trees:
    """Where each controller's tree is mounted. `v2` is the unified tree or None; `v2_controllers` what it holds."""

    v1: dict[str, Path]
    v2: Path | None
    v2_controllers: frozenset[str]

    def missing(self) -> list[str]:
        """The controllers we need and no tree holds."""
        return [name for name in NEEDED if name not in self.v1 and name not in self.v2_controllers]

    def warm(self) -> None:
        """Wait now for the RCU grace period that the next move of a process would wait for: 5 to 10 ms, then 0.3 for a while.

        Moving ourselves to where we are takes the same lock and changes nothing.
        """
        with contextlib.suppress(OSError):
            own = Group.of_process(self, os.getpid())
            _write(next(iter(own.folders.values())), "cgroup.procs", os.getpid())

    def folders(self, relative: str) -> dict[str, Path]:
        """The directories of one cgroup by controller, `v2` for the unified tree."""
        names = _V1 if self.v2 is not None else (*_V1, _FREEZER)
        found = {name: self.v1[name] / relative for name in names if name in self.v1}
        if self.v2 is not None:
            found["v2"] = self.v2 / relative
        return found

    def places_of(self, pid: int) -> dict[str, str]:
        """Where the kernel has a process, by controller. Text, because a `Path` takes 10 us and this is asked four times a box."""
        found: dict[str, str] = {}
        for line in whole(f"/proc/{pid}/cgroup").splitlines():
            _, names, path = line.split(":", 2)
            below = path.rstrip("/")
            for name in names.split(","):
                if name in _OF_V1 and name in self.v1:
                    found[name] = f"{self.v1[name]}{below}"
            if not names and self.v2 is not None:
                found["v2"] = f"{self.v2}{below}"
        return found

    def everywhere(self, relative: str) -> list[Path]:
        """One cgroup's directory in every tree: runc makes its own in trees that we need nothing of (freezer, devices)."""
        places = {*self.v1.values(), *([self.v2] if self.v2 is not None else [])}
        return sorted(place / relative for place in places)


def parse_trees(mountinfo: str) -> tuple[dict[str, Path], Path | None]:
    """The v1 trees by controller and the v2 tree, from /proc/self/mountinfo."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        place = Path(left.split(" ")[4])
        if kind == "cgroup":
            for name in options.split(","):
                v1.setdefault(name, place)
        elif kind == "cgroup2" and v2 is None:
            v2 = place
    return v1, v2


def find_trees() -> Trees:
    """This host's trees."""
    v1, v2 = parse_trees(Path("/proc/self/mountinfo").read_text())
    controllers = (v2 / "cgroup.controllers").read_text().split() if v2 is not None else []
    return Trees(v1, v2, frozenset(controllers))


@dataclass(frozen=True, slots=True)
class Freezer:
    """The directory that freezes a group, and which kind of files it has."""

    path: Path
    v2: bool


class Group:
    """One cgroup over all trees: ours, made with limits, or an engine's, found from a process."""

    def __init__(self, trees: Trees, folders: dict[str, Path], *, ours: bool) -> None:
        self._trees = trees
        self.folders = folders
        self._ours = ours
        self._cpu_before: tuple[float | None, float | None] = (None, None)

    @classmethod
    def make(cls, trees: Trees, relative: str, *, cpu: float, memory_bytes: int, pids: int) -> Group:
        """Make the directories and set the limits. Raises BoxFailed(UNENFORCEABLE)."""
        if absent := trees.missing():
            raise BoxFailed(Reason.UNENFORCEABLE, f"no cgroup tree holds {', '.join(absent)}")
        group = cls(trees, trees.folders(relative), ours=True)
        try:
            group._make_folders(relative)
            group.limit(cpu=cpu, memory_bytes=memory_bytes, pids=pids)
        except OSError as error:
            group.remove()
            raise BoxFailed(Reason.UNENFORCEABLE, f"cgroup limits: {error.strerror} ({error.filename})") from error
        return group

    def _make_folders(self, relative: str) -> None:
        """Make the directories. One above them that is still empty may be taken away by a runtime that ends: then once more."""
        for left in reversed(range(_MAKING_ROUNDS)):
            try:
                if self._trees.v2 is not None and self._trees.v2_controllers:
                    _delegate(self._trees, relative)
                for folder in self.folders.values():
                    folder.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:
                if not left:
                    raise
            else:
                return

    @classmethod
    def of_process(cls, trees: Trees, pid: int) -> Group:
        """The cgroup an engine put a process in. The caller holds a pidfd and checks it afterwards."""
        return cls(trees, {name: Path(place) for name, place in trees.places_of(pid).items()}, ours=False)

    @property
    def freezer(self) -> Freezer:
        """What freezes this group. Raises BoxFailed(UNENFORCEABLE) on a host that cannot."""
        # An engine's v2 directory on a hybrid host may be the engine's own: its v1 freezer is the container's alone.
        if self._ours and "v2" in self.folders:
            return Freezer(self.folders["v2"], v2=True)
        if _FREEZER in self.folders:
            return Freezer(self.folders[_FREEZER], v2=False)
        if "v2" in self.folders and "v2" in self._limiting():
            return Freezer(self.folders["v2"], v2=True)
        raise BoxFailed(Reason.UNENFORCEABLE, "this host has no cgroup freezer")

    def limit(self, *, cpu: float, memory_bytes: int, pids: int) -> None:
        """Write the limits. `pids` counts the tool's processes; the box's init is one more."""
        quota = max(1000, round(cpu * _PERIOD_US))
        if (folder := self.folders.get("memory")) is not None:
            _write(folder, "memory.limit_in_bytes", memory_bytes)
            if (folder / "memory.memsw.limit_in_bytes").exists():
                _write(folder, "memory.memsw.limit_in_bytes", memory_bytes)
        elif (folder := self.folders.get("v2")) is not None:
            _write(folder, "memory.max", memory_bytes)
            if (folder / "memory.swap.max").exists():
                _write(folder, "memory.swap.max", 0)
        _write(self._folder("pids"), "pids.max", pids + 1)
        if (folder := self.folders.get("cpu")) is not None:
            _write(folder, "cpu.cfs_period_us", _PERIOD_US)
            _write(folder, "cpu.cfs_quota_us", quota)
        else:
            _write(self._folder("cpu"), "cpu.max", f"{quota} {_PERIOD_US}")

    def limits(self) -> dict[str, int]:
        """The limits as the kernel has them: cpu_quota_us, memory_bytes, pids."""
        if (folder := self.folders.get("memory")) is not None:
            memory = _number(folder, "memory.limit_in_bytes")
        else:
            memory = _number(self._folder("memory"), "memory.max")
        if (folder := self.folders.get("cpu")) is not None:
            quota = _number(folder, "cpu.cfs_quota_us")
        else:
            quota = _number(self._folder("cpu"), "cpu.max")
        return {"cpu_quota_us": quota, "memory_bytes": memory, "pids": _number(self._folder("pids"), "pids.max") - 1}

    def add(self, pid: int) -> None:
        """Move a process in, in every tree. Raises BoxFailed(BOX_DIED) when it has ended."""
        try:
            for folder in self.folders.values():
                _write(folder, "cgroup.procs", pid)
        except ProcessLookupError as error:
            raise BoxFailed(Reason.BOX_DIED, "the process ended before it was under its limits") from error

    def holds(self, pid: int) -> bool:
        """Whether the kernel has this process in every one of our directories."""
        found = self._trees.places_of(pid)
        return all(found.get(name) == str(folder) for name, folder in self.folders.items())

    def members(self) -> list[int]:
        """The processes in it, by the host's pids."""
        return _pids(self._folder("pids"))

    def baseline(self) -> None:
        """Forget what making the box cost: the usage counts from here."""
        self._cpu_before = self._cpu()
        if (folder := self.folders.get("memory")) is not None:
            with contextlib.suppress(OSError):
                _write(folder, "memory.max_usage_in_bytes", 0)

    def usage(self) -> Usage:
        """The box's counters. Call it when the box is empty but for its init."""
        user, system = self._cpu()
        before_user, before_system = self._cpu_before
        counted = Usage(
            cpu_user_s=_less(user, before_user),
            cpu_system_s=_less(system, before_system),
            pids_peak=_maybe(self._folder("pids"), "pids.peak"),
            pids_limit_hits=_field(self._folder("pids"), "pids.events", "max"),
            cpu_throttled_s=self._throttled(),
        )
        if (folder := self.folders.get("memory")) is not None:
            return replace(
                counted,
                memory_peak_bytes=_maybe(folder, "memory.max_usage_in_bytes"),
                oom_kills=_field(folder, "memory.oom_control", "oom_kill"),
            )
        folder = self._folder("memory")
        read_bytes, write_bytes = _io(folder)
        return replace(
            counted,
            memory_peak_bytes=_maybe(folder, "memory.peak"),
            oom_kills=_field(folder, "memory.events", "oom_kill"),
            io_read_bytes=read_bytes,
            io_write_bytes=write_bytes,
        )

    def kill(self) -> None:
        """Kill every process inside, init included."""
        killer = self.folders.get("v2")
        if killer is not None and (killer / "cgroup.kill").exists():
            with contextlib.suppress(OSError):
                _write(killer, "cgroup.kill", 1)
            return
        for folder in self.folders.values():
            for pid in _pids(folder):
                _kill_member(pid, self)
        if (frozen := self.folders.get(_FREEZER)) is not None:
            with contextlib.suppress(OSError):
                _write(frozen, "freezer.state", "THAWED")  # only then does what is killed die

    def remove(self) -> bool:
        """Remove our directories; wait a bounded time for the last process to go. True when nothing is left."""
        deadline = time.monotonic() + _EMPTY_DEADLINE_S
        if not self._ours:
            while standing := any(folder.exists() for folder in self.folders.values()):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.001)  # the engine's to remove, in its own time
            return not standing
        for folder in self.folders.values():
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        return False
                    time.sleep(0.0005)  # the kernel gives no event for an emptied v1 group
                else:
                    break
        return True

    def _limiting(self) -> set[str]:
        """The trees that hold a controller of ours: a group found there is the box's own."""
        return {name if name in self.folders else "v2" for name in NEEDED}

    def _folder(self, controller: str) -> Path:
        return self.folders.get(controller) or self.folders["v2"]

    def _cpu(self) -> tuple[float | None, float | None]:
        if (folder := self.folders.get("cpuacct")) is not None:
            user, system = _maybe(folder, "cpuacct.usage_user"), _maybe(folder, "cpuacct.usage_sys")
            return (user / 1e9 if user is not None else None, system / 1e9 if system is not None else None)
        if (folder := self.folders.get("v2")) is not None:
            user, system = _field(folder, "cpu.stat", "user_usec"), _field(folder, "cpu.stat", "system_usec")
            return (user / 1e6 if user is not None else None, system / 1e6 if system is not None else None)
        return (None, None)

    def _throttled(self) -> float | None:
        if (folder := self.folders.get("cpu")) is not None:
            value = _field(folder, "cpu.stat", "throttled_time")
            return value / 1e9 if value is not None else None
        value = _field(self._folder("cpu"), "cpu.stat", "throttled_usec")
        return value / 1e6 if value is not None else None


def remove_tree(trees: Trees, runtime_id: str) -> list[str]:
    """Kill and remove every cgroup of one (dead) runtime; the tasks whose groups were there."""
    groups: set[str] = set()
    for folder in trees.everywhere(f"{PREFIX}/{runtime_id}"):
        if folder.is_dir():
            groups.update(child.name for child in folder.iterdir() if child.is_dir())
    for name in groups:
        found = {key: path for key, path in trees.folders(f"{PREFIX}/{runtime_id}/{name}").items() if path.is_dir()}
        group = Group(trees, found, ours=True)
        group.kill()
        group.remove()
        remove_runtimes_own(trees, f"{PREFIX}/{runtime_id}/{name}")
    remove_parent(trees, runtime_id)
    return sorted({name.removesuffix(RUNTIMES_OWN) for name in groups})


def remove_runtimes_own(trees: Trees, relative: str) -> bool:
    """Remove the empty directories of one group in every tree: a runtime that was killed leaves its own."""
    left = False
    for folder in trees.everywhere(relative):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            left = left or folder.exists()
    return not left


def remove_parent(trees: Trees, runtime_id: str) -> None:
    """Remove a runtime's own, now empty, directories, and ours above them when no other runtime is there."""
    for folder in trees.everywhere(f"{PREFIX}/{runtime_id}"):
        for path in (folder, folder.parent):
            with contextlib.suppress(OSError):
                path.rmdir()


def remove_empty(trees: Trees, is_marked: Callable[[str], bool]) -> int:
    """Remove directories of runtimes that no mark tells of, where nothing is in them: how many there were.

    Somebody may live whose they are (an older fumehood, another mount namespace), and makes them anew for the next box: the kernel
    refuses what holds a process or a group.
    """
    removed: set[str] = set()
    for folder in trees.everywhere(PREFIX):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if _RUNTIME.fullmatch(entry.name) and not is_marked(entry.name):
                    with contextlib.suppress(OSError):
                        os.rmdir(entry.path)  # noqa: PTH106 - one system call, which looks and removes
                        removed.add(entry.name)
    return len(removed)


def _delegate(trees: Trees, relative: str) -> None:
    """On v2, a controller reaches a group only when every group above passes it on."""
    assert trees.v2 is not None  # noqa: S101 - the caller's condition
    wanted = " ".join(f"+{name}" for name in NEEDED if name in trees.v2_controllers)
    folder = trees.v2
    for part in ("", *Path(relative).parent.parts):
        folder = folder / part
        folder.mkdir(exist_ok=True)
        if not set(wanted.replace("+", "").split()) <= set(whole(folder / "cgroup.subtree_control").split()):
            _write(folder, "cgroup.subtree_control", wanted)


def _kill_member(pid: int, group: Group) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if group.holds(pid):  # checked through the held pidfd's lifetime: a reused pid would be elsewhere
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)


def _pids(folder: Path) -> list[int]:
    try:
        return [int(line) for line in whole(folder / "cgroup.procs").split()]
    except OSError:
        return []


def _write(folder: Path, name: str, value: object) -> None:
    path = f"{folder}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)


def _number(folder: Path, name: str) -> int:
    first = whole(folder / name).split()[0]
    return 2**63 if first == "max" else int(first)


def _maybe(folder: Path, name: str) -> int | None:
    try:
        return _number(folder, name)
    except (OSError, ValueError, IndexError):
        return None


def _field(folder: Path, name: str, field: str) -> int | None:
    try:
        for line in whole(folder / name).splitlines():
            key, _, value = line.partition(" ")
            if key == field:
                return int(value)
    except (OSError, ValueError):
        return None
    return None


def _io(folder: Path) -> tuple[int | None, int | None]:
    try:
        lines = whole(folder / "io.stat").splitlines()
    except OSError:
        return (None, None)
    if not lines:
        return (None, None)
    pairs = [item.split("=") for line in lines for item in line.split()[1:]]
    totals = {key: sum(int(v) for k, v in pairs if k == key) for key in ("rbytes", "wbytes")}
    return (totals["rbytes"], totals["wbytes"])


def _less(value: float | None, before: float | None) -> float | None:
    return None if value is None else max(0.0, round(value - (before or 0.0), 6))
