"""What the kernel really applied to a box, read from the host and compared with the plan (rule 15).

`gather` reads the held tool process from /proc before its first instruction; `judge` is pure and returns one sentence for
each thing that is not as planned. Content is compared, not mode: an allow-all filter also reads `Seccomp: 2`, so the filter's
bytes are (or, where the kernel shows them to nobody but root, test calls are answered as these bytes say: `proving.py`);
a mount is accepted only when its place, kind and flags are all expected, so a stray mount is a mismatch.
What `gather` returns goes into the record as it is. Source: CVE-2025-52881 (a runtime's writes can be redirected), proc(5).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fumehood.broker import processes
from fumehood.broker.cgroups import Group
from fumehood.broker.engines import MASKED, READ_ONLY
from fumehood.broker.ids import RANGE

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The plan's side of the comparison. `workspace` and `mounts` tell which places are mounted, and `rw` or `ro`.

    `workspace_kind` is the file system there; None for `direct`, which is the host's own. `supplied` are the places of the files that
    came with the call, each with what it is of their file system.
    """

    uid: int
    gid: int
    user_namespace: bool
    id_base: int
    id_count: int = RANGE
    filter_digest: str
    memory_bytes: int
    pids: int
    cpu_quota_us: int
    open_files: int
    workspace: str | None
    workspace_kind: str | None
    mounts: tuple[str, ...]
    bound_devices: tuple[str, ...] = ()
    supplied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters on a process, oldest first, and how that is known; no `proof` means the kernel showed the bytes."""

    programs: Sequence[bytes]
    proof: Mapping[str, Any] | None = None


def filter_digest(program: bytes) -> str:
    """`sha256:<hex>` of a classic BPF program."""
    return "sha256:" + hashlib.sha256(program).hexdigest()


def gather(pid: int, pidfd: int, group: Group, filters: Filters) -> dict[str, Any]:
    """Read everything `judge` compares. The caller holds the pidfd; raises OSError or BoxFailed."""
    status = processes.status_fields(pid)
    found = {
        "uid": status["Uid"].split(),
        "gid": status["Gid"].split(),
        "groups": status["Groups"].split(),
        "capabilities": {name: int(status[name], 16) for name in _CAPABILITY_SETS},
        "no_new_privs": status["NoNewPrivs"] == "1",
        "seccomp": [filter_digest(program) for program in filters.programs],
        "namespaces": _namespaces(pid),
        "host_namespaces": _namespaces(os.getpid()),
        "uid_map": processes.read(pid, "uid_map").split(),
        "gid_map": processes.read(pid, "gid_map").split(),
        "mounts": parse_mounts(processes.read(pid, "mountinfo")),
        "rlimits": parse_limits(processes.read(pid, "limits")),
        "descriptors": _descriptors(pid),
        "interfaces": [line.split(":")[0].strip() for line in processes.read(pid, "net/dev").splitlines()[2:]],
        "cgroup": group.limits(),
        "cgroup_member": group.holds(pid),
    }
    if filters.proof is not None:
        found["seccomp_proof"] = dict(filters.proof)
    found["alive"] = processes.alive(pidfd)
    return found


def judge(expected: Expected, found: Mapping[str, Any]) -> list[str]:
    """What differs from the plan, a sentence each; empty when all is as planned."""
    wrong: list[str] = []

    def want(name: str, actual: object, planned: object) -> None:
        if actual != planned:
            wrong.append(f"{name} is {actual!r}, planned {planned!r}")

    want("alive", found["alive"], True)
    want("uid", found["uid"], [str(expected.uid)] * 4)
    want("gid", found["gid"], [str(expected.gid)] * 4)
    if not set(found["groups"]) <= {str(expected.gid)}:
        wrong.append(f"supplementary groups {found['groups']!r}, planned none")
    for name, value in found["capabilities"].items():
        want(name, value, 0)
    want("no_new_privs", found["no_new_privs"], True)
    want("seccomp filters", found["seccomp"], [expected.filter_digest])
    wrong.extend(judge_proof(found.get("seccomp_proof")))
    for name in NAMESPACES:
        shared = found["namespaces"][name] == found["host_namespaces"][name]
        if name == "user":
            want("own user namespace", not shared, expected.user_namespace)
        elif shared:
            wrong.append(f"the {name} namespace is the host's")
    if expected.user_namespace:
        planned_map = ["0", str(expected.id_base), str(expected.id_count)]
        want("uid_map", found["uid_map"], planned_map)
        want("gid_map", found["gid_map"], planned_map)
    wrong.extend(judge_mounts(expected, found["mounts"]))
    want("RLIMIT_CORE", found["rlimits"].get("Max core file size"), ["0", "0"])
    want("RLIMIT_NOFILE", found["rlimits"].get("Max open files"), [str(expected.open_files)] * 2)
    extra = [fd for fd in found["descriptors"] if fd["number"] > 2 and not fd["close_on_exec"]]
    want("descriptors that outlive exec", extra, [])
    want("network interfaces", found["interfaces"], ["lo"])
    want(
        "cgroup limits",
        found["cgroup"],
        {"cpu_quota_us": expected.cpu_quota_us, "memory_bytes": expected.memory_bytes, "pids": expected.pids},
    )
    want("member of its cgroup", found["cgroup_member"], True)
    return wrong


def judge_proof(proof: Mapping[str, Any] | None) -> list[str]:
    """Compare what stands for a filter's bytes with what they say (`proving.py`); None when the kernel showed the bytes."""
    if proof is None:
        return []
    wrong = [] if proof["planned"] else ["no test system call shows the filter"]
    if (proof["mode"], proof["filters"]) != ("2", "1"):
        wrong.append(f"seccomp mode is {proof['mode']} with {proof['filters']} filters, planned 2 with 1")
    differ = {name: answer for name, answer in proof["answers"].items() if answer != proof["planned"].get(name)}
    if differ or len(proof["answers"]) != len(proof["planned"]):
        wrong.append(f"test system calls were answered {differ!r}, planned {proof['planned']!r}")
    return wrong


def judge_mounts(expected: Expected, mounts: list[dict[str, Any]]) -> list[str]:
    """Compare the mount table with the only one a box may have."""
    wrong: list[str] = []
    # The file system's kind beside its flags: a host directory in /tmp's place may well have the flags of ours.
    needed: dict[str, tuple[str | None, set[str]]] = {
        "/": (None, {"ro"}),
        "/proc": ("proc", {"nosuid", "nodev", "noexec"}),
        "/proc/sys": ("proc", {"ro"}),
        "/dev": ("tmpfs", {"ro", "nosuid", "noexec"}),
        "/dev/shm": ("tmpfs", {"rw", "nosuid", "nodev"}),  # noqa: S108 - a place inside the box
        "/tmp": ("tmpfs", {"rw", "nosuid", "nodev"}),  # noqa: S108 - a place inside the box
    }
    if expected.workspace is not None:
        needed["/workspace"] = (expected.workspace_kind, {expected.workspace, "nosuid", "nodev"})
    if expected.mounts:
        needed["/mnt"] = ("tmpfs", {"ro", "nosuid", "nodev"})
    needed.update({f"/mnt/{name}": ("overlay", {"ro", "nosuid", "nodev"}) for name in expected.mounts})
    devices = {f"/dev/{name}": f"/{name}" for name in expected.bound_devices}
    needed.update(dict.fromkeys(devices, (None, {"ro", "nosuid", "noexec"})))
    needed.update(dict.fromkeys(expected.supplied, ("tmpfs", {"ro", "nosuid", "nodev", "noexec"})))
    seen: set[str] = set()
    for mount in mounts:
        place, flags = mount["place"], set(mount["flags"])
        if place in needed:
            if place in seen:
                wrong.append(f"{place} is mounted twice")
            seen.add(place)
            kind, planned = needed[place]
            if kind not in {None, mount["kind"]}:
                wrong.append(f"{place} is {mount['kind']}, planned {kind}")
            root = {**devices, **expected.supplied}.get(place, mount["root"])
            if mount["root"] != root or (place in devices and mount["kind"] not in {"devtmpfs", "tmpfs"}):
                wrong.append(f"{place} is {mount['root']} of a {mount['kind']}, planned {root}")
            if not planned <= flags:
                wrong.append(f"{place} lacks {', '.join(sorted(planned - flags))}")
        elif not _is_mask(mount):
            wrong.append(f"unplanned mount at {place} ({mount['kind']})")
    wrong.extend(f"{place} is not mounted" for place in needed if place not in seen)
    return wrong


def _is_mask(mount: Mapping[str, Any]) -> bool:
    """A mask of ours below /proc: proc itself made read-only, an empty read-only tmpfs, or /dev/null."""
    if mount["place"] in READ_ONLY:
        return mount["kind"] == "proc" and mount["root"] == mount["place"].removeprefix("/proc") and "ro" in mount["flags"]
    if mount["place"] not in MASKED:
        return False
    if mount["root"] == "/null":
        return mount["kind"] in {"devtmpfs", "tmpfs"}
    return mount["kind"] == "tmpfs" and mount["root"] == "/" and "ro" in mount["flags"]


def parse_mounts(mountinfo: str) -> list[dict[str, Any]]:
    """Place, root, kind and per-mount flags of every line of mountinfo (proc(5))."""
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        mounts.append(
            {"place": fields[4], "root": fields[3], "kind": right.split(" ")[0], "flags": sorted(fields[5].split(","))}
        )
    return mounts


def parse_limits(limits: str) -> dict[str, list[str]]:
    """Soft and hard value by name from /proc/PID/limits."""
    return {line[:25].strip(): line[25:].split()[:2] for line in limits.splitlines()[1:]}


def _namespaces(pid: int) -> dict[str, str]:
    # A Path takes five times as long as the kernel does.
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}  # noqa: PTH115


def _descriptors(pid: int) -> list[dict[str, Any]]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - as above
        info = processes.read(pid, f"fdinfo/{name}")
        flags = next(int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags:"))
        found.append({"number": int(name), "close_on_exec": bool(flags & os.O_CLOEXEC)})
    return sorted(found, key=lambda fd: fd["number"])
