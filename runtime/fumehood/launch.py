"""Starts a runtime: forks the broker and the ledger, and turns the calling process into the worker.

Order matters. The lock files, sockets and settings are made while we are still root; broker and ledger are forked before anything
heavy is imported; then this process gives up its uid, its groups, every capability, and the right to dump, trace or
execute, and only then may it parse a stranger's byte. Where there is no privilege to separate (not root), the three are
still three processes, of one user (`accounts.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from fumehood import accounts, config, confine, operating, wire
from fumehood.approvals.config import ApprovalsConfig
from fumehood.faults import FumehoodError
from fumehood.gateway_config import PinMode
from fumehood.model import task_id
from fumehood.outward_config import Given, OutwardConfig
from fumehood.policies.policy import Policies, Policy
from fumehood.policies.reading import paths as policy_files
from fumehood.reasons import Reason
from fumehood.safe_files import inside, open_to_append
from fumehood.settings import Settings
from fumehood.state import VERSION, StateFolder

_FOLDERS = {
    "bin": 0o755, "images": 0o755, "seccomp": 0o700, "profiles": 0o700, "ids": 0o700, "locks": 0o700, "pending": 0o700,
    "run": 0o711,
}  # fmt: skip
_EXIT_DEADLINE_S = 15.0
_OPEN_FILES = 65_536


Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Processes(Generic[Loaded]):
    """The worker's ends of the sockets to the two other processes, and what was loaded with the caller's own rights.

    `outward` has the operator's secrets, where they were asked for, and `policies` what calls are decided by.
    """

    settings: Settings
    ledger: socket.socket
    broker: socket.socket | None
    loaded: Loaded
    operator: socket.socket | None = None
    outward: Given = field(default_factory=Given)
    policies: Policies = field(default_factory=Policies)

    @property
    def privileged(self) -> socket.socket:
        """The socket to the broker. Raises FumehoodError when the runtime was started without one."""
        if self.broker is None:
            raise FumehoodError(Reason.INTERNAL, "the runtime was started without its broker")
        return self.broker


def settings(
    explicit_config: str | None = None, *, operator: bool = True, found: config.Config | None = None
) -> Settings:
    """Find the configuration (unless it was found already), the state folder and the uids. Raises FumehoodError."""
    uid = os.getuid()
    found = found or config.load(explicit_config, os.environ, uid)
    account = accounts.of_root(os.environ, found) if uid == 0 else accounts.of_user(os.environ, found, uid)
    return Settings(
        state=account.state,
        runtime_id=task_id(time.time_ns() // 1_000_000, os.urandom(10)),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        caller_uid=uid,
        caller_name=account.name,
        worker_uid=account.worker[0],
        worker_gid=account.worker[1],
        ledger_uid=account.ledger[0],
        ledger_gid=account.ledger[1],
        ids_start=account.ids[0],
        ids_count=account.ids[1],
        workspace_roots=None if operator else found.workspace_roots,
        mount_roots=found.mount_roots,
        engine=found.engine,
        boxes=found.boxes,
        docker_host=found.docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock",
        accept_risk=found.accept_risk,
        config_file=found.file,
        profile_folders=found.profile_folders,
        runtimes=found.runtimes,
        rootless=uid != 0,
        subuids=account.subuids,
        subgids=account.subgids,
        image_folder=account.image_folder,
        results_kept_s=found.results_kept_s,
        queue_wait_s=found.queue_wait_s,
        queue_most=found.queue_most,
        witnesses=found.witnesses,
        **_approving(found, uid, account.name),
        review=found.gateway is not None and found.gateway.pins is PinMode.REVIEW,
        review_otherwise=() if found.gateway is None else found.gateway.pinned_otherwise,
        outward=replace(found.outward, webhook=None if found.approvals is None else found.approvals.webhook),
        policy=found.policy,
    )


def _approving(found: config.Config, uid: int, name: str) -> dict[str, Any]:
    """Who approves, and how: the state folder's owner where nobody is named. Raises FumehoodError."""
    said = found.approvals or ApprovalsConfig()
    for who, kind, value in said.approvers:
        if kind == "uid" and value != str(uid):
            detail = f"approvals.approvers.{who}: uid {value} does not own the state folder, and cannot answer there"
            remedy = "Give another user a `key`: a signed answer comes by any way (docs/approvals.md)."
            raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy=remedy)
    return {
        "approvers": said.approvers or ((name, "uid", str(uid)),),
        "approval_audience": said.audience,
        "approval_callback": said.callback,
        "own_approvals": said.own,
        "approval_wait_s": said.wait_s,
        "approval_expire_s": said.expire_s,
    }


def with_workspace(chosen: Settings, *directories: int | None) -> Settings:
    """Tell the broker, before a stranger's byte is parsed, the directories that the operator gives, and no others.

    The worker passes them on later, and a worker that was taken over would pass others. Where roots are configured they hold.
    """
    given = tuple(str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in directories if fd is not None)
    witnesses = [where for kind, where, _ in chosen.witnesses if kind == "file"]
    policies = () if chosen.policy is None or not given else policy_files(chosen.policy, chosen.caller_uid)
    for file in (*filter(None, [chosen.config_file]), *chosen.outward.files, *witnesses, *policies):
        if any(inside(way(file), path) for path in given for way in (os.path.normpath, os.path.realpath)):
            raise FumehoodError(
                Reason.CONFIG_UNSAFE, f"{file} lies inside the workspace, where a box could have written it",
                remedy="Keep the configuration outside the directories that boxes write to.",
            )  # fmt: skip
    if chosen.workspace_roots is not None:
        return chosen
    return replace(chosen, workspace_roots=given)


@contextmanager
def serving(chosen: Settings, *, broker: bool = True) -> Iterator[Processes[None]]:
    """`started`, for commands that carry no calls and need nothing of the caller's."""
    with started(replace(chosen, outward=OutwardConfig(), policy=None), lambda: None, broker=broker) as processes:
        yield processes


@contextmanager
def started(
    chosen: Settings, as_caller: Callable[[], Loaded], *, broker: bool = True, reread: operating.Reread | None = None
) -> Iterator[Processes[Loaded]]:
    """Fork the others and become the worker for the body; afterwards wait until they have cleaned up and ended.

    `as_caller` runs after the forks and before the rights go: it loads what the caller may read and the worker may
    not (an operator's profile), while the others start. With `reread` a process stays that can do it again.
    """
    os.umask(0o022)  # a stricter one would keep boxes out of folders that are made for them
    crew = _waiting.pop() if broker and _waiting else assemble(broker=broker)
    try:
        prepare(chosen)
        crew.brief(chosen)
        loaded = as_caller()
        operator = crew.keep_operator(chosen, reread)
        outward = read_outward(chosen)
        policies = Policies(read_policy(chosen))
        program = confine.worker_filter(chosen.state.seccomp)
        confine.give_up_root(chosen.worker_uid, chosen.worker_gid)
        if chosen.rootless:
            confine.give_up_files(chosen.images)
        confine.install_filter(program)
        yield Processes(chosen, crew.ledger, crew.broker, loaded, operator, outward, policies)
    finally:
        crew.dismiss()


@contextmanager
def keeping(chosen: Settings) -> Iterator[socket.socket]:
    """A process of the ledger's uid that carries out one order about the evidence, and this one without rights, for the body."""
    from fumehood.ledger.keeper import serve

    def keep(sock: socket.socket, _: list[socket.socket]) -> None:
        confine.give_up_root(chosen.ledger_uid, chosen.ledger_gid)
        serve(sock, chosen.state.ledger)

    os.umask(0o022)
    prepare(chosen)
    ours, theirs = wire.pair()
    sys.stdout.flush()
    children = [_fork(keep, theirs, [])]
    theirs.close()
    try:
        program = confine.worker_filter(chosen.state.seccomp)
        confine.give_up_root(chosen.worker_uid, chosen.worker_gid)
        if chosen.rootless:
            confine.give_up_files(chosen.images)
        confine.install_filter(program)
        yield ours
    finally:
        ours.close()
        _await(children)


def read_outward(chosen: Settings) -> Given:
    """The operator's secrets and authorities, for the worker: when nobody else will be forked, and while they can be read."""
    if chosen.outward == OutwardConfig():
        return Given()
    from fumehood.outward_secrets import read

    return read(chosen.outward, os.environ, chosen.caller_uid)


def read_policy(chosen: Settings) -> Policy | None:
    """What calls are decided by, parsed while its files can be read and its library can be loaded. Raises FumehoodError."""
    if chosen.policy is None:
        return None
    from fumehood.policies.reading import read

    return read(chosen.policy, chosen.caller_uid)


@dataclass(slots=True)
class Crew:
    """The two other processes, forked and importing what they need; they begin when they are briefed, or end unbriefed."""

    ledger: socket.socket
    broker: socket.socket | None
    briefings: dict[str, socket.socket]
    children: list[int]
    orders: socket.socket | None = None
    operator: socket.socket | None = None

    def brief(self, chosen: Settings) -> None:
        """Tell each what it is to serve.

        The broker alone gets the runtime's lock, which is free when the broker has ended, and a pidfd of ours, to end us by.
        """
        fields = {**asdict(chosen), "state": str(chosen.state.root)}
        del fields["outward"], fields["policy"]
        held = {"ledger": self._start_witness(chosen)}
        if "broker" in self.briefings:
            held["broker"] = [_take_lock(chosen), os.pidfd_open(os.getpid())]
        try:
            for name, sock in self.briefings.items():
                wire.send(sock, fields, held[name])
                sock.close()
        except wire.WireError as error:
            raise FumehoodError(Reason.BROKER_DIED, f"the {name} ended before it began", remedy="Start again.") from error
        finally:
            wire.close_all([fd for fds in held.values() for fd in fds])

    def _start_witness(self, chosen: Settings) -> list[int]:
        """Fork the process that takes checkpoints outside, if there is anybody to take them to; the ledger's end of its socket."""
        if not chosen.witnesses:
            return []
        from fumehood import witnessing

        files = [_to_append(where, chosen.caller_uid) for kind, where, _ in chosen.witnesses if kind == "file"]
        program = confine.worker_filter(chosen.state.seccomp)

        def witness(sock: socket.socket, _: list[socket.socket]) -> None:
            confine.give_up_root(chosen.worker_uid, chosen.worker_gid)
            if chosen.rootless:
                confine.give_up_files(chosen.images)
            confine.install_filter(program)
            witnessing.serve(sock)

        ours, theirs = wire.pair()
        self.children.append(_fork(witness, theirs, []))
        theirs.close()
        witnessing.brief(ours, [(kind, where) for kind, where, _ in chosen.witnesses], files)
        wire.close_all(files)
        return [ours.detach()]

    def keep_operator(self, chosen: Settings, reread: operating.Reread | None) -> socket.socket | None:
        """Fork the operator process if there is something to read again; who is no operator loses the way to give orders."""
        orders, self.orders = self.orders, None
        if orders is not None and reread is not None:
            self.operator, theirs = wire.pair()
            allowed = operating.Allowed(chosen.workspace_roots or (), chosen.mount_roots)
            self.children.append(_fork(lambda worker, ends: operating.serve(worker, ends[0], allowed, reread), theirs, [orders]))
            theirs.close()
        if orders is not None:
            orders.close()
        return self.operator

    def dismiss(self) -> None:
        """Let go of every socket, which ends them, and wait until they have cleaned up."""
        for sock in (self.ledger, self.broker, self.orders, self.operator, *self.briefings.values()):
            if sock is not None:
                sock.close()
        _await(self.children)


_waiting: list[Crew] = []


def assemble_ahead() -> None:
    """Fork the others before the command line is even parsed: they import while we do. `started` takes them over.

    Whatever ends before that (`--help`, a refusal) ends them too, by the end of their sockets.
    """
    _waiting.append(assemble(broker=True))


def assemble(*, broker: bool) -> Crew:
    """Fork the ledger and, if wanted, the broker, connected to each other and to us."""
    _raise_open_files()
    sys.stdout.flush()
    sys.stderr.flush()
    pairs = {name: wire.pair() for name in ("ledger", "broker", "between", "orders", "brief ledger", "brief broker")}
    everything = [end for ends in pairs.values() for end in ends]
    children = [_fork(_ledger, pairs["brief ledger"][1], [pairs["ledger"][1], pairs["between"][1]])]
    briefings = {"ledger": pairs["brief ledger"][0]}
    if broker:
        ends = [pairs["broker"][1], pairs["between"][0], pairs["orders"][1]]
        children.append(_fork(_broker, pairs["brief broker"][1], ends))
        briefings["broker"] = pairs["brief broker"][0]
    ours = [pairs["ledger"][0], *briefings.values(), *([pairs["broker"][0], pairs["orders"][0]] if broker else [])]
    for end in everything:
        if end not in ours:
            end.close()
    asking, ordering = (pairs[name][0] if broker else None for name in ("broker", "orders"))
    return Crew(pairs["ledger"][0], asking, briefings, children, ordering)


def _raise_open_files() -> None:
    """Let us and those we fork hold as many descriptors as we may: a gate takes nine and more, each connection two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(hard, _OPEN_FILES) if os.getuid() == 0 else hard, hard):
        with contextlib.suppress(OSError, ValueError):  # a container's root may raise no hard limit; `doctor` says what there is
            if soft < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return


def prepare(chosen: Settings) -> None:
    """Make the state folder's skeleton. Raises FumehoodError(STATE_NEWER | STATE_UNAVAILABLE)."""
    state = chosen.state
    # Boxes of root's pass through its folders; a user's are mounted elsewhere, so they are the user's alone.
    mask = 0o700 if chosen.rootless else 0o777
    try:
        state.root.mkdir(mode=0o711 & mask, parents=True, exist_ok=True)
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
                folder.mkdir(mode=mode & mask, exist_ok=True)
                folder.chmod(mode & mask)
        if not state.ledger.is_dir():
            state.ledger.mkdir(mode=0o700, exist_ok=True)
            os.chown(state.ledger, chosen.ledger_uid, chosen.ledger_gid)
    except (OSError, ValueError) as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{state.root}: {error}") from error


def _take_lock(chosen: Settings) -> int:
    """Make this runtime's folder, its lock held, before the worker can open a record (rule 5).

    Another's sweep takes a runtime without a held lock for dead, and closes its records as lost.
    """
    folder = chosen.state.run / chosen.runtime_id
    try:
        folder.mkdir(mode=0o711)
        # Named when it is held: between the two nobody else can take it.
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / ".lock").rename(folder / "lock")
    except OSError as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{folder}: {error.strerror}") from error
    return lock


def _to_append(path: str, uid: int) -> int:
    """A witness's file. Raises FumehoodError."""
    try:
        return open_to_append(path, uid)
    except FileNotFoundError:
        folder = Path(path).parent
        raise FumehoodError(Reason.CONFIG_INVALID, f"evidence.witness: there is no folder {folder}", remedy="Make it first.") from None


def _ledger(briefing: socket.socket, ends: list[socket.socket]) -> None:
    from fumehood.ledger.approving import Approving
    from fumehood.ledger.outside import Outside
    from fumehood.ledger.pinning import Pinning
    from fumehood.ledger.serve import serve

    gc.freeze()  # what was imported stays for good
    briefed = _briefed(briefing)
    if briefed is not None:
        chosen, fds = briefed
        confine.give_up_root(chosen.ledger_uid, chosen.ledger_gid)
        outside = Outside(socket.socket(fileno=fds[0]) if fds else None, chosen.witnesses)
        how_pins = Pinning(review=chosen.review, otherwise=frozenset(chosen.review_otherwise), decides=chosen.decides)
        how_approved = Approving(
            approvers=chosen.approvers, audience=chosen.approval_audience, own=chosen.own_approvals, uid=chosen.caller_uid,
            account=chosen.caller_name, decides=chosen.decides,
        )  # fmt: skip
        serve(
            ends, chosen.state.ledger, chosen.runtime_id, chosen.results_kept_s, outside, how_pins, how_approved,
            takes_senders=chosen.takes_senders,
        )  # fmt: skip


def _broker(briefing: socket.socket, ends: list[socket.socket]) -> None:
    from fumehood.broker.heap import keep_small
    from fumehood.broker.serve import serve

    keep_small()
    gc.freeze()  # what was imported stays for good
    briefed = _briefed(briefing)
    if briefed is not None:
        chosen, (_, worker) = briefed
        serve(chosen, ends[0], ends[1], ends[2], worker)


def _briefed(briefing: socket.socket) -> tuple[Settings, list[int]] | None:
    """What we are to serve, from the process that forked us while it was still root; None when it ended instead.

    Descriptors beside it stay open as long as we live: the broker's are the runtime's lock and a pidfd of the worker-to-be, the
    ledger's its way to the witness, if there is one.
    """
    got = wire.receive(briefing)
    briefing.close()
    if got is None:
        return None
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in got[0].items()}
    for name in ("runtimes", "witnesses", "approvers"):
        fields[name] = tuple(tuple(each) for each in fields[name])
    return Settings(**{**fields, "state": StateFolder(Path(fields["state"]))}), got[1]


def _fork(
    serve: Callable[[socket.socket, list[socket.socket]], None], briefing: socket.socket, ends: list[socket.socket]
) -> int:
    """The pid of a child that serves on `ends` and then ends, without the parent's cleanup handlers."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    os.umask(0o022)  # as in `started`
    try:
        _keep_only([briefing, *ends])
        serve(briefing, ends)
        status = 0
    except Exception:  # noqa: BLE001 - the last words of a process of ours
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _keep_only(wanted: list[socket.socket]) -> None:
    """Close all but our own sockets and stderr: the operator's streams, workspace and files are the worker's."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    kept = sorted((2, *(end.fileno() for end in wanted)))
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
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


def _check_owner(folder: Path) -> None:
    """A state folder that someone else could change is no place for root's files."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{folder} must be yours and not writable by others")
