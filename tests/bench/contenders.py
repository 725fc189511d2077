"""Who takes part, what each is measured against, and what is to be reached.

The order is the table's. Targets are those of the first release: the daemonless engine at most 1.3 times the bare runtime
on an equal bundle, Docker at most 1.15 times `docker run` (the goal is 1.0), both with the removal; the command line at
most 400 ms more than the call it makes, and its help within 400 ms.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import commands
from commands import PRINTS, WORK, CannotRunError, bare_runtime, bwrap, docker_run, forked, timed
from figures import Sample, Target
from ours import ENGINES, PROFILE, load, serve_calls

from fumehood import launch, wire
from fumehood.image.store import ImageStore
from fumehood.model import Frame, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the table before it is measured. `peer` is the contender it is compared with."""

    what: str
    peer: str | None = None
    target: Target | None = None


ENTRIES: dict[str, Entry] = {
    "true": Entry(what="/bin/true, no box"),
    "python": Entry(what="/usr/bin/python3, no box"),
    "bwrap": Entry(what="namespaces alone"),
    "crun": Entry(what="bare, equal bundle"),
    "runc": Entry(what="bare, equal bundle"),
    "docker-run": Entry(what="docker run --rm"),
    "oci-crun": Entry(what="run_call on crun", peer="crun", target=Target(ratio=1.3)),
    "oci-runc": Entry(what="run_call on runc", peer="runc", target=Target(ratio=1.3)),
    "docker": Entry(what="run_call on Docker", peer="docker-run", target=Target(ratio=1.15)),
    "cli-run": Entry(what="fumehood run (oci)", peer="oci-crun", target=Target(more_ms=400)),
    "cli-help": Entry(what="fumehood --help", target=Target(at_most_ms=400)),
}
# Beside our interpreter, not from PATH: the bench measures the installation it runs from.
_FUMEHOOD = str(Path(sys.executable).parent / "fumehood")


@dataclass(frozen=True, slots=True)
class Contender:
    """`once` is one measured run. It raises CannotRunError."""

    name: str
    once: Callable[[], Sample]


@contextmanager
def contenders(names: list[str], folder: Path) -> Iterator[list[Contender]]:
    """The contenders of these names, with the processes they need. Raises FumehoodError when fumehood is not set up."""
    # Forked first, and before anything heavy is imported: a worker's parent is as small as the command line's.
    calls_pid, calls = forked(serve_calls)
    bare_pid, bare = forked(commands.serve_bare)
    try:
        settings = launch.settings()
        loaded = load(settings)
        image = ImageStore(settings.state.images).resolve(loaded.image)
        if image is None:
            raise CannotRunError(f"the image `{loaded.image}` is not in {settings.state.images}: run ./scripts/setup")
        root = ImageStore(settings.state.images).rootfs(image.digest)
        document = commands.bare_bundle(_frame(loaded), root, settings.ids_start, loaded.limits)
        commands.write_bundle(folder, document)
        known: dict[str, Callable[[], Sample]] = {
            "true": partial(timed, ("/bin/true",), b""),
            "python": partial(timed, ("/usr/bin/python3", *WORK[1:]), PRINTS),
            "bwrap": partial(timed, bwrap(root), PRINTS),
            "crun": partial(_asked_bare, bare, bare_runtime("crun", folder)),
            "runc": partial(_asked_bare, bare, bare_runtime("runc", folder)),
            "docker-run": partial(timed, docker_run(image.docker_id or loaded.image), PRINTS),
            **{name: partial(_asked_call, calls, name) for name in ENGINES},
            "cli-run": partial(timed, (_FUMEHOOD, "run", "--profile", PROFILE, "--engine", "oci", "--", *WORK), PRINTS),
            "cli-help": partial(timed, (_FUMEHOOD, "--help"), None),
        }
        yield [Contender(name, known[name]) for name in names]
    finally:
        calls.close()
        bare.close()
        for pid in (calls_pid, bare_pid):
            os.waitpid(pid, 0)
        commands.remove_cgroups()


def _frame(loaded: Profile) -> Frame:
    """The part of a box's plan that a bare runtime is given too."""
    limits = loaded.limits
    return Frame(
        image="", docker_image=None, engine=None, runtime=None, cpu=limits.cpu, memory_bytes=limits.memory_bytes,
        pids=limits.pids, open_files=limits.open_files, tmp_bytes=limits.tmp_bytes, seccomp=loaded.seccomp,
        user_namespace=loaded.user_namespace, accept_risk=(),
    )  # fmt: skip


def _asked_bare(sock: socket.socket, argv: list[str]) -> Sample:
    return Sample(ms=_asked(sock, {"argv": argv}))


def _asked_call(sock: socket.socket, name: str) -> Sample:
    return Sample(**_asked(sock, {"engine": name}))


def _asked(sock: socket.socket, args: dict[str, Any]) -> Any:
    try:
        wire.send(sock, {"id": 0, "verb": "once", "args": args})
        got = wire.receive(sock)
    except wire.WireError as error:
        raise CannotRunError(str(error)) from error
    if got is None:
        raise CannotRunError("the process that runs it has ended")
    if "ok" not in got[0]:
        raise CannotRunError(got[0]["why"])
    return got[0]["ok"]
