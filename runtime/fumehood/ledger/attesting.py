"""The chain of one runtime: what the ledger did, an entry each, in the transaction that did it.

An entry is a JSON text, and its hash the SHA-256 of that text as it is stored. It names its runtime and place, what was done, digests
of the rows that this left (`store/digests.py`), and two hashes: `prev`, of the entry before it in its own chain, and `beside`, of the
one that was committed before it by another runtime, if one was. So every entry but the newest is named by a later one, no chain can
be taken out whole once another runtime has written, and each chain has one writer: the ledger process of its runtime.

    began   opened  lease.opened  lease.issued  lease.closed  closed  lost  pruned  ended
    approval.asked  approval.voted  approval.confirmed  approval.withdrawn  approval.expired  approval.spent

`closed` is the end of a call by its own runtime. A call whose runtime died is `lost`: that stands in the chain of the runtime that
swept it, for the dead one's has no writer any more. A lease that a sweeper revoked is closed in the sweeper's chain in the same way.

A checkpoint is a signature over a chain's newest hash, and so over everything before. It is made when `MOST_ENTRIES` are unsigned or
the oldest of them is `LONGEST_S` old, after the replies that wait were sent, and with the chain's last entry, which a runtime that
ends in order writes. A head that is not the one this process left is nobody's to go on from: then nothing is written any more, so
that nothing is signed which somebody else put there. Nobody but this module makes entries, and no verb of the ledger's asks for one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fumehood import dsse
from fumehood.faults import LedgerGone
from fumehood.keys import KeyFolder
from fumehood.ledger import receipt
from fumehood.reasons import Reason
from fumehood.store import approvals, chain, digests, lookups
from fumehood.store.chain import Link
from fumehood.store.database import Database, Transaction

MOST_ENTRIES = 256
LONGEST_S = 5.0
# One that is due waits for a moment in which nobody asks, but not for more entries than this: `audit verify` tells of a longer gap.
OVERDUE_ENTRIES = 2 * MOST_ENTRIES
VERSION = 1
_LEASES = {"lease_opened": "opened", "lease_issued": "issued", "lease_closed": "closed"}


class Chain:
    """One runtime's chain. Begun with its first entry: a command that only asks leaves none."""

    def __init__(self, runtime_id: str, boot_id: str, folder: Path) -> None:
        """Write nothing yet."""
        self._runtime_id = runtime_id
        self._boot_id = boot_id
        self._keys = KeyFolder(folder)
        self._within: Transaction | None = None
        self._left: Link | None = None
        self._own: Link | None = None
        self._last: Link | None = None
        self._signed: int | None = None
        self._due_s: float | None = None
        self._not_before_s = 0.0

    def begin(self, conn: Transaction, at_s: float) -> None:
        """Begin the chain if it was not: before the first record is opened, which it must not count among those that came before."""
        self._next(conn, at_s)

    def opened(self, conn: Transaction, task: str, at_s: float) -> None:
        """Attest that a record was opened."""
        row = digests.opening_row(conn, task)
        assert row is not None  # noqa: S101 - it was written in this transaction
        self._add(conn, "opened", at_s, task=task, opening=digests.digest(row))

    def closed(self, conn: Transaction, task: str, at_s: float, *, lost: bool) -> None:
        """Attest that a record was closed, with the statement of its receipt."""
        record, events = digests.record_row(conn, task), digests.event_rows(conn, task)
        assert record is not None  # noqa: S101 - as above
        leases, egress = digests.lease_rows(conn, task), digests.egress_totals(conn, task)
        named = dict(zip(digests.RECORD, record, strict=True))
        earlier = [] if named["session"] is None else lookups.earlier_of(conn, named["session"], task)
        covers = {
            "record": digests.digest(record),
            "events": digests.digest(events),
            "leases": digests.digest(leases),
            "egress": None if egress is None else digests.digest(egress),
        }
        seq, prev = self._next(conn, at_s)
        told = receipt.Told(
            record=named,
            events=events,
            leases=[dict(zip(digests.LEASE, row, strict=True)) for row in leases],
            egress=egress,
            refused=lookups.egress_refused(conn, task) if egress is not None else 0,
            earlier=earlier,
            covers=covers,
            place={"runtime": self._runtime_id, "seq": seq, "prev": prev},
        )
        statement = receipt.statement(told)
        self._add(
            conn, "lost" if lost else "closed", at_s, task=task, statement=statement, **covers,
            held=[row[0] for row in leases], says=hashlib.sha256(statement.encode()).hexdigest(),
        )  # fmt: skip

    def leased(self, conn: Transaction, verb: str, lease: str, at_s: float) -> None:
        """Attest what became of a lease. A try that failed is no step of it."""
        row = digests.lease_row(conn, lease)
        assert row is not None  # noqa: S101 - as above
        step, named = _LEASES[verb], dict(zip(digests.LEASE, row, strict=True))
        if named["state"] != step or (step == "closed" and named["closed_at"] != at_s):
            return  # tried in vain, or closed before: its entry is there
        self._add(
            conn, f"lease.{step}", at_s, task=named["task"], lease=lease, row=digests.digest(row[: digests.SETTLED[step]])
        )  # fmt: skip

    def approval(self, conn: Transaction, step: str, row: Mapping[str, Any], at_s: float) -> None:
        """Attest a step of an approval, with whose words it has: the entry itself says all of it."""
        self._add(conn, f"approval.{step}", at_s, task=row["spent_by"] or row["task"], **approvals.attested(row))

    def pruned(self, conn: Transaction, before_s: float, at_s: float, *, leases: int, egress: int) -> None:
        """Attest that rows were forgotten on purpose: leases, and egress logs, of what was closed by then."""
        self._add(conn, "pruned", at_s, before=before_s, leases=leases, egress=egress)

    def _next(self, conn: Transaction, at_s: float) -> tuple[int, str | None]:
        """The next entry's place and what it follows, the chain being begun if it was not."""
        self._look(conn)
        if self._own is None:
            self._begin(conn, at_s)
        return (1, None) if self._own is None else (self._own.seq + 1, self._own.hash)

    def _look(self, conn: Transaction) -> None:
        """See where the chains are: others write between our transactions, and what we wrote may have been rolled back."""
        if conn is self._within:
            return
        self._last = chain.last(conn)
        ours = self._last is not None and self._last.runtime_id == self._runtime_id
        found = self._last if ours else chain.head(conn, self._runtime_id)
        if self._signed is None:
            self._signed = chain.signed_up_to(conn, self._runtime_id)
        elif found not in (self._left, self._own):
            raise LedgerGone(Reason.LEDGER_UNAVAILABLE, "this runtime's chain was changed by another: see `fumehood audit verify`")
        self._within, self._left, self._own = conn, found, found

    def _begin(self, conn: Transaction, at_s: float) -> None:
        # The first chain says how many records were there before there were any: nothing covers those.
        count, newest = chain.count_records(conn) if self._last is None else (0, None)
        before = {"records": count, "newest": newest} if self._last is None else None
        self._append(conn, "began", at_s, boot=self._boot_id, before=before)

    def _add(
        self, conn: Transaction, kind: str, at_s: float, *, task: str | None = None, statement: str | None = None, **facts: Any
    ) -> None:
        self._next(conn, at_s)
        self._append(conn, kind, at_s, task=task, statement=statement, **facts)

    def _append(
        self, conn: Transaction, kind: str, at_s: float, *, task: str | None = None, statement: str | None = None, **facts: Any
    ) -> None:
        own, last = self._own, self._last
        seq = 1 if own is None else own.seq + 1
        beside = None if last is None or last == own else [last.runtime_id, last.seq, last.hash]
        entry = {
            "v": VERSION, "runtime": self._runtime_id, "seq": seq, "kind": kind, "at": at_s, "task": task,
            "prev": None if own is None else own.hash, "beside": beside, **facts,
        }  # fmt: skip
        body = json.dumps(entry, separators=(",", ":"))
        link = Link(self._runtime_id, seq, hashlib.sha256(body.encode()).hexdigest())
        chain.append(conn, link, kind, task, body, statement)
        self._own = self._last = link
        if self._due_s is None:
            self._due_s = time.monotonic() + LONGEST_S

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to end."""
        return self._own is not None

    @property
    def unsigned(self) -> int:
        """How many entries of ours no checkpoint covers."""
        return 0 if self._own is None else self._own.seq - (self._signed or 0)

    @property
    def due_in_s(self) -> float | None:
        """How long a checkpoint may wait; None when there is nothing to sign."""
        if self._due_s is None or not self.unsigned:
            return None
        due_s = self._not_before_s if self.unsigned >= MOST_ENTRIES else max(self._due_s, self._not_before_s)
        return max(0.0, due_s - time.monotonic())

    @property
    def is_overdue(self) -> bool:
        """Whether it must not wait for a quiet moment any more."""
        return self.unsigned >= OVERDUE_ENTRIES

    def sign(self, database: Database) -> tuple[Link, str] | None:
        """Make a checkpoint of what is on disk. Raises LedgerGone."""
        # Put off first: a key that cannot be read must not be asked for again at every turn.
        self._not_before_s = time.monotonic() + LONGEST_S
        with database.write(durable=False) as conn:
            self._look(conn)
            if self._own is None or not self.unsigned:
                return None
            return self._sign(conn)

    def end(self, database: Database) -> tuple[Link, str] | None:
        """Write the chain's last entry, and sign it. Raises LedgerGone."""
        with database.write(durable=True) as conn:
            self._look(conn)
            if self._own is None:
                return None
            self._append(conn, "ended", time.time())
            return self._sign(conn)

    def _sign(self, conn: Transaction) -> tuple[Link, str]:
        assert self._own is not None  # noqa: S101 - both callers looked
        at_s = time.time()
        said = {"v": VERSION, "runtime": self._own.runtime_id, "seq": self._own.seq, "hash": self._own.hash, "at": at_s}
        payload = json.dumps(said, separators=(",", ":")).encode()
        envelope = json.dumps(dsse.signed(payload, dsse.CHECKPOINT, self._keys.current()), separators=(",", ":"))
        chain.sign(conn, self._own, envelope)
        self._signed, self._due_s, self._not_before_s = self._own.seq, None, 0.0
        return self._own, envelope
