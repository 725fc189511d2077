"""Makes the broker of an ordinary user root of namespaces of its own.

In the user namespace 0 is the user and 1 and on are the user's subordinate ids, so the broker can mount, map and enter
boxes, whose own namespaces nest in this one, and has no more rights on the host than the user. newuidmap(1) and
newgidmap(1) are setuid programs that look up subuid(5); they must run outside, so a shell that waits for us is started
first. The mount namespace is private, and the cgroup namespace makes the cgroup we were started in look like the root of
each tree.

Must be called while the process has one thread. Sources: user_namespaces(7), newuidmap(1), cgroup_namespaces(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

from fumehood.broker import mounting
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUSER = 0x20000, 0x2000000, 0x10000000
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_MAPPER = (
    "/bin/sh", "-c",
    'read -r go && newuidmap "$1" 0 "$2" 1 1 "$4" "$5" && newgidmap "$1" 0 "$3" 1 1 "$6" "$7"', "map",
)  # fmt: skip
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None, use_errno=True)


def enter_own_namespaces(subuids: tuple[int, int], subgids: tuple[int, int]) -> None:
    """Become root of a new user, mount and cgroup namespace, for good. Raises BoxFailed(UNENFORCEABLE)."""
    words = [os.getpid(), os.getuid(), os.getgid(), *subuids, *subgids]
    with subprocess.Popen(
        [*_MAPPER, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={"PATH": _PATH}, cwd="/",
    ) as mapper:  # fmt: skip
        try:
            _unshare(_CLONE_NEWUSER, "user")
        except BoxFailed:
            mapper.kill()
            raise
        _, said = mapper.communicate(b"go\n")
        if mapper.returncode != 0:
            raise BoxFailed(
                Reason.UNENFORCEABLE, f"subordinate ids cannot be mapped: {said.decode(errors='replace').strip()[:400]}",
                remedy="Install newuidmap and newgidmap (package uidmap), and check /etc/subuid and /etc/subgid.",
            )  # fmt: skip
    os.setgroups([])
    _unshare(_CLONE_NEWNS | _CLONE_NEWCGROUP, "mount")
    # Slave: a directory that is mounted later on the host is still found, ours never propagate out.
    mounting.mount(None, "/", None, mounting.MS_REC | mounting.MS_SLAVE)
    # What the user runs has the same uid as we: it could trace us, and read callers' data out of us.
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _unshare(flags: int, what: str) -> None:
    if _libc.unshare(flags) == 0:
        return
    number = ctypes.get_errno()
    why = _refusing_setting() if number in {errno.EPERM, errno.EACCES, errno.ENOSPC} else ""
    raise BoxFailed(
        Reason.UNENFORCEABLE, f"no {what} namespace without root: {os.strerror(number)}",
        remedy=f"Ask the administrator to set {why}." if why else None,
    )  # fmt: skip


def _refusing_setting() -> str:
    """The setting of this host that keeps users from making namespaces, and what it should be; empty when none is known."""
    for name, refusing, wanted in (
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "15000"),
    ):
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() == refusing:
            return f"{name.replace('/', '.')}={wanted}"
    return ""
