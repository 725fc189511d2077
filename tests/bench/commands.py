"""Contenders that are one command each, and the process that runs bare runtimes on hosts where crun would refuse.

A command is timed from before its fork until it is reaped and its output read, and counts only when it printed what the
work prints: a contender that fails fast would look good. The bare runtimes get a bundle made from ours (`runtime_spec`),
with what we add from outside said in the runtime's own words: limits, /tmp, the same system call policy.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Sample

from fumehood import wire
from fumehood.broker import cgroups, host, mounting
from fumehood.broker.engines import Spec
from fumehood.broker.engines.oci import runtime_spec
from fumehood.broker.filters import oci_seccomp
from fumehood.execution import ENVIRONMENT
from fumehood.model import Frame, Limits

WORK = ("python3", "-c", "print(1)")
PRINTS = b"1\n"
CGROUP = "fumehood-bench"
_TIMEOUT_S = 60.0


class CannotRunError(Exception):
    """Why a contender gives no figures on this host."""


def timed(argv: Sequence[str], expected: bytes | None) -> Sample:
    """Run a command once. Raises CannotRunError when it fails or prints something else (`expected` None: anything)."""
    started = time.perf_counter()
    try:
        done = subprocess.run(argv, input=b"", capture_output=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRunError(f"{argv[0]}: {error}") from error
    spent_ms = (time.perf_counter() - started) * 1000
    if done.returncode != 0 or expected not in {None, done.stdout}:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise CannotRunError(f"{argv[0]} ended {done.returncode}: {words[-1][:200] if words else 'without a word'}")
    return Sample(ms=spent_ms)


def bwrap(root: Path) -> list[str]:
    """Bubblewrap with every namespace and a read-only root; it has no cgroups, and gets no filter."""
    places = ["--ro-bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/workspace"]
    env = [word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)]
    return [
        "bwrap", "--unshare-all", "--uid", "1000", "--gid", "1000", "--hostname", "box", "--cap-drop", "ALL", "--new-session",
        "--die-with-parent", *places, "--chdir", "/workspace", "--clearenv", *env, "--", *WORK,
    ]  # fmt: skip


def docker_run(image: str) -> list[str]:
    """What a person would type: Docker's defaults, and no network."""
    return ["docker", "run", "--rm", "--network", "none", image, *WORK]


def bare_runtime(runtime: str, folder: Path) -> list[str]:
    """Make, run and delete: in the foreground the runtime deletes the container as it ends."""
    return [runtime, "--root", str(folder / f"{runtime}-state"), "run", "--bundle", str(folder), f"bench-{runtime}"]


def bare_bundle(frame: Frame, root: Path, id_base: int, limits: Limits) -> dict[str, Any]:
    """Our own runtime specification with the work in init's place and the rest of the box in the runtime's words.

    The image's files belong to `id_base`, so the box of a bare runtime uses that range and needs no idmapped mount.
    """
    spec = Spec(task="bare", runtime_id="bench", frame=frame, folder=root, id_base=id_base)
    document = runtime_spec(spec, root, root, f"/{CGROUP}/bare")
    process, linux = document["process"], document["linux"]
    process.update(args=list(WORK), cwd="/workspace", env=[f"{name}={value}" for name, value in ENVIRONMENT.items()])
    process["rlimits"] = [
        {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        {"type": "RLIMIT_NOFILE", "hard": frame.open_files, "soft": frame.open_files},
    ]
    document["mounts"] = [mount for mount in document["mounts"] if mount["type"] != "bind"]
    document["mounts"] += [_tmpfs("/tmp", frame.tmp_bytes), _tmpfs("/workspace", limits.disk_bytes)]
    linux["seccomp"] = oci_seccomp(frame.seccomp)
    linux["resources"] = {
        "memory": {"limit": frame.memory_bytes, "swap": frame.memory_bytes},
        "cpu": {"quota": round(frame.cpu * 100_000), "period": 100_000},
        "pids": {"limit": frame.pids},
    }
    return document


def _tmpfs(place: str, size_bytes: int) -> dict[str, Any]:
    options = ["nosuid", "nodev", "mode=1777", f"size={size_bytes}"]
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options}


def write_bundle(folder: Path, document: Mapping[str, Any]) -> None:
    """Put the bundle where both runtimes find it."""
    (folder / "config.json").write_text(json.dumps(document))


def serve_bare(sock: socket.socket) -> None:
    """Time commands for the other end, without the v2 tree of a hybrid host in sight: crun 1.8 refuses to run beside it."""
    host._own_mount_namespace()
    trees = cgroups.find_trees()
    if trees.v1 and trees.v2 is not None:
        mounting.detach(str(trees.v2))
    while (got := wire.receive(sock)) is not None:
        try:
            reply: dict[str, Any] = {"ok": timed(got[0]["args"]["argv"], PRINTS).ms}
        except CannotRunError as error:
            reply = {"why": str(error)}
        wire.send(sock, {"id": 0, **reply})


def remove_cgroups() -> None:
    """Take away the directories that bare runtimes leave: crun forgets some where controllers were hidden from it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for place in (line.split(" ")[4] for line in lines if " - cgroup" in line):
        for folder in (Path(place) / CGROUP / "bare", Path(place) / CGROUP):
            if folder.is_dir():
                folder.rmdir()


def forked(serve: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """A child that serves the other end of a socket until ours is closed: its pid and our end."""
    ours, theirs = wire.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        serve(theirs)
        status = 0
    except Exception:  # noqa: BLE001 - the last words of a process of ours
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)
