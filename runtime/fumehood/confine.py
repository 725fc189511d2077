"""What a process of ours gives up before it may read a stranger's byte: root, capabilities, dumping, most system calls.

The worker's filter is a policy file like any box's (`seccomp/worker.yaml`). It is compiled once a host and kept in the state
folder under the digest of its text, so that an ordinary start only reads it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason
from fumehood.settings import Settings
from fumehood.shipping import shipped

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
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


def worker_filter(settings: Settings) -> bytes:
    """The worker's compiled filter; root's, from the state folder, compiled into it at the first start."""
    source = shipped("profiles") / "seccomp" / "worker.yaml"
    name = f"worker-{hashlib.sha256(source.read_bytes()).hexdigest()[:32]}-{platform.machine()}.bpf"
    kept = settings.state.seccomp / name
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
    """Confine this process, and every thread it starts from here on, to a filter. Raises FumehoodError(UNENFORCEABLE)."""
    wanted = _Program(len(program) // 8, program)
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(wanted), 0, 0):
        raise FumehoodError(Reason.UNENFORCEABLE, f"seccomp: {os.strerror(ctypes.get_errno())}")
