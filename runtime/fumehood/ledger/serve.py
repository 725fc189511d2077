"""The ledger's loop: one thread, several sockets, what arrived together committed together.

Invariants: a reply to `open`, `close`, `close_lost`, `spend` and what changes a lease is sent when the commit is on disk; `event` is
answered when it is queued (or not at all: a request without an id), before its commit, and commits without an fsync of its own.
The order of one socket's requests is kept, except that a `keep` is answered when it is on disk, a step at a time. A peer
that breaks the message format, sends a descriptor with anything but `keep`, or does not read its replies loses its
connection; the others do not notice. The process ends when all its peers have. What it did is attested in the same transaction
(`attesting.py`); signing that waits until nobody waits for a reply.

It must never: parse anything but JSON of a checked shape, take a runtime id or a time of opening from a caller, or
change a closed record.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood import stopping, wire
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.ledger import journal, origins, pinning
from fumehood.ledger.attesting import Chain
from fumehood.ledger.outside import Outside
from fumehood.ledger.pinning import Pinning
from fumehood.ledger.requests import bad_request, checked
from fumehood.ledger.standing import Standing
from fumehood.lifecycle import State
from fumehood.model import Deny, Keeping
from fumehood.reasons import Reason
from fumehood.sealing import SweepKey
from fumehood.state import StateFolder
from fumehood.store import egress, idempotency, leases, lookups, records
from fumehood.store.database import Database, Transaction, opened
from fumehood.store.results import Copy, Results

# Of one socket at a time: a worker that floods us must not keep the broker's request waiting.
BATCH = 128
# How long an event may wait for others. Should this process be killed meanwhile, the timeline of a call lacks its last steps; its
# record is there, and says that it was never closed.
LINGER_S = 0.004
RESULTS_KEPT_S = 24 * 3600.0
# At least so long: a key that is forgotten before its client gives up is a second run.
KEYS_KEPT_S = 24 * 3600.0
COPIES = 32
WRITES = frozenset({"open", "claim", "event", "close", "close_lost", *journal.WRITES, *origins.WRITES})
# Lost in a power cut, a step of a timeline or a line of an egress log is missed by nobody who must act on it.
LOOSE = frozenset({"event", "egress"})
# What begins something of a call: refused while everything is stopped.
_CALLS_BEGIN = frozenset({"open", "claim", "lease_opened"})
# What begins something: refused on a full disk, where the rest may use what was set aside for it.
BEGINS = frozenset({*_CALLS_BEGIN, *origins.BEGINS})
_log = logging.getLogger("fumehood.ledger")


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request. `number` is None when nobody waits for its reply."""

    sock: socket.socket
    number: int | None
    verb: str
    fields: dict[str, Any]
    fd: int = -1


def serve(
    socks: Sequence[socket.socket],
    folder: Path,
    runtime_id: str,
    results_kept_s: float = RESULTS_KEPT_S,
    outside: Outside | None = None,
    how_pins: Pinning | None = None,
    *,
    takes_senders: bool = False,
) -> None:
    """Be the ledger until every socket has ended; the first is the worker's. Call it in the main thread of a process of its own.

    With `takes_senders` who asks is an operator's own command, and may say who sends.
    """
    # Ctrl-C and a service manager's stop reach the whole group; the worker still has records to close then.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with ExitStack() as stack:
        outside = outside or Outside(None, ())
        ledger = _Ledger(
            folder, runtime_id, results_kept_s, stack, worker=socks[0], outside=outside, how_pins=how_pins or Pinning(),
            takes_senders=takes_senders,
        )  # fmt: skip
        selector = stack.enter_context(_selector(socks, outside))
        peers = len(socks)
        held: list[Request] = []
        until = 0.0
        while peers:
            ready = selector.select(_patience(ledger, until if held else None))
            if not held:
                until = time.monotonic() + LINGER_S
            for key, _ in ready:
                if key.data is outside:
                    if not ledger.standing.hear():
                        selector.unregister(key.fileobj)
                elif not _receive(key.data, held):
                    selector.unregister(key.data)
                    key.data.close()
                    peers -= 1
                    if key.data is socks[0]:
                        ledger.handle(held)
                        held = []
                        ledger.abandon_leases()
            # Nobody waits for an event, and a transaction costs more than what is in it.
            if len(held) >= BATCH or time.monotonic() >= until or any(request.verb != "event" for request in held):
                ledger.handle(held)
                held = []
            ledger.copy_on()
            ledger.standing.go_on(quiet=not ready)
        ledger.handle(held)
        ledger.standing.end()


def _selector(socks: Sequence[socket.socket], outside: Outside) -> selectors.BaseSelector:
    """Everything that can speak to a ledger."""
    selector = selectors.DefaultSelector()
    for sock in socks:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, sock)
    if outside.sock is not None:
        selector.register(outside.sock, selectors.EVENT_READ, outside)
    return selector


def _patience(ledger: _Ledger, until: float | None) -> float | None:
    """How long nothing need be done if nothing arrives; None when that is for ever."""
    if ledger.is_copying:
        return 0
    waits = [] if until is None else [max(0.0, until - time.monotonic())]
    return min(waits if (due_s := ledger.standing.due_in_s) is None else [*waits, due_s], default=None)


def _receive(sock: socket.socket, requests: list[Request]) -> bool:
    """Take what has arrived on one socket. False when it has ended."""
    for _ in range(BATCH):
        try:
            got = wire.receive(sock)
        except BlockingIOError:
            return True
        except wire.WireError as error:
            _log.error("ledger: a peer was cut off: %s", error)
            return False
        if got is None:
            return False
        message, fds = got
        number = message.get("id")
        if len(fds) != (message.get("verb") == "keep") or not (number is None or isinstance(number, int)):
            wire.close_all(fds)
            _log.error("ledger: a peer was cut off: it sent what no peer of ours sends")
            return False
        try:
            verb, fields = checked(message.get("verb"), message.get("args"))
        except Refused as error:
            _log.error("ledger: a request was refused: %s", error.detail)
            wire.close_all(fds)
            _reply(Request(sock, number, "", {}), wire.reply_of_error(error))
            continue
        requests.append(Request(sock, number, verb, fields, *fds))
        if verb == "event":
            _reply(requests[-1], {"ok": None})
    return True


def _reply(request: Request, reply: dict[str, Any], fds: Sequence[int] = ()) -> None:
    if request.number is None:
        return
    try:
        wire.send(request.sock, {"id": request.number, **reply}, fds)
    except (wire.WireError, OSError):
        # Gone, or it does not read: its end arrives with the next select. One peer must not stop the others.
        _shut(request.sock)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _Ledger:
    """The database, and how requests become transactions."""

    def __init__(
        self, folder: Path, runtime_id: str, results_kept_s: float, stack: ExitStack, *, worker: socket.socket, outside: Outside,
        how_pins: Pinning, takes_senders: bool,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._takes_senders = takes_senders
        self._pinning = how_pins
        self._results_kept_s = results_kept_s
        self._keys_kept_s = max(results_kept_s, KEYS_KEPT_S)
        self._results: Results | None = None
        self._copies: list[tuple[Request, Copy]] = []
        self._runtime_id = runtime_id
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._stack = stack
        self._opened: Database | None = None
        self._sweep_key: SweepKey | None = None
        self._chain = Chain(runtime_id, self._boot_id, folder)
        self.standing = Standing(self._chain, outside, self._database)
        self._worker = worker
        with suppress(FumehoodError):  # told to whoever asks
            self._kept()

    def _database(self) -> Database:
        """The database. One that could not be opened is tried again with every batch: a full disk may have room now."""
        if self._opened is None:
            self._opened = self._stack.enter_context(opened(self._folder))
        return self._opened

    def _kept(self) -> Results:
        """The kept results, swept when they are first used. Raises FumehoodError."""
        if self._results is None:
            database = self._database()
            results = Results(self._folder, self._results_kept_s)
            self._stack.callback(results.close)
            self._stack.callback(self._abandon)
            known: list[str] = []
            if names := results.tasks():
                with database.read() as conn:
                    known = lookups.known(conn, names)
            results.sweep(known)
            self._results = results
        return self._results

    @property
    def is_copying(self) -> bool:
        """Whether there is something to go on with."""
        return bool(self._copies)

    def copy_on(self) -> None:
        """Take the next step of what is being kept, of each in turn."""
        if not self._copies:
            return
        request, copy = self._copies.pop(0)
        try:
            if copy.step():
                _reply(request, {"ok": {"until": copy.until_s}})
            else:
                self._copies.append((request, copy))
        except Refused as error:
            _reply(request, wire.reply_of_error(error))

    def _abandon(self) -> None:
        for _, copy in self._copies:
            copy.abandon()

    def handle(self, requests: Sequence[Request]) -> None:
        """Do what arrived together: first what changes something, in one transaction, then what asks."""
        if writes := [request for request in requests if request.verb in WRITES]:
            self._write(writes)
        for request in requests:
            match request.verb:
                case "keep":
                    self._keep(request)
                case "kept":
                    self._find(request)
                case journal.CLAIM:
                    _reply(request, self._claim(request))
                case verb if verb not in WRITES:
                    _reply(request, self._answer(request))

    def _keep(self, request: Request) -> None:
        """Begin to keep what the descriptor holds, for a task of this runtime's own."""
        fields, fd = request.fields, request.fd
        task = fields["task"]
        try:
            with self._database().read() as conn:
                owner = lookups.owner(conn, task)
            if owner is None or owner["runtime_id"] != self._runtime_id:
                raise bad_request(f"keep: not possible for task {task}")
            if len(self._copies) >= COPIES:
                raise bad_request(f"keep: {COPIES} are under way")
            results = self._kept()
        except FumehoodError as error:
            os.close(fd)
            _reply(request, wire.reply_of_error(error))
            return
        try:
            copy = results.begin(task, Keeping(fields["kind"]), fd, fields["offset"], fields["bytes"])
        except Refused as error:
            _reply(request, wire.reply_of_error(error))
        else:
            self._copies.append((request, copy))

    def _find(self, request: Request) -> None:
        """Tell whose a task is, and hand out what is kept of it: the worker decides who may read it."""
        try:
            with self._database().read() as conn:
                owner = lookups.owner(conn, request.fields["task"])
            found = None
            if owner is not None:
                with suppress(FumehoodError):
                    found = self._kept().find(request.fields["task"], Keeping(request.fields["kind"]))
        except FumehoodError as error:
            _reply(request, wire.reply_of_error(error))
            return
        kept = None if found is None else {"bytes": found.size_bytes, "at": found.at_s, "until": found.until_s}
        fds = [] if found is None else [found.fd]
        _reply(request, {"ok": None if owner is None else {**owner, "kept": kept}}, fds)
        wire.close_all(fds)

    def _write(self, writes: Sequence[Request]) -> None:
        opens = [request for request in writes if request.verb == "open"]
        if opens and (refusal := self.standing.refusal()) is not None:
            _reply_all(opens, refusal)
            writes = [request for request in writes if request.verb != "open"]
            if not writes:
                return
        try:
            self._commit(writes)
        except LedgerGone as error:
            # No new call begins. What is under way may use the space set aside for it, and then has failed.
            _reply_all((request for request in writes if request.verb in BEGINS), error)
            rest = [request for request in writes if request.verb not in BEGINS]
            if not rest:
                return
            try:
                self._database().reserve.spend()
                self._commit(rest)
            except LedgerGone as again:
                _reply_all(rest, again)

    def _commit(self, writes: Sequence[Request]) -> None:
        database = self._database()
        opens = any(request.verb in BEGINS for request in writes)
        if opens and not database.reserve.fill():
            raise LedgerGone(Reason.LEDGER_UNAVAILABLE, "the disk has no room to close another record")
        with database.write(durable=any(request.verb not in LOOSE for request in writes)) as conn:
            replies = [self._apply(conn, request) for request in writes]
        for request, reply in zip(writes, replies, strict=True):
            if request.verb != "event":
                _reply(request, reply)
            elif "ok" not in reply:
                _log.error("ledger: an event was refused: %s", reply["deny"]["detail"])

    def _apply(self, conn: Transaction, request: Request) -> dict[str, Any]:
        verb, fields, now_s = request.verb, request.fields, time.time()
        if verb in _CALLS_BEGIN and (deny := self._denied(conn, request, now_s)) is not None:
            return wire.reply_of_error(Refused(deny))
        if verb in origins.WRITES:
            return origins.write(conn, verb, fields, at_s=now_s, takes_senders=self._takes_senders)
        if verb not in journal.WRITES:
            return self._move(conn, request, now_s)
        done = journal.write(conn, verb, fields, runtime_id=self._runtime_id, at_s=now_s)
        if done and (lease := fields.get("lease")) is not None:
            self._chain.leased(conn, verb, lease, now_s)
        return {"ok": None} if done else _not_possible(verb, fields.get("lease") or fields["task"])

    def _move(self, conn: Transaction, request: Request, now_s: float) -> dict[str, Any]:
        """Take a record one step further, and attest what begins and ends it."""
        fields = dict(request.fields)
        task: str = fields["task"]
        match request.verb:
            case "open":
                self._chain.begin(conn, now_s)
                done = records.open_record(conn, fields, runtime_id=self._runtime_id, boot_id=self._boot_id, at_s=now_s)
                if done:
                    self._chain.opened(conn, task, now_s)
                    return {"ok": {"pin": self._pinning.opened(conn, fields)}}
            case "claim":
                return self._claim_key(conn, task, fields["policy"], now_s)
            case "event":
                step = records.Step(State(fields["state"]), fields["at"], fields["facts"])
                done = records.add_event(conn, task, step, runtime_id=self._runtime_id)
            case "close":
                del fields["task"]
                done = records.close_record(conn, task, fields, runtime_id=self._runtime_id, at_s=now_s)
                if done:
                    idempotency.settle_key(conn, task, until_s=now_s + self._keys_kept_s)
                    self._chain.closed(conn, task, now_s, lost=False)
            case _:
                return self._lose(conn, request, now_s)
        return {"ok": None} if done else _not_possible(request.verb, task)

    def _lose(self, conn: Transaction, request: Request, at_s: float) -> dict[str, Any]:
        """Close a dead runtime's record, for the broker alone: a worker that was taken over would end the calls of living ones."""
        task = request.fields["task"]
        if request.sock is self._worker:
            return _not_possible(request.verb, task)
        if lost := records.close_lost(conn, task, request.fields["facts"], at_s=at_s):
            self._chain.closed(conn, task, at_s, lost=True)
        return {"ok": {"closed": lost}}

    def _denied(self, conn: Transaction, request: Request, now_s: float) -> Deny | None:
        """Why nothing may begin now; the call that wanted to has its record all the same."""
        deny = stopping.denied(StateFolder(self._folder.parent))
        if deny is not None and request.verb == "open":
            task: str = request.fields["task"]
            self._chain.begin(conn, now_s)
            if records.open_record(conn, request.fields, runtime_id=self._runtime_id, boot_id=self._boot_id, at_s=now_s):
                self._chain.opened(conn, task, now_s)
                records.close_refused(conn, task, deny, at_s=now_s)
                self._chain.closed(conn, task, now_s, lost=False)
        return deny

    def _claim_key(self, conn: Transaction, task: str, policy: str, now_s: float) -> dict[str, Any]:
        """Give a call its key, or tell it who has it."""
        try:
            earlier = idempotency.claim_key(
                conn, task, policy, runtime_id=self._runtime_id, at_s=now_s, until_s=now_s + self._keys_kept_s
            )
        except Refused as error:
            return wire.reply_of_error(error)
        return {"ok": {"earlier": earlier}}

    def _claim(self, request: Request) -> dict[str, Any]:
        """Hand out leases to revoke. A write only when there is something to claim: every runtime asks, every minute."""
        try:
            database = self._database()
            with database.read() as conn:
                anything = leases.anything_to_claim(conn)
            claimed: list[leases.Claimed] = []
            if anything:
                with database.write(durable=True) as conn:
                    claimed = leases.claim_leases(conn, **request.fields, runtime_id=self._runtime_id, at_s=time.time())
            return {"ok": journal.opened(claimed, self._key)}
        except FumehoodError as error:
            return wire.reply_of_error(error)

    def abandon_leases(self) -> None:
        """Let others revoke what the worker left, now that it is gone: the next start may come before the broker has ended."""
        with suppress(FumehoodError):  # the sweep finds them when their records are closed
            database = self._database()
            with database.read() as conn:
                anything = leases.anything_to_claim(conn)
            if anything:
                with database.write(durable=True) as conn:
                    leases.abandon_leases(conn, self._runtime_id)

    def _key(self) -> SweepKey:
        """The key that leases' tokens are sealed to. Raises LedgerGone."""
        if self._sweep_key is None:
            self._sweep_key = SweepKey(self._folder)
        return self._sweep_key

    def _prune(self, older_than_s: float | None) -> dict[str, Any]:
        """Forget what is kept of calls; and, if an age was named, the leases and egress logs of those that ended before it."""
        count, size = self._kept().prune(older_than_s)
        forgotten = {"leases": 0, "egress": 0}
        if older_than_s is not None:
            before_s = time.time() - older_than_s
            with self._database().write(durable=True) as conn:
                forgotten = {"leases": leases.prune_leases(conn, before_s), "egress": egress.prune_egress(conn, before_s)}
                if any(forgotten.values()):
                    self._chain.pruned(conn, before_s, time.time(), **forgotten)
        return {"removed": count, "bytes": size, **forgotten}

    def _answer(self, request: Request) -> dict[str, Any]:
        fields = request.fields
        try:
            if request.verb == "prune":
                return {"ok": self._prune(fields["older_than_s"])}
            if request.verb == "sealing_key":
                return {"ok": self._key().public}
            if request.verb in pinning.VERBS:
                return {"ok": self._pinning.answer(self._database(), request.verb, fields)}
            with self._database().read() as conn:
                match request.verb:
                    case "open_tasks":
                        return {"ok": lookups.open_tasks(conn, **fields)}
                    case "runtimes_open":
                        return {"ok": lookups.runtimes_open(conn)}
                    case verb if verb in journal.READS:
                        return {"ok": journal.read(conn, verb, fields)}
                    case verb if verb in origins.READS:
                        return {"ok": origins.read(conn, verb, fields)}
                    case "ping":
                        return {"ok": "pong"}
                    case verb:
                        return {"ok": _listed(conn, verb, fields)}
        except FumehoodError as error:
            return wire.reply_of_error(error)


def _listed(conn: Transaction, verb: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What people ask: `tasks` and `task`."""
    from fumehood.store import queries  # SQLAlchemy with it, which no call waits for

    if verb == "tasks":
        return queries.tasks(conn, queries.Wanted(**fields))
    name = _only(queries.tasks_named(conn, fields["task"]), fields["task"])
    return queries.task(conn, name, after_seq=fields["after_seq"])


def _only(names: Sequence[str], prefix: str) -> str:
    if not names:
        raise Refused(Deny(reason=Reason.TASK_UNKNOWN, rule="ledger.task", detail=f"no task is named {prefix}"))
    if len(names) > 1:
        raise bad_request(f"task: {prefix} begins the names of several tasks")
    return names[0]


def _not_possible(verb: str, name: str) -> dict[str, Any]:
    return wire.reply_of_error(bad_request(f"{verb}: not possible for {name} in its state"))


def _reply_all(requests: Iterable[Request], error: Exception) -> None:
    for request in requests:
        if request.verb == "event":
            _log.error("ledger: an event of task %s is lost: %s", request.fields["task"], error)
        else:
            _reply(request, wire.reply_of_error(error))
