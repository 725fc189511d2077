"""The ledger's database, and how requests become transactions: what arrived together is committed together.

It must never: take a runtime id or a time of opening from a caller, or change a closed record.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fumehood import wire
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.ledger import approving, booking, journal, origins, pinning
from fumehood.ledger.approving import Approving
from fumehood.ledger.attesting import Chain
from fumehood.ledger.calls import BEGINS, LOOSE, WRITES, Calls
from fumehood.ledger.outside import Outside
from fumehood.ledger.peers import Request, reply, reply_all
from fumehood.ledger.pinning import Pinning
from fumehood.ledger.requests import bad_request
from fumehood.ledger.standing import Standing
from fumehood.model import Deny, Keeping
from fumehood.reasons import Reason
from fumehood.sealing import SweepKey
from fumehood.store import egress, leases, lookups
from fumehood.store.database import Database, Transaction, opened
from fumehood.store.results import Copy, Results

COPIES = 32
_log = logging.getLogger("fumehood.ledger")


class Book:
    """The database, and how requests become transactions."""

    def __init__(
        self, folder: Path, runtime_id: str, results_kept_s: float, stack: ExitStack, *, worker: socket.socket, outside: Outside,
        how_pins: Pinning, how_approved: Approving, takes_senders: bool,
    ) -> None:  # fmt: skip
        """Open the database if that can be done; whatever `stack` is left with is closed with it."""
        self._folder = folder
        self._pinning = how_pins
        self._approving = how_approved
        self._results_kept_s = results_kept_s
        self._results: Results | None = None
        self._copies: list[tuple[Request, Copy]] = []
        self._runtime_id = runtime_id
        self._stack = stack
        self._opened: Database | None = None
        self._sweep_key: SweepKey | None = None
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._chain = Chain(runtime_id, boot_id, folder)
        self._calls = Calls(
            folder, runtime_id, boot_id, results_kept_s, chain=self._chain, how_pins=how_pins, how_approved=how_approved,
            worker=worker, takes_senders=takes_senders,
        )  # fmt: skip
        self.standing = Standing(self._chain, outside, self._database)
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
                reply(request, {"ok": {"until": copy.until_s}})
            else:
                self._copies.append((request, copy))
        except Refused as error:
            reply(request, wire.reply_of_error(error))

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
                case verb if verb in booking.VERBS:
                    reply(request, self._booked(request))
                case journal.CLAIM:
                    reply(request, self._claim(request))
                case verb if verb not in WRITES:
                    reply(request, self._answer(request))

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
            reply(request, wire.reply_of_error(error))
            return
        try:
            copy = results.begin(task, Keeping(fields["kind"]), fd, fields["offset"], fields["bytes"])
        except Refused as error:
            reply(request, wire.reply_of_error(error))
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
            reply(request, wire.reply_of_error(error))
            return
        kept = None if found is None else {"bytes": found.size_bytes, "at": found.at_s, "until": found.until_s}
        fds = [] if found is None else [found.fd]
        reply(request, {"ok": None if owner is None else {**owner, "kept": kept}}, fds)
        wire.close_all(fds)

    def _write(self, writes: Sequence[Request]) -> None:
        opens = [request for request in writes if request.verb == "open"]
        if opens and (refusal := self.standing.refusal()) is not None:
            reply_all(opens, refusal)
            writes = [request for request in writes if request.verb != "open"]
            if not writes:
                return
        try:
            self._commit(writes)
        except LedgerGone as error:
            # No new call begins. What is under way may use the space set aside for it, and then has failed.
            reply_all((request for request in writes if request.verb in BEGINS), error)
            rest = [request for request in writes if request.verb not in BEGINS]
            if not rest:
                return
            try:
                self._database().reserve.spend()
                self._commit(rest)
            except LedgerGone as again:
                reply_all(rest, again)

    def _commit(self, writes: Sequence[Request]) -> None:
        database = self._database()
        opens = any(request.verb in BEGINS for request in writes)
        if opens and not database.reserve.fill():
            raise LedgerGone(Reason.LEDGER_UNAVAILABLE, "the disk has no room to close another record")
        self._approving.settled.clear()
        with database.write(durable=any(request.verb not in LOOSE for request in writes)) as conn:
            replies = [self._calls.apply(conn, request) for request in writes]
        for task in self._approving.settled:
            with suppress(FumehoodError):  # it goes with its age
                self._kept().forget(task, Keeping.ARGUMENTS)
        for request, said in zip(writes, replies, strict=True):
            if request.verb != "event":
                reply(request, said)
            elif "ok" not in said:
                _log.error("ledger: an event was refused: %s", said["deny"]["detail"])

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

    def _booked(self, request: Request) -> dict[str, Any]:
        try:
            return {"ok": booking.answer(self._database(), request.verb, request.fields, decides=self._pinning.decides)}
        except FumehoodError as error:
            return wire.reply_of_error(error)

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
    """What people ask: `tasks` and `task`, and about approvals."""
    if verb in approving.READS:
        return approving.read(conn, verb, fields)
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
