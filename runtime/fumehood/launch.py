"""Starts a runtime: forks the broker and the ledger, and turns the calling process into the worker.

Order matters. The lock files, sockets and settings are made while we are still root; broker and ledger are forked before anything
heavy is imported; then this process gives up its uid, its groups, every capability, and the right to dump, trace or
execute, and only then may it parse a stranger's byte. Where there is no privilege to separate (not root), the three are
still three processes, of one user.
"""

from __future__ import annotations

import gc
import os
import pwd
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fumehood import config, confine, wire
from fumehood.faults import FumehoodError
from fumehood.model import task_id
from fumehood.reasons import Reason
from fumehood.settings import Settings
from fumehood.state import PREFIX, VERSION, state_folder
from fumehood.subids import subordinate_range

_FOLDERS = {"bin": 0o755, "images": 0o755, "seccomp": 0o700, "ids": 0o700, "locks": 0o700, "pending": 0o700, "run": 0o711}
_EXIT_DEADLINE_S = 15.0


Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Processes(Generic[Loaded]):
    """The worker's ends of the sockets to the two other processes, and what was loaded with the caller's own rights."""

    settings: Settings
    ledger: socket.socket
    broker: socket.socket | None
    loaded: Loaded

    @property
    def privileged(self) -> socket.socket:
        """The socket to the broker. Raises FumehoodError when the runtime was started without one."""
        if self.broker is None:
            raise FumehoodError(Reason.INTERNAL, "the runtime was started without its broker")
        return self.broker


def settings(explicit_config: str | None = None, *, operator: bool = True) -> Settings:
    """Find the configuration, the state folder and the uids. Raises FumehoodError; touches nothing."""
    uid = os.getuid()
    found = config.load(explicit_config, os.environ, uid)
    state = state_folder(os.environ, uid, found.state)
    if uid != 0:
        raise FumehoodError(
            Reason.UNENFORCEABLE,
            "separate processes, workspaces as transactions and cgroup limits need root on this release",
            remedy="Run fumehood as root; `fumehood doctor` lists what each part needs.",
        )
    worker, ledger = _user(PREFIX), _user(f"{PREFIX}-ledger")
    ids = subordinate_range(Path("/etc/subuid"), PREFIX)
    if ids is None or ids != subordinate_range(Path("/etc/subgid"), PREFIX):
        raise FumehoodError(
            Reason.UNENFORCEABLE, f"/etc/subuid and /etc/subgid reserve no equal range for `{PREFIX}`", remedy="Run ./scripts/setup."
        )
    return Settings(
        state=state,
        runtime_id=task_id(time.time_ns() // 1_000_000, os.urandom(10)),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        caller_uid=uid,
        caller_name=pwd.getpwuid(uid).pw_name,
        worker_uid=worker.pw_uid,
        worker_gid=worker.pw_gid,
        ledger_uid=ledger.pw_uid,
        ledger_gid=ledger.pw_gid,
        ids_start=ids[0],
        ids_count=ids[1],
        workspace_roots=None if operator else found.workspace_roots,
        mount_roots=found.mount_roots,
        engine=found.engine,
        boxes=found.boxes,
        docker_host=found.docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock",
        accept_risk=found.accept_risk,
        profile_folders=found.profile_folders,
        runtimes=found.runtimes,
    )


@contextmanager
def serving(chosen: Settings, *, broker: bool = True) -> Iterator[Processes[None]]:
    """`started`, for commands that need nothing of the caller's."""
    with started(chosen, lambda: None, broker=broker) as processes:
        yield processes


@contextmanager
def started(
    chosen: Settings, as_caller: Callable[[], Loaded], *, broker: bool = True
) -> Iterator[Processes[Loaded]]:
    """Fork the others and become the worker for the body; afterwards wait until they have cleaned up and ended.

    `as_caller` runs after the forks and before the rights go: it loads what the caller may read and the worker may
    not (an operator's profile), while the others start.
    """
    prepare(chosen)
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    worker_ledger, ledger_worker = wire.pair()
    broker_ledger, ledger_broker = wire.pair()
    worker_broker, broker_worker = wire.pair()
    everything = [worker_ledger, ledger_worker, broker_ledger, ledger_broker, worker_broker, broker_worker]
    children = [_fork(_ledger, chosen, [ledger_worker, ledger_broker], everything)]
    if broker:
        children.append(_fork(_broker, chosen, [broker_worker, broker_ledger], everything))
    for end in (ledger_worker, ledger_broker, broker_ledger, broker_worker):
        end.close()
    if not broker:
        worker_broker.close()
    try:
        loaded = as_caller()
        program = confine.worker_filter(chosen)
        confine.give_up_root(chosen.worker_uid, chosen.worker_gid)
        confine.install_filter(program)
        yield Processes(chosen, worker_ledger, worker_broker if broker else None, loaded)
    finally:
        worker_broker.close()
        worker_ledger.close()
        _await(children)


def prepare(chosen: Settings) -> None:
    """Make the state folder's skeleton. Raises FumehoodError(STATE_NEWER | STATE_UNAVAILABLE)."""
    state = chosen.state
    try:
        state.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        _check_owner(state.root)
        if state.version.exists():
            found = int(state.version.read_text())
            if found > VERSION:
                raise FumehoodError(Reason.STATE_NEWER, f"{state.root} has schema {found}, this fumehood knows {VERSION}")
        else:
            temporary = state.root / f".version.{os.getpid()}"
            temporary.write_text(f"{VERSION}\n")
            temporary.rename(state.version)
        for name, mode in _FOLDERS.items():
            folder = state.root / name
            if not folder.is_dir():
                folder.mkdir(mode=mode, exist_ok=True)
                folder.chmod(mode)
        if not state.ledger.is_dir():
            state.ledger.mkdir(mode=0o700, exist_ok=True)
            os.chown(state.ledger, chosen.ledger_uid, chosen.ledger_gid)
    except (OSError, ValueError) as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{state.root}: {error}") from error


def _ledger(chosen: Settings, ends: list[socket.socket]) -> None:
    confine.give_up_root(chosen.ledger_uid, chosen.ledger_gid)
    from fumehood.ledger.serve import serve

    serve(ends, chosen.state.ledger, chosen.runtime_id)


def _broker(chosen: Settings, ends: list[socket.socket]) -> None:
    from fumehood.broker.serve import serve

    serve(chosen, *ends)


def _fork(
    serve: Callable[[Settings, list[socket.socket]], None],
    chosen: Settings, ends: list[socket.socket], everything: list[socket.socket],
) -> int:  # fmt: skip
    """The pid of a child that serves on `ends` and then ends, without the parent's cleanup handlers."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _keep_only(ends, everything)
        serve(chosen, ends)
        status = 0
    except Exception:  # noqa: BLE001 - the last words of a process of ours
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _keep_only(wanted: list[socket.socket], everything: list[socket.socket]) -> None:
    """Close the other processes' ends, and let go of the operator's stdin and stdout: they are the worker's."""
    for end in everything:
        if end not in wanted:
            end.close()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _await(children: list[int]) -> None:
    """Reap the others. They end by themselves when our ends are closed; we do not outlive a stuck one for ever."""
    deadline = time.monotonic() + _EXIT_DEADLINE_S
    for pid in children:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
        finally:
            os.close(pidfd)


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise FumehoodError(
            Reason.UNENFORCEABLE, f"there is no system user `{name}` to run unprivileged", remedy="Run ./scripts/setup."
        ) from None


def _check_owner(folder: Path) -> None:
    """A state folder that someone else could change is no place for root's files."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{folder} must be yours and not writable by others")
