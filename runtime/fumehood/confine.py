"""What a process of ours gives up before it may read a stranger's byte: root, capabilities, dumping, most system calls.

The worker's filter is a policy file like any box's (`seccomp/worker.yaml`). It is compiled once a host and kept in the state
folder under the digest of its text, so that an ordinary start only reads it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import socket
import struct
import sys
from pathlib import Path

from fumehood import landlock
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason
from fumehood.shipping import shipped

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def give_up_root(uid: int, gid: int) -> None:
    """Give up groups, ids, every capability, being dumped or traced, and gaining anything by an exec; for good."""
    if os.getuid() == 0:
        for capability in range(int(_LAST_CAP.read_text()) + 1):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid, uid, uid):
            raise FumehoodError(Reason.UNENFORCEABLE, "the process could not give up root")
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    hide_memory()


def hide_memory() -> None:
    """Callers' data or the operator's is in here: not readable through /proc, no core on disk."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def give_up_files(images: Path) -> None:
    """Keep to the code, the system's libraries and the images, and reach no UNIX socket: for a worker of the user's own uid.

    The user's message bus would run any program for whoever connects, and shells read what is written into the user's home.
    """
    code = (*filter(None, sys.path), sys.prefix, sys.base_prefix, str(Path(__file__).parent))
    system = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys/devices/system/cpu", "/dev/urandom")
    try:
        landlock.keep_only([Path(path) for path in (*code, *system, str(images))], [Path(os.devnull)])
    except OSError as error:
        raise FumehoodError(Reason.UNENFORCEABLE, f"files: {error.strerror}") from error
    install_filter(_no_unix_sockets())


def _no_unix_sockets() -> bytes:
    """`if (nr == socket && domain == AF_UNIX) return EPERM`; other ABIs are killed by the worker's own filter. socketpair(2) stays."""
    load, equal, answer = 0x20, 0x15, 0x06
    number = 41 if platform.machine() == "x86_64" else 198
    domain = 16 if sys.byteorder == "little" else 20
    code = (
        (load, 0, 0, 0),
        (equal, 0, 3, number),
        (load, 0, 0, domain),
        (equal, 0, 1, socket.AF_UNIX),
        (answer, 0, 0, 0x00050000 | errno.EPERM),
        (answer, 0, 0, 0x7FFF0000),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def worker_filter(folder: Path) -> bytes:
    """The worker's compiled filter; root's, from the state's folder of filters, compiled into it at the first start."""
    source = shipped("profiles") / "seccomp" / "worker.yaml"
    name = f"worker-{hashlib.sha256(source.read_bytes()).hexdigest()[:32]}-{platform.machine()}.bpf"
    kept = folder / name
    try:
        return kept.read_bytes()
    except FileNotFoundError:
        pass
    # Compiling imports libseccomp and the profile parser, which this process may never need: a child does it.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            from fumehood.broker.filters import compile_filter
            from fumehood.profile import load_seccomp

            temporary = kept.with_name(f".{name}.{os.getpid()}")
            temporary.write_bytes(compile_filter(load_seccomp("worker", (shipped("profiles"),), os.getuid())))
            temporary.rename(kept)
            status = 0
        finally:
            os._exit(status)
    os.waitpid(pid, 0)
    return kept.read_bytes()


def install_filter(program: bytes) -> None:
    """Confine this process, every thread that it has and will start, to a filter. Raises FumehoodError(UNENFORCEABLE)."""
    wanted = _Program(len(program) // 8, program)
    number = _SYS_SECCOMP.get(platform.machine())
    if number is None:
        raise FumehoodError(Reason.UNENFORCEABLE, f"no system call filter for {platform.machine()}")
    _libc.syscall.restype = ctypes.c_long
    # Not prctl: that confines the calling thread alone, and a process that embeds a runtime may have others.
    done = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(_SECCOMP_FILTER_FLAG_TSYNC), ctypes.byref(wanted)
    )
    if done:
        why = os.strerror(ctypes.get_errno()) if done < 0 else f"thread {done} has a filter of its own"
        raise FumehoodError(Reason.UNENFORCEABLE, f"seccomp: {why}")


def check_every_thread(uid: int) -> None:
    """That no thread of this process holds more than the calling one should by now. Raises FumehoodError(UNENFORCEABLE).

    The C library changes the ids of all threads; one that it does not know of (started past it) would keep root.
    """
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        told = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        held = {name: told[name] for name in ("CapPrm", "CapEff", "CapAmb") if int(told[name], 16)}
        if set(told["Uid"].split()) != {str(uid)} or held or told["NoNewPrivs"] != "1" or told["Seccomp"] != "2":
            raise FumehoodError(Reason.UNENFORCEABLE, f"thread {task.name} of this process kept rights that were given up")
