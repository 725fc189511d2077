"""The box that handles strangers' bytes while an image is made: own namespaces, mapped ids, no link, no host.

`work_in` forks, leaves every namespace of the host, and runs a function as the root of a user namespace that maps only
slot 0 of the id pool. What it sees as `/` is one folder; there is no network but an unconfigured `lo` unless asked for;
no privilege of the host is left before the first byte of a package, archive or script is looked at (rules 1 and 13).
`run_unprivileged` is for the one program that makes its namespaces itself (mmdebstrap in unshare mode): as the user
`fumehood`, without a link, with the image store out of sight.

Must never: run a function of ours after entering a folder whose files could shadow our modules. `work_in` is therefore
given a folder *above* an image's root when the function is Python, and an image's root only to execute a program.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from fumehood.faults import FumehoodError
from fumehood.image.owners import MAPPED, USER, Owners
from fumehood.reasons import Reason

# From <sched.h>, <sys/mount.h>, <sys/prctl.h>; 442 is mount_setattr, the same on every architecture.
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _MOUNT_ATTR_RDONLY, _AT_EMPTY_PATH, _AT_RECURSIVE = 2, 1, 0x1000, 0x8000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _CAPABILITIES = 1, 24, 38, 64
_SYS_MOUNT_SETATTR = 442
_DEVICES = ("null", "zero", "full", "random", "urandom")
_REPORT_BYTES = 4096
_FAULT = 126
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or folder of the host that the box sees at `target`, an existing path relative to its root."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """What the work sees. `system` adds /proc, /dev and an empty /tmp, for programs; Python of ours needs none.

    Programs have every capability over the box's own namespaces, as package scripts want; over a `read_only` root, none.
    """

    root: Path
    owners: Owners
    binds: tuple[Bind, ...] = ()
    read_only: bool = False
    network: bool = False
    system: bool = True


def run_in(box: Box, argv: Sequence[str], env: Mapping[str, str], log: int) -> int:
    """Execute a program in the box; its exit status (128 + n for signal n). Its output goes to the descriptor `log`."""

    def work() -> NoReturn:
        os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - argv of our own making, no shell

    return _fork(lambda child: _enter(child, box, work, log), box.owners)[0]


def work_in(box: Box, work: Callable[[], str | None]) -> str:
    """Call a function of ours in the box; what it returned. Raises the FumehoodError that it raised."""
    return _said(*_fork(lambda child: _enter(child, box, work, 2), box.owners))


@contextmanager
def stream_from(box: Box, work: Callable[[IO[bytes]], None]) -> Iterator[IO[bytes]]:
    """Call a function of ours in the box while the body reads what it writes. Raises like `work_in`, at the end."""
    source, sink = os.pipe()

    def inside() -> None:
        os.close(source)
        with os.fdopen(sink, "wb") as out:
            work(out)

    running = _start(lambda child: _enter(child, box, inside, 2), box.owners)
    os.close(sink)
    try:
        with os.fdopen(source, "rb") as stream:
            yield stream
    except BaseException:
        running.stop()
        raise
    _said(*running.finish())


def run_unprivileged(argv: Sequence[str], env: Mapping[str, str], log: int, *, shows: Path, hides: Path) -> int:
    """Execute a program as `fumehood`, offline, with the folder `shows` at /mnt and nothing at `hides`."""
    account = pwd.getpwnam(USER)

    def first() -> NoReturn:
        _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
        _mount(os.fsencode(shows), b"/mnt", None, _MS_BIND | _MS_REC)
        # A maintainer script that leaves its chroot has the ids that own every image: it must not see them.
        _mount(b"tmpfs", os.fsencode(hides), b"tmpfs", _MS_NOSUID | _MS_NODEV)
        _mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV)
        os.chdir("/")
        _redirect(log)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        _die_with_parent()
        os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - argv of our own making, no shell

    def work(child: _Child) -> NoReturn:
        _check(_libc.unshare(_NEWNS | _NEWNET | _NEWIPC | _NEWUTS | _NEWPID), "unshare")
        child.leave_status_of(first)

    return _fork(work, None)[0]


@dataclass(frozen=True, slots=True)
class _Child:
    """The forked side's ends of the pipes: what it says, and the two steps of having its ids mapped."""

    report: int
    unshared: int
    mapped: int

    def tell(self, kind: str, text: str) -> None:
        os.write(self.report, f"{kind}\t{text}".encode("utf-8", "backslashreplace")[:_REPORT_BYTES])

    def await_ids(self) -> None:
        """Say that the user namespace is there, and wait until the parent, who may, has mapped its ids."""
        os.write(self.unshared, b"u")
        if not os.read(self.mapped, 1):
            raise OSError("the ids were not mapped")

    def must_end(self, work: Callable[[], object]) -> NoReturn:
        """Do the work and end the process, whatever happens: a fork must never return into its parent's code."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - see above
            self.tell("internal", repr(error))
        finally:
            os._exit(_FAULT)

    def leave_status_of(self, first: Callable[[], NoReturn]) -> NoReturn:
        """Fork the first process of the new pid namespace and end as it ends."""
        pid = os.fork()
        if pid == 0:
            self.must_end(first)
        os.close(self.report)
        os._exit(_status(os.waitpid(pid, 0)[1]))


@dataclass(frozen=True, slots=True)
class _Running:
    """A forked child that works, and the pipe it reports on."""

    pid: int
    report: int

    def finish(self) -> tuple[int, str]:
        """Wait for the child: its status and what it reported, made printable."""
        try:
            with os.fdopen(self.report, "rb") as stream:
                said = stream.read(_REPORT_BYTES).decode("utf-8", "backslashreplace")
            status = _status(os.waitpid(self.pid, 0)[1])
        except BaseException:
            self.stop()
            raise
        return status, "".join(c if c.isprintable() or c == "\t" else "?" for c in said)

    def stop(self) -> None:
        """End the child; the namespace's first process dies with its parent, and with it all the others."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _start(work: Callable[[_Child], NoReturn], owners: Owners | None) -> _Running:
    """Fork, and map the child's ids once it has its user namespace."""
    report, report_end = os.pipe()
    unshared, unshared_end = os.pipe()
    mapped_end, mapped = os.pipe()
    child = _Child(report_end, unshared_end, mapped_end)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        for fd in (report, unshared, mapped):
            os.close(fd)
        child.must_end(lambda: work(child))
    for fd in (report_end, unshared_end, mapped_end):
        os.close(fd)
    try:
        if owners is not None and os.read(unshared, 1):
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text(f"0 {owners.start} {MAPPED}\n")
            os.write(mapped, b"m")
    except BaseException:
        _Running(pid, report).stop()
        raise
    finally:
        os.close(unshared)
        os.close(mapped)
    return _Running(pid, report)


def _fork(work: Callable[[_Child], NoReturn], owners: Owners | None) -> tuple[int, str]:
    return _start(work, owners).finish()


def _said(status: int, report: str) -> str:
    kind, _, text = report.partition("\t")
    if status == 0 and kind == "ok":
        return text
    if status == 1:
        for reason in Reason:
            if reason.value == kind:
                raise FumehoodError(reason, text)
    raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"the step ended with status {status}: {text or 'no word of why'}")


def _enter(child: _Child, box: Box, work: Callable[[], str | None], log: int) -> NoReturn:
    """Leave the host's namespaces, become the root of the mapped range, and do the work as their first process."""
    os.setsid()
    _check(_libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWIPC | _NEWUTS | (0 if box.network else _NEWNET)), "unshare")
    _die_with_parent()
    child.await_ids()

    def first() -> NoReturn:
        _see_only(box)
        _die_with_parent()
        _redirect(log)
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        if box.read_only:
            # A program with CAP_SYS_ADMIN here would remount its root writable. Python of ours keeps what it has: only
            # an exec looks at the bounding set.
            for capability in range(_CAPABILITIES):
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        try:
            said = work()
        except FumehoodError as error:
            child.tell(error.reason.value, error.detail)
            os._exit(1)
        child.tell("ok", said or "")
        os._exit(0)

    child.leave_status_of(first)


def _status(waited: int) -> int:
    status = os.waitstatus_to_exitcode(waited)
    return status if status >= 0 else 128 - status


def _see_only(box: Box) -> None:
    """Make the box's folder the root of everything, and its owner the one who acts."""
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    root = os.fsencode(box.root)
    _mount(root, root, None, _MS_BIND | _MS_REC)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    if box.read_only:
        _make_read_only(folder)
    for bind in box.binds:
        target = _open_below(folder, bind.target)
        _mount(os.fsencode(bind.source), b"/proc/self/fd/%d" % target, None, _MS_BIND)
        os.close(target)
        if not bind.writable:
            target = _open_below(folder, bind.target)
            _make_read_only(target)
            os.close(target)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.fchdir(folder)
    if box.system:
        _add_system(folder)
    _check(_libc.syscall(_pivot_root_number(), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.close(folder)
    os.chdir("/")


def _add_system(folder: int) -> None:
    # A tmpfs is sticky and for everyone unless told otherwise, and the kernel then refuses `> /dev/null` to all but the
    # node's owner, who is nobody here: install scripts that end on it would fail.
    for name, kind, options in (("proc", b"proc", None), ("tmp", b"tmpfs", None), ("dev", b"tmpfs", b"mode=0755")):
        target = _open_below(folder, name)
        flags = _MS_NOSUID | (_MS_NODEV if name != "dev" else 0)
        _mount(kind, b"/proc/self/fd/%d" % target, kind, flags, options)
        os.close(target)
    devices = _open_below(folder, "dev")
    for device in _DEVICES:
        os.close(os.open(device, os.O_CREAT | os.O_WRONLY, 0o666, dir_fd=devices))
        target = _open_below(devices, device)
        _mount(b"/dev/" + device.encode(), b"/proc/self/fd/%d" % target, None, _MS_BIND)
        os.close(target)
    for name, source in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(source, name, dir_fd=devices)
    os.close(devices)


def _open_below(folder: int, path: str) -> int:
    """An O_PATH descriptor below a folder, through no symbolic link: an image's /mnt may be one, to our /etc."""
    fd = os.dup(folder)
    for part in path.split("/"):
        below = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def _make_read_only(fd: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, attributes, size), "mount_setattr")


def _pivot_root_number() -> int:
    return {"x86_64": 155, "aarch64": 41}[os.uname().machine]


def _redirect(log: int) -> None:
    os.dup2(os.memfd_create("empty"), 0)
    if log != 2:
        os.dup2(log, 1)
        os.dup2(log, 2)


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "pdeathsig")


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _check(_libc.mount(source, target, kind, flags, options), f"mount {os.fsdecode(target)}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
