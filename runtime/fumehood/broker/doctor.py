"""What this host can and cannot enforce, as the broker sees it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from fumehood import stopping
from fumehood.broker import host as hosts
from fumehood.broker import netlink
from fumehood.broker.capacity import capacity
from fumehood.broker.cgroups import NEEDED
from fumehood.broker.host import Host
from fumehood.model import Limits
from fumehood.reach import NetworkLimits

_OVERLAY_IDMAP_KERNEL = (5, 19)
# Of the worker, which has the most: a box's streams and files, its gate's nine and more sockets, and the connections of a profile
# that sets no other limit, two each.
_TASK_FILES, _GATE_FILES, _CONNECTION_FILES = 64, 9, 2 * NetworkLimits().connections


def report(host: Host) -> dict[str, Any]:
    """Facts and findings: each finding has `what`, `ok`, `found` and, where it is not ok, `remedy`."""
    trees = host.trees
    stop = stopping.read(host.settings.state)
    kind = "hybrid" if trees.v1 and trees.v2 is not None else "v1" if trees.v1 else "v2"
    findings = [
        _finding("cgroups", not trees.missing(), f"{kind}: {', '.join(sorted({*NEEDED} - set(trees.missing())))}",
                 host.limits_remedy()),
        _finding("kernel", _kernel() >= _OVERLAY_IDMAP_KERNEL, platform.release(),
                 "Workspaces need id-mapped overlay layers: Linux 5.19 or newer."),
        _finding("user namespaces", _number("/proc/sys/user/max_user_namespaces") > 0,
                 f"max_user_namespaces {_number('/proc/sys/user/max_user_namespaces')}", "Set user.max_user_namespaces above 0."),
        _finding("seccomp", "seccomp" in Path("/proc/self/status").read_text().lower(), _seccomp_actions(),
                 "The kernel needs CONFIG_SECCOMP_FILTER."),
        _finding("id ranges", host.ids.count >= 2 * host.ids.size,
                 f"{host.ids.count // host.ids.size - 1} boxes from {host.ids.start}",
                 "Reserve more ids for `fumehood` in /etc/subuid and /etc/subgid."),
        _finding("inotify", host.inotify_share >= 2, f"{host.inotify_share} instances a box",
                 "Raise fs.inotify.max_user_instances, or lower `boxes`."),
        _finding("landlock", True, "present" if _has_landlock() else "absent: not used by this release", ""),
        _finding("swap", len(Path("/proc/swaps").read_text().splitlines()) < 2, _swap(),
                 "Memory of boxes can reach the disk: turn swap off, or encrypt it."),
        _finding("core dumps", not Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"),
                 Path("/proc/sys/kernel/core_pattern").read_text().strip(),
                 "A piped core handler sees crashes of unrelated programs; boxes and our processes dump none."),
        _finding("descriptors", _files() >= _TASK_FILES * host.settings.boxes, _descriptors(host.settings.boxes),
                 "Raise the limit of open files, or lower `boxes`."),
        _finding("network gate", _has_gate(), "sockets can be listed, packets seen" if _has_gate() else "not on this kernel",
                 "Boxes with a way out need CONFIG_INET_DIAG, CONFIG_PACKET and IPv6 in the kernel."),
        _finding("capacity", True, _capacity(host.settings.boxes), ""),
        _finding("calls", stop is None, "may begin" if stop is None else stop.line(), "`fumehood start` lets them begin again."),
        *host.more_findings(),
    ]  # fmt: skip
    return {
        "kernel": platform.release(),
        "cgroups": kind,
        "engines": dict(hosts.engine_report(host)),
        "versions": {name: _version(name) for name in ("crun", "runc", "docker")},
        "init": host.init_digest,
        "findings": findings,
    }


def _finding(what: str, ok: bool, found: str, remedy: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, **({} if ok else {"remedy": remedy})}


def _kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except OSError:
        return 0


def _seccomp_actions() -> str:
    try:
        return Path("/proc/sys/kernel/seccomp/actions_avail").read_text().strip()
    except OSError:
        return "actions unknown"


def _has_landlock() -> bool:
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as file:
        return any("landlock_create_ruleset" in line for line in file)


def _swap() -> str:
    return "on" if len(Path("/proc/swaps").read_text().splitlines()) > 1 else "off"


def _files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _descriptors(boxes: int) -> str:
    gated = _files() // (_TASK_FILES + _GATE_FILES + _CONNECTION_FILES)
    return f"{_files()} for {boxes} boxes; room for {gated} tasks with a gate of {_CONNECTION_FILES // 2} connections"


def _capacity(boxes: int) -> str:
    bears = capacity(boxes)
    one = Limits()
    memory_bytes, pids = bears.memory_bytes or 0, bears.pids or 0
    fit = min(boxes, memory_bytes // one.memory_bytes, int((bears.cpu or 0) / one.cpu), pids // (one.pids + 1))
    there = f"{memory_bytes // 2**20} MiB of memory, {bears.cpu:g} CPUs to promise, {pids} processes"
    return f"{fit} boxes of the default size at once: `boxes` {boxes}, {there}"


def _has_gate() -> bool:
    """Whether this kernel gives what a gate needs: IPv6, packet sockets, and the list of sockets that the read-back compares."""
    try:
        netlink.listeners(socket.IPPROTO_UDP)
        for family, kind in ((socket.AF_INET6, socket.SOCK_STREAM), (socket.AF_PACKET, socket.SOCK_DGRAM)):
            with contextlib.suppress(PermissionError):  # a user's, who may make it in a box; the kernel has it
                socket.socket(family, kind).close()
    except OSError:
        return False
    return True


def _version(name: str) -> str | None:
    program = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10, env=dict(os.environ))
    lines = said.stdout.splitlines()
    return lines[0] if lines else None
