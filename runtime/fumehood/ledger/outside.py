"""The ledger's side of its witnesses: which checkpoint was sent, what came of it, and whether calls may go on without.

Invariants: at most one checkpoint is under way, the newest waits; what came of it is written down, so that a later runtime knows, and
`fumehood audit heads` shows it. No reply within `ANSWER_S`, and the end of the process, are failures. A failure is tried again with
the next checkpoint, or after `RETRY_S`.

A witness that is `required` and could not be told makes new calls impossible until it was: a ledger that nobody outside sees is one
whose history can be made up. What is under way goes on, because a record that cannot be closed tells less.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Sequence

from fumehood import wire
from fumehood.faults import LedgerGone
from fumehood.reasons import Reason
from fumehood.store import chain
from fumehood.store.chain import Link
from fumehood.store.database import Database

# The process needs at most five seconds for each.
ANSWER_S = 20.0
RETRY_S = 5.0
# How long the end of a runtime, and a call while a required witness fails, wait for an answer.
PATIENCE_S = 5.0
_ERROR_CHARS = 300
_log = logging.getLogger("fumehood.ledger")

Told = tuple[Link, str]


class Outside:
    """The witnesses: each a kind, a name (its path or URL), and whether it is required."""

    def __init__(self, sock: socket.socket | None, witnesses: Sequence[tuple[str, str, bool]]) -> None:
        """Speak to the witness process; without one nothing is witnessed."""
        self.sock = sock
        self._names = frozenset(name for _, name, _ in witnesses)
        self._required = frozenset(name for _, name, required in witnesses if required)
        self._failing: dict[str, str] | None = None
        self._newest: Told | None = None
        self._under_way: Told | None = None
        self._failed: Told | None = None
        self._logged: set[str] = set()
        self._number = 0
        self._sent_s = 0.0
        self._retry_s: float | None = None

    def tell(self, told: Told | None, database: Database) -> None:
        """Have a checkpoint taken outside, as soon as the one before is."""
        if told is not None and self.sock is not None:
            self._newest = told
            self._send(database)

    @property
    def due_in_s(self) -> float | None:
        """When `go_on` has something to do: a reply is overdue, or a try is due."""
        moment = self._sent_s + ANSWER_S if self._under_way is not None else self._retry_s
        return None if self.sock is None or moment is None else max(0.0, moment - time.monotonic())

    def go_on(self, database: Database) -> None:
        """Give up what is overdue; try again what failed."""
        if self.due_in_s != 0:
            return
        if self._under_way is not None:
            self._end(database, f"no answer within {ANSWER_S:g} s")
        else:
            self._retry_s = None
            self._send(database)

    def refusal(self, database: Database) -> LedgerGone | None:
        """Why no call may begin now; None when one may."""
        if not self._required:
            return None
        if self._failing is None:
            self._recall(database)
        if self._failing:
            self._wait(database, PATIENCE_S)
        failing = sorted((self._failing or {}).items())
        if not failing:
            return None
        name, error = failing[0]
        return LedgerGone(Reason.WITNESS_UNAVAILABLE, f"{name}: {error}")

    def receive(self, database: Database) -> None:
        """Take a reply; or the end of the process."""
        assert self.sock is not None  # noqa: S101 - who calls had it from a selector
        try:
            got = wire.receive(self.sock)
        except wire.WireError:
            got = None
        if got is None:
            self.sock.close()
            self.sock = None
            self._end(database, "the witness process has ended")
            return
        message, fds = got
        wire.close_all(fds)
        problems = message.get("problems")
        if message.get("id") == self._number and self._under_way is not None and isinstance(problems, dict):
            sent, self._under_way = self._under_way, None
            # Its silence about one of them is a failure too.
            said = {name: problems.get(name, "nothing is known of it") for name in self._names}
            self._note(database, sent, {name: None if why is None else str(why)[:_ERROR_CHARS] for name, why in said.items()})
            if self._retry_s is None and self._newest is not None:
                self._send(database)

    def end(self, database: Database) -> None:
        """Wait until the last checkpoint was taken, in bounded time."""
        self._wait(database, PATIENCE_S)
        if self._newest is not None and self._newest is not self._failed:
            self._send(database)
            self._wait(database, PATIENCE_S)
        if self._under_way is not None:
            self._end(database, f"no answer within {PATIENCE_S:g} s of the runtime's end")

    def _recall(self, database: Database) -> None:
        """What earlier runtimes came to know. What failed for them is tried with the newest checkpoint that there is."""
        with database.read() as conn:
            known = {each["name"]: each["error"] for each in chain.witnesses(conn) if each["failed_at"] is not None}
            newest = chain.newest_checkpoint(conn)
        self._failing = {name: known[name] for name in self._required & known.keys()}
        if self._failing and newest is not None and self._newest is None:
            runtime, seq, envelope = newest
            self.tell((Link(runtime, seq, ""), envelope), database)

    def _wait(self, database: Database, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.sock is not None and self._under_way is not None and (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            if poll.poll(left * 1000):
                self.receive(database)

    def _send(self, database: Database) -> None:
        if self.sock is None:
            self._end(database, "the witness process has ended")
        elif self._under_way is None and self._newest is not None:
            self._under_way, self._newest = self._newest, None
            self._number += 1
            self._sent_s, self._retry_s = time.monotonic(), None
            try:
                wire.send(self.sock, {"id": self._number, "envelope": self._under_way[1]})
            except (wire.WireError, OSError):
                self._end(database, "the witness process does not listen")

    def _end(self, database: Database, why: str) -> None:
        """What was under way, or could not be, has failed for all of them."""
        sent, self._under_way = self._under_way, None
        self._note(database, sent, dict.fromkeys(self._names, why))

    def _note(self, database: Database, sent: Told | None, problems: dict[str, str | None]) -> None:
        now_s = time.time()
        with database.write(durable=False) as conn:
            for name, why in problems.items():
                if why is None and sent is not None:
                    chain.told(conn, name, sent[0].runtime_id, sent[0].seq, now_s)
                elif why is not None:
                    chain.failed(conn, name, why, now_s)
                    if name not in self._logged:  # once a failure, and not with each try
                        _log.error("ledger: the witness %s could not be told: %s", name, why)
        self._logged = {name for name, why in problems.items() if why is not None}
        failing = self._failing or {}
        self._failing = {
            **{name: why for name, why in failing.items() if name not in problems},
            **{name: why for name, why in problems.items() if why is not None and name in self._required},
        }
        if any(why is not None for why in problems.values()):
            self._failed = sent
            self._newest = self._newest or sent
            self._retry_s = time.monotonic() + RETRY_S


