"""System call policies on the privileged side: the floor under every policy, and the bytes that the kernel runs.

`check_floor` judges a policy that a less privileged process sent: whatever the profile says, a box never gets the calls
of `NEVER`, and gets those of `GUARDED` only through rules whose tests keep the dangerous argument out. It is
conservative: it looks at allow rules alone and believes no refusing rule, so the order in which a library applies
overlapping rules cannot matter.

`compile_filter` gives classic BPF for the native ABI: a call through another ABI kills the process, because its
numbers mean other calls. libseccomp does not know the newest calls; their numbers are equal on all architectures
since 424, so `NEWER` supplies them, and what is newer still fails with ENOSYS, for which every libc has a fallback.

`stored_filter` keeps the bytes by the policy's digest in a 0700 folder of ours, with their own hash in front: a file
that a crash cut short is compiled again, never installed. `cached_filter` keeps those of the last few policies in memory, too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import secrets
import struct
from pathlib import Path
from typing import NamedTuple

from fumehood.faults import BoxFailed
from fumehood.model import ArgumentTest, Deny, SeccompPolicy, SeccompRule
from fumehood.reasons import Reason

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "riscv64": "SCMP_ARCH_RISCV64"}
MAX_RULES = 1024
MAX_INSTRUCTIONS = 4096
OPERATORS = {"ne": 1, "lt": 2, "le": 3, "eq": 4, "ge": 5, "gt": 6, "masked_eq": 7}
_OCI_OPERATORS = {
    "ne": "SCMP_CMP_NE",
    "lt": "SCMP_CMP_LT",
    "le": "SCMP_CMP_LE",
    "eq": "SCMP_CMP_EQ",
    "ge": "SCMP_CMP_GE",
    "gt": "SCMP_CMP_GT",
    "masked_eq": "SCMP_CMP_MASKED_EQ",
}

# Source: include/uapi/asm-generic/unistd.h, Linux 6.18.
NEWER = {
    "futex_waitv": 449, "set_mempolicy_home_node": 450, "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453,
    "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456, "statmount": 457, "listmount": 458,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463,
    "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468,
    "file_setattr": 469, "listns": 470,
}  # fmt: skip
NEWEST = max(NEWER.values())

NEVER: dict[str, str] = {
    name: attack
    for attack, names in {
        "changes the box's mounts": "mount umount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount"
        " open_tree open_tree_attr mount_setattr",
        "makes or joins namespaces, which brings capabilities back": "unshare setns",
        "has its flags in memory, where a filter cannot see them": "clone3 openat2 socketcall ipc",
        "reaches into other processes; a child overwrote PID 1 so": "ptrace process_vm_readv process_vm_writev"
        " process_madvise kcmp pidfd_getfd",
        "loads code into the kernel": "bpf init_module finit_module delete_module create_module kexec_load"
        " kexec_file_load",
        "uses keyrings, which are not namespaced": "keyctl add_key request_key",
        "opens sockets and files that no filter sees": "io_uring_setup io_uring_enter io_uring_register",
        "holds the kernel still in the middle of a copy": "userfaultfd",
        "reads what other tasks do": "perf_event_open lookup_dcookie syslog fanotify_init",
        "opens files past every mount": "open_by_handle_at name_to_handle_at",
        "changes the host": "reboot swapon swapoff acct settimeofday clock_settime clock_settime64 clock_adjtime"
        " clock_adjtime64 stime adjtimex sethostname setdomainname iopl ioperm quotactl quotactl_fd vhangup nfsservctl"
        " _sysctl uselib",
        "moves other memory": "move_pages migrate_pages",
    }.items()
    for name in names.split()
}


class Guard(NamedTuple):
    """What an allow rule must prove of one 32-bit argument."""

    argument: int
    kind: str  # one_of | none_of | clear
    values: tuple[int, ...]


_NAMESPACES = 0x7E020000
_SET_IDS = 0o6000
_CREATES = 0o20000100  # O_CREAT | __O_TMPFILE
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16


def _clear(index: int, bits: int) -> tuple[Guard]:
    return (Guard(index, "clear", (bits,)),)


# For each call the alternatives of which a rule must prove one.
GUARDED: dict[str, tuple[tuple[Guard, ...], ...]] = {
    "clone": (_clear(0, _NAMESPACES),),
    "socket": (
        (Guard(0, "one_of", (_UNIX, _INET, _INET6)),),
        (Guard(0, "one_of", (_NETLINK,)), Guard(2, "one_of", (0,))),
    ),
    "socketpair": ((Guard(0, "one_of", (_UNIX,)),),),
    "ioctl": ((Guard(1, "none_of", _TERMINAL_INPUT),),),
    "chmod": (_clear(1, _SET_IDS),),
    "fchmod": (_clear(1, _SET_IDS),),
    "mkdir": (_clear(1, _SET_IDS),),
    "creat": (_clear(1, _SET_IDS),),
    "mknod": (_clear(1, _SET_IDS),),
    "fchmodat": (_clear(2, _SET_IDS),),
    "fchmodat2": (_clear(2, _SET_IDS),),
    "mkdirat": (_clear(2, _SET_IDS),),
    "mknodat": (_clear(2, _SET_IDS),),
    "open": (_clear(1, _CREATES), _clear(2, _SET_IDS)),
    "openat": (_clear(2, _CREATES), _clear(3, _SET_IDS)),
}


@functools.lru_cache(maxsize=64)
def check_floor(policy: SeccompPolicy) -> Deny | None:
    """The refusal of a policy that no box may have, or None."""
    if policy.default_errno is None or not 1 <= policy.default_errno < 4096:
        return _deny("its default is to allow, or no errno", "seccomp.default")
    if len(policy.rules) > MAX_RULES:
        return _deny(f"it has over {MAX_RULES} rules", "seccomp.size")
    for rule in policy.rules:
        if fault := _malformed(rule):
            return _deny(fault, "seccomp.form")
        if rule.action != "allow":
            continue
        for name in rule.names:
            if attack := NEVER.get(name):
                return _deny(f"it allows {name}, which {attack}", f"seccomp.never.{name}")
            alternatives = GUARDED.get(name)
            if alternatives and not any(all(_proves(rule, guard) for guard in guards) for guards in alternatives):
                return _deny(f"it allows {name} with arguments that no box may use", f"seccomp.guard.{name}")
    return None


def _deny(detail: str, rule: str) -> Deny:
    return Deny(reason=Reason.SECCOMP_FLOOR, rule=rule, detail=f"the system call policy was refused: {detail}")


def _malformed(rule: SeccompRule) -> str:
    if rule.action not in ("allow", "errno", "kill") or not 0 <= rule.errno < 4096:
        return "a rule has no known action"
    if not all(isinstance(name, str) for name in rule.names):
        return "a system call is not given by its name"  # a number would pass every list of names
    indexes = [test.index for test in rule.tests]
    if len(set(indexes)) != len(indexes) or not all(0 <= index < 6 for index in indexes):
        return "a rule tests an argument twice, or one that there is not"
    if not all(test.op in OPERATORS and 0 <= test.value < 2**64 and 0 <= test.mask < 2**64 for test in rule.tests):
        return "a rule has a test of unknown form"
    return ""


def _proves(rule: SeccompRule, guard: Guard) -> bool:
    """Whether a call that the rule allows must satisfy the guard."""
    return any(_implies(test, guard) for test in rule.tests if test.index == guard.argument)


def _implies(test: ArgumentTest, guard: Guard) -> bool:
    if test.op == "eq":
        mask = 2**64 - 1
    elif test.op == "masked_eq":
        mask = test.mask
    else:
        return False
    if guard.kind == "clear":
        bits = guard.values[0]
        return mask & bits == bits and test.value & bits == 0
    if mask & 0xFFFFFFFF != 0xFFFFFFFF:
        return False
    return (test.value & 0xFFFFFFFF in guard.values) == (guard.kind == "one_of")


def compile_filter(policy: SeccompPolicy) -> bytes:
    """The policy as `struct sock_filter[]` for this machine. Raises BoxFailed."""
    import pyseccomp

    machine = platform.machine()
    if machine not in ARCHITECTURES:
        # Argument positions differ elsewhere (s390's clone), so our rules would prove nothing.
        raise BoxFailed(Reason.UNENFORCEABLE, f"no system call filter for {machine}")
    actions = {"allow": pyseccomp.ALLOW, "kill": pyseccomp.KILL_PROCESS}
    default = pyseccomp.ALLOW if policy.default_errno is None else pyseccomp.ERRNO(policy.default_errno)
    try:
        library = pyseccomp.SyscallFilter(default)
        library.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        for rule in policy.rules:
            action = actions.get(rule.action) or pyseccomp.ERRNO(rule.errno)
            tests = [pyseccomp.Arg(test.index, OPERATORS[test.op], *_data(test)) for test in rule.tests]
            for name in rule.names:
                number = _number(name)
                if number >= 0 and action != default:  # libseccomp refuses a rule that says what the default says
                    library.add_rule_exactly(action, number, *tests)
        data = _exported(library)
    except OSError as error:
        raise BoxFailed(Reason.BOX_FAILED, f"libseccomp cannot compile {policy.name}: {error}") from error
    program = _unknown_calls() + data
    if len(program) // 8 > MAX_INSTRUCTIONS:
        raise BoxFailed(Reason.BOX_FAILED, f"the filter of {policy.name} is over {MAX_INSTRUCTIONS} instructions")
    return program


def _data(test: ArgumentTest) -> tuple[int, int]:
    return (test.mask, test.value) if test.op == "masked_eq" else (test.value, 0)


def _number(name: str) -> int:
    """The call's number here, or a negative one when this architecture has no such call."""
    import pyseccomp

    try:
        number = int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))
    except (OSError, ValueError):
        number = -1
    return number if number >= 0 else NEWER.get(name, -1)


def _exported(library: object) -> bytes:
    with os.fdopen(os.memfd_create("filter", os.MFD_CLOEXEC), "r+b") as file:
        library.export_bpf(file)  # type: ignore[attr-defined] # pyseccomp has no types
        file.seek(0)
        return file.read()


def _unknown_calls() -> bytes:
    """`if (nr > NEWEST && nr < 0x40000000) return ENOSYS`, ahead of libseccomp's program.

    Numbers from 0x40000000 are the x32 ABI and left to libseccomp, which kills.
    """
    load, jump_gt, jump_ge, ret = 0x20, 0x25, 0x35, 0x06
    enosys = 0x00050000 | 38
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 0),
            (jump_ge, 2, 0, 0x40000000),
            (jump_gt, 0, 1, NEWEST),
            (ret, 0, 0, enosys),
        )
    )


def stored_filter(policy: SeccompPolicy, folder: Path) -> bytes:
    """The compiled policy, from `folder` (0700, ours) or compiled and put there."""
    path = folder / f"{policy.digest.removeprefix('sha256:')}-{platform.machine()}-{NEWEST}.bpf"
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        stored = b""
    program = stored[32:]
    if program and hashlib.sha256(program).digest() == stored[:32]:
        return program
    program = compile_filter(policy)
    temporary = folder / f".{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(hashlib.sha256(program).digest() + program)
    temporary.replace(path)
    return program


cached_filter = functools.lru_cache(maxsize=16)(stored_filter)


def oci_seccomp(policy: SeccompPolicy) -> dict[str, object]:
    """The policy as OCI's `linux.seccomp` and Docker's JSON profile say it, for engines that take no bytes."""
    default: dict[str, object] = {"defaultAction": "SCMP_ACT_ALLOW"}
    if policy.default_errno is not None:
        default = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": policy.default_errno}
    actions = {"allow": "SCMP_ACT_ALLOW", "errno": "SCMP_ACT_ERRNO", "kill": "SCMP_ACT_KILL_PROCESS"}
    rules = [
        {
            "names": list(rule.names),
            "action": actions[rule.action],
            **({"errnoRet": rule.errno} if rule.action == "errno" else {}),
            "args": [
                {"index": test.index, "op": _OCI_OPERATORS[test.op], "value": a, "valueTwo": b}
                for test in rule.tests
                for a, b in (_data(test),)
            ],
        }
        for rule in policy.rules
    ]
    return {**default, "architectures": [ARCHITECTURES[platform.machine()]], "syscalls": rules}
