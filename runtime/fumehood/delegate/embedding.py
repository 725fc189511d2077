"""Makes a process that is already running, a server with an event loop and threads, the worker of a runtime.

Forking a process that has threads copies locks that nobody will ever release, and everything that the server holds. So a
fresh, isolated interpreter is started, which forks broker and ledger as a command does, hands us their sockets, and waits for their
ends. Then this process gives up root for good, in every thread, which is checked thread by thread: a server that parses what boxes
say never does it with host privilege (rule 1).

The fresh interpreter gets none of the server's environment, descriptors or import path: it runs as root.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

import fumehood
from fumehood import confine, launch, wire
from fumehood.delegate.crew import BOOTSTRAP_FD
from fumehood.faults import FumehoodError
from fumehood.launch import Crew, Processes
from fumehood.policies.policy import Policies
from fumehood.reasons import Reason
from fumehood.settings import Settings

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# Our own package from where we have it, and nothing else from there: what shadows the standard library for a server
# must not do so for root.
_START = """
import sys, typing
sys.path.insert(0, sys.argv[1])
import fumehood
del sys.path[0]
from fumehood.delegate.crew import gather
gather(sys.argv[2])
"""
Loaded = TypeVar("Loaded")


@asynccontextmanager
async def embedded(chosen: Settings, as_caller: Callable[[], Loaded]) -> AsyncIterator[Processes[Loaded]]:
    """Start broker and ledger and become their worker for the body; afterwards wait until they have ended.

    `as_caller` runs before the rights go. There is no way back: the process stays without root after the body too.
    """
    mask = os.umask(0o022)
    try:
        launch.prepare(chosen)
    finally:
        os.umask(mask)
    crew, program = _start_crew(chosen.state.seccomp)
    try:
        crew.brief(chosen)
        loaded = as_caller()
        outward = launch.read_outward(chosen)
        policies = Policies(launch.read_policy(chosen))
        confine.give_up_root(chosen.worker_uid, chosen.worker_gid)
        confine.install_filter(program)
        confine.check_every_thread(chosen.worker_uid)
        yield Processes(chosen, crew.ledger, crew.broker, loaded, outward=outward, policies=policies)
    finally:
        # In a thread: boxes are removed meanwhile, and the server's other clients need not wait for that.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(crew.dismiss)


def _start_crew(filters: Path) -> tuple[Crew, bytes]:
    """The crew of a fresh process, and the worker's filter, which it has compiled."""
    ours, theirs = wire.pair()
    with ours, theirs:
        root = str(Path(fumehood.__file__).resolve().parents[1])
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), BOOTSTRAP_FD),
            ]
            argv = [sys.executable, "-I", "-c", _START, root, str(filters)]
            pid = os.posix_spawn(sys.executable, argv, _ENVIRONMENT, file_actions=actions)
        finally:
            os.close(null)
        theirs.close()
        got = wire.receive(ours)
    if got is None or len(got[1]) != 4:
        raise FumehoodError(Reason.INTERNAL, "the broker and the ledger could not be started")
    message, fds = got
    ledger, broker, brief_ledger, brief_broker = (socket.socket(fileno=fd) for fd in fds)
    briefings = {"ledger": brief_ledger, "broker": brief_broker}
    return Crew(ledger, broker, briefings, [pid], orders=None), bytes.fromhex(message["filter"])
