"""The verbs that change something of calls, and their attestation in the same transaction.

A record is opened once, moves along the table of states, and never changes after it was closed (`store/records.py`); what begins and
ends it, and its leases, are entered into the chain (`attesting.py`) where that is done, so neither is ever on disk without the other.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from fumehood import stopping, wire
from fumehood.faults import Refused
from fumehood.ledger import approving, booking, journal, origins
from fumehood.ledger.approving import Approving
from fumehood.ledger.attesting import Chain
from fumehood.ledger.peers import Request, not_possible
from fumehood.ledger.pinning import Pinning
from fumehood.lifecycle import State
from fumehood.model import Deny, Result
from fumehood.state import StateFolder
from fumehood.store import idempotency, records
from fumehood.store.database import Transaction

# At least so long: a key that is forgotten before its client gives up is a second run.
KEYS_KEPT_S = 24 * 3600.0
WRITES = frozenset({"open", "claim", "event", "close", "close_lost", *journal.WRITES, *origins.WRITES, *approving.WRITES})
# Lost in a power cut, a step of a timeline or a line of an egress log is missed by nobody who must act on it.
LOOSE = frozenset({"event", "egress"})
# What begins something of a call: refused while everything is stopped.
_CALLS_BEGIN = frozenset({"open", "claim", "lease_opened", *approving.BEGINS})
# What begins something: refused on a full disk, where the rest may use what was set aside for it.
BEGINS = frozenset({*_CALLS_BEGIN, *origins.BEGINS})


class Calls:
    """The calls of one runtime, as its ledger writes them. `worker` is the socket of whoever parses what strangers wrote."""

    def __init__(
        self, folder: Path, runtime_id: str, boot_id: str, results_kept_s: float, *, chain: Chain, how_pins: Pinning,
        how_approved: Approving, worker: socket.socket, takes_senders: bool,
    ) -> None:  # fmt: skip
        """Write nothing yet."""
        self._approving = how_approved
        self._folder = folder
        self._runtime_id = runtime_id
        self._boot_id = boot_id
        self._keys_kept_s = max(results_kept_s, KEYS_KEPT_S)
        self._chain = chain
        self._pinning = how_pins
        self._worker = worker
        self._takes_senders = takes_senders

    def apply(self, conn: Transaction, request: Request) -> dict[str, Any]:
        """Do one of `WRITES` in a transaction; its reply. Never raises for what a caller got wrong."""
        verb, fields, now_s = request.verb, request.fields, time.time()
        if verb in _CALLS_BEGIN and (deny := self._denied(conn, request, now_s)) is not None:
            return wire.reply_of_error(Refused(deny))
        if verb in origins.WRITES:
            return origins.write(conn, verb, fields, at_s=now_s, takes_senders=self._takes_senders)
        if verb in approving.WRITES:
            return self._approving.write(conn, self._chain, verb, fields, runtime_id=self._runtime_id, at_s=now_s)
        if verb not in journal.WRITES:
            return self._move(conn, request, now_s)
        done = journal.write(conn, verb, fields, runtime_id=self._runtime_id, at_s=now_s)
        if done and (lease := fields.get("lease")) is not None:
            self._chain.leased(conn, verb, lease, now_s)
        return {"ok": None} if done else not_possible(verb, fields.get("lease") or fields["task"])

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
                    pin = self._pinning.opened(conn, fields)
                    return {"ok": {"pin": pin, "booked": booking.opened(conn, fields, at_s=now_s)}}
            case "claim":
                return self._claim_key(conn, task, fields["policy"], now_s)
            case "event":
                step = records.Step(State(fields["state"]), fields["at"], fields["facts"])
                done = records.add_event(conn, task, step, runtime_id=self._runtime_id)
            case "close":
                del fields["task"]
                done = records.close_record(conn, task, fields, runtime_id=self._runtime_id, at_s=now_s)
                if done:
                    booking.closed(conn, task, fields, at_s=now_s)
                    idempotency.settle_key(conn, task, until_s=now_s + self._keys_kept_s)
                    self._chain.closed(conn, task, now_s, lost=False)
            case _:
                return self._lose(conn, request, now_s)
        return {"ok": None} if done else not_possible(request.verb, task)

    def _lose(self, conn: Transaction, request: Request, at_s: float) -> dict[str, Any]:
        """Close a dead runtime's record, for the broker alone: a worker that was taken over would end the calls of living ones."""
        task = request.fields["task"]
        if request.sock is self._worker:
            return not_possible(request.verb, task)
        if lost := records.close_lost(conn, task, request.fields["facts"], at_s=at_s):
            booking.closed(conn, task, {"result": Result.LOST}, at_s=at_s)
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
