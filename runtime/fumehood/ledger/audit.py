"""Checks a ledger against its chain: every edit, deletion, insertion and reordering, and where it is. Reads, and never writes.

One pass over the entries in the order of their commits, in one view of the database, so that runtimes may write meanwhile:

1. Each checkpoint is signed by a key of the ledger's that was in use then, and names a hash that the chain has at that place. A chain
   that ended has one at its end, and no chain goes without one for long: whoever takes checkpoints away is told of too.
2. An entry's hash is that of its text, its text says what its columns say, and it follows the newest entry of its own chain (`prev`)
   and the entry that was committed before it (`beside`). So nothing between the first entry and the newest can be missing, or moved.
3. An entry about rows has their digests: the rows are read and compared. What a later entry settles (a call that is closed, a lease
   that is revoked) is compared then; what none has settled by the end must still be as it was opened.
   What may be missing was forgotten on purpose: an entry says up to when, and one that no checkpoint covers is not believed.
4. Records that no entry speaks of are those from before there was a chain, as many as its first entry counted, and no others.
5. What a witness was told is there: a chain that ends before it was cut, or the whole file is an old copy.

Without a witness step 5 is missing, and who can write the files can put back an older copy of all of them; who has the signing keys
too can make another history altogether.

After a fault the pass goes on from what is stored, so that one edit is told once or twice and not for every entry after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fumehood import dsse
from fumehood.keys import PublicKey
from fumehood.ledger.attesting import MOST_ENTRIES
from fumehood.store import approvals, chain, digests
from fumehood.store.chain import Entry
from fumehood.store.database import Transaction

# Due after 256, put off while requests wait, and a batch of requests is some hundred: no honest ledger comes near this.
LONGEST_STRETCH = 4 * MOST_ENTRIES
_STATE = digests.RECORD.index("state")
_EDITED, _OPENING_EDITED = "the record was edited", "the record was edited, in what it was opened with"
_LEASE_STATE = digests.LEASE.index("state")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is not as it was written: in which group of fields, and where."""

    group: str  # entry | order | opening | record | events | leases | approvals | egress | statement | checkpoint | witness | file
    detail: str
    runtime: str | None = None
    seq: int | None = None
    task: str | None = None


@dataclass(slots=True)
class Summary:
    """What one pass saw. `uncovered` are records from before there was a chain; `unsigned` entries no checkpoint covers yet."""

    entries: int = 0
    calls: int = 0
    chains: int = 0
    checkpoints: int = 0
    witnessed: int = 0
    uncovered: int = 0
    unsigned: int = 0
    faults: int = 0
    unfinished: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Place:
    """The newest entry of a chain that was seen."""

    seq: int
    hash: str


@dataclass(slots=True)
class _Opened:
    """A record or a lease that no entry has closed yet: the entry about it, and the digest that its row had."""

    entry: Entry
    digest: str | None
    leases: set[str] = field(default_factory=set)


class Audit:
    """One pass. Iterate over `faults`, then read `summary`."""

    def __init__(self, conn: Transaction, keys: Mapping[str, PublicKey], witnessed: Iterable[str] = ()) -> None:
        """Check what `conn` sees against those keys, and against envelopes that a witness kept, one a line."""
        self.summary = Summary()
        self._conn = conn
        self._keys = keys
        self._witnessed = witnessed
        self._chains: dict[str, _Place] = {}
        self._records: dict[str, _Opened] = {}
        self._leases: dict[str, _Opened] = {}
        self._approvals: dict[str, tuple[Entry, Mapping[str, Any]]] = {}
        self._opened = 0
        self._lost_from_before = 0
        self._before = 0
        self._newest_before = ""
        self._covered = 0
        self._pruned_until_s = 0.0

    def faults(self) -> Iterator[Fault]:
        """Everything that is wrong, as it is found."""
        for fault in self._pass():
            self.summary.faults += 1
            yield fault

    def _pass(self) -> Iterator[Fault]:
        yield from self._signed()
        self._pruned_until_s = max((_before_of(body) for body in chain.prunings(self._conn, self._covered)), default=0.0)
        last: Entry | None = None
        for entry in chain.entries(self._conn):
            self.summary.entries += 1
            self.summary.unsigned += entry.number > self._covered
            said = _said(entry)
            if said is None:
                yield _at(entry, "entry", "the entry was edited: its text does not have its hash, or its columns say something else")
            else:
                try:
                    yield from self._follows(entry, said, last)
                    yield from self._rows(entry, said)
                except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                    yield _at(entry, "entry", "the entry says what no ledger writes")
            if entry.kind == "ended":
                self._chains.pop(entry.runtime_id, None)
            else:
                self._chains[entry.runtime_id] = _Place(entry.seq, entry.hash)
            last = entry
        self.summary.unfinished = sorted(self._chains)
        yield from self._still_open()
        yield from self._agreed()
        yield from self._inserted()
        yield from self._seen_outside()

    def _follows(self, entry: Entry, said: Mapping[str, Any], last: Entry | None) -> Iterator[Fault]:
        """Step 2: whether an entry is where it was written."""
        before = self._chains.get(entry.runtime_id)
        if entry.kind == "began":
            self.summary.chains += 1
            if last is None:
                self._before, self._newest_before = int(said["before"]["records"]), str(said["before"]["newest"])
        if before is None and (entry.seq, said["prev"], entry.kind) != (1, None, "began"):
            after_end = chain.find(self._conn, entry.runtime_id, entry.seq - 1)
            what = "comes after the end of its chain" if after_end is not None else f"{_missing(0, entry.seq)} before it"
            yield _at(entry, "order", f"the entry {what}")
        elif before is not None and entry.kind == "began":
            yield _at(entry, "order", "the chain begins a second time")
        elif before is not None and entry.seq != before.seq + 1:
            yield _at(entry, "order", f"{_missing(before.seq, entry.seq)} before it, or the entry was moved")
        elif before is not None and said["prev"] != before.hash:
            yield _at(entry, "order", f"the entry does not follow entry {before.seq} as it is now: one of the two was replaced")
        neighbour = None if last is None or last.runtime_id == entry.runtime_id else [last.runtime_id, last.seq, last.hash]
        if said["beside"] != neighbour:
            named = said["beside"]
            what = "the end of its own chain" if named is None else f"entry {named[1]} of runtime {named[0]}"
            yield _at(entry, "order", f"the entry was committed after {what}, which is not what is before it now")

    def _rows(self, entry: Entry, said: Mapping[str, Any]) -> Iterator[Fault]:
        """Step 3: whether the rows that an entry speaks of are as it left them."""
        task = entry.task or ""
        match entry.kind:
            case "opened":
                self._opened += 1
                self._records[task] = _Opened(entry, said["opening"])
            case "closed" | "lost":
                self.summary.calls += 1
                yield from self._closed(entry, said, task)
            case "lease.opened" | "lease.issued":
                self._leases[said["lease"]] = _Opened(entry, said["row"])
                if (record := self._records.get(task)) is not None:
                    record.leases.add(said["lease"])
            case "lease.closed":
                self._leases.pop(said["lease"], None)
                row = digests.lease_row(self._conn, said["lease"])
                if row is None and said["at"] > self._pruned_until_s:
                    yield _at(entry, "leases", f"lease {said['lease']} was deleted")
                if row is not None and digests.digest(row) != said["row"]:
                    yield _at(entry, "leases", f"lease {said['lease']} was edited")
            case kind if kind.startswith("approval."):
                self._approvals[said["approval"]] = (entry, said)

    def _closed(self, entry: Entry, said: Mapping[str, Any], task: str) -> Iterator[Fault]:
        opened = self._records.pop(task, None)
        row = digests.record_row(self._conn, task)
        if row is None:
            yield _at(entry, "record", "the record was deleted")
        elif digests.digest(row) != said["record"]:
            same = opened is None or digests.digest(row[: len(digests.OPENING)]) == opened.digest
            yield _at(entry, "record", _EDITED) if same else _at(entry, "opening", _OPENING_EDITED)
        if opened is None:
            self._lost_from_before += 1
        if digests.digest(digests.event_rows(self._conn, task)) != said["events"]:
            yield _at(entry, "events", "the timeline was edited")
        if more := sorted(digests.lease_names(self._conn, task).difference(said["held"])):
            yield _at(entry, "leases", f"lease {more[0]} was put in: the call had none such")
        if not self._egress_is(task, said["egress"], pruned=said["at"] <= self._pruned_until_s):
            yield _at(entry, "egress", "the egress log was edited")
        if entry.statement is None or hashlib.sha256(entry.statement.encode()).hexdigest() != said["says"]:
            yield _at(entry, "statement", "the statement of the receipt was edited")

    def _egress_is(self, task: str, known: str | None, *, pruned: bool) -> bool:
        totals = digests.egress_totals(self._conn, task)
        if totals is None:
            return (known is None or pruned) and digests.egress_digest(self._conn, task) == digests.FIRST
        # A log that was begun before there was a chain has a digest of its totals alone.
        return digests.digest(totals) == known and (
            totals[-1] == digests.egress_digest(self._conn, task) if totals[-1] is not None
            else totals[0] == chain.count_egress(self._conn, task)
        )  # fmt: skip

    def _still_open(self) -> Iterator[Fault]:
        """Step 3 for what no entry has closed."""
        for task, opened in self._records.items():
            row = digests.record_row(self._conn, task)
            if row is None:
                yield _at(opened.entry, "record", "the record was deleted")
                continue
            if digests.digest(row[: len(digests.OPENING)]) != opened.digest:
                yield _at(opened.entry, "opening", _OPENING_EDITED)
            if row[_STATE] == "closed":
                yield _at(opened.entry, "record", "the record says that it is closed, and no entry says so")
            if more := sorted(digests.lease_names(self._conn, task) - opened.leases):
                yield _at(opened.entry, "leases", f"lease {more[0]} was put in: no entry speaks of it")
        for lease, opened in self._leases.items():
            row = digests.lease_row(self._conn, lease)
            step = opened.entry.kind.removeprefix("lease.")
            if row is None:
                yield _at(opened.entry, "leases", f"lease {lease} was deleted")
            elif row[_LEASE_STATE] != step or digests.digest(row[: digests.SETTLED[step]]) != opened.digest:
                yield _at(opened.entry, "leases", f"lease {lease} was edited")

    def _agreed(self) -> Iterator[Fault]:
        """Step 3 for approvals: each is what the last entry about it says."""
        known = dict(self._approvals)
        for row in approvals.everything(self._conn):
            entry, said = known.pop(row["approval"], (None, {}))
            if entry is None:
                yield Fault(group="approvals", detail=f"approval {row['approval']} was put in: no entry speaks of it")
            elif any(said.get(name) != value for name, value in row.items()):
                yield _at(entry, "approvals", f"approval {row['approval']} was edited")
        for name, (entry, _) in known.items():
            yield _at(entry, "approvals", f"approval {name} was deleted")

    def _inserted(self) -> Iterator[Fault]:
        """Step 4."""
        total, _ = chain.count_records(self._conn)
        if not self._before and total == self._opened:
            return
        expected = self._before - self._lost_from_before
        for task, _ in chain.unchained(self._conn):
            if not self._before or task > self._newest_before:
                yield Fault(group="record", task=task, detail="the record was put in: no entry speaks of it")
            else:
                self.summary.uncovered += 1
        if self.summary.uncovered != expected:
            yield Fault(
                group="record",
                detail=f"of the records from before there was a chain {self.summary.uncovered} are there, and {expected} should be",
            )

    def _signed(self) -> Iterator[Fault]:
        """Step 1."""
        for _, runtime, seq, envelope in chain.checkpoints(self._conn):
            self.summary.checkpoints += 1
            said, why = self._checkpoint(envelope)
            if said is not None and (said["runtime"], said["seq"]) != (runtime, seq):
                why = "it is another's: its row was edited"
            entry = chain.find(self._conn, runtime, seq)
            if said is not None and not why and (entry is None or entry.hash != said["hash"]):
                why = "the chain has no such entry there: it was rewritten or cut"
            if why:
                yield Fault(group="checkpoint", detail=f"checkpoint: {why}", runtime=runtime, seq=seq)
            elif entry is not None:
                self._covered = max(self._covered, entry.number)
        for link in chain.unsigned_ends(self._conn):
            yield Fault(
                group="checkpoint", detail="the chain ended, and the checkpoint of its end is missing",
                runtime=link.runtime_id, seq=link.seq,
            )  # fmt: skip
        for runtime, since, seq in chain.unsigned_stretches(self._conn, LONGEST_STRETCH):
            yield Fault(group="checkpoint", detail=f"no checkpoint from entry {since} to {seq}", runtime=runtime, seq=seq)

    def _seen_outside(self) -> Iterator[Fault]:
        """Step 5."""
        for number, line in enumerate(self._witnessed, 1):
            if not line.strip():
                continue
            self.summary.witnessed += 1
            said, why = self._checkpoint(line)
            if said is None:
                yield Fault(group="witness", detail=f"line {number} of the witness: {why}")
                continue
            entry = chain.find(self._conn, said["runtime"], said["seq"])
            if entry is None:
                why = "the witness saw an entry there which is missing: the chain was cut, or the ledger is an old copy"
            elif entry.hash != said["hash"]:
                why = "the witness saw another entry there: the chain was rewritten"
            if why:
                yield Fault(group="witness", detail=why, runtime=said["runtime"], seq=said["seq"])

    def _checkpoint(self, envelope: str) -> tuple[dict[str, Any] | None, str]:
        """What a checkpoint says, and what is wrong with it."""
        try:
            payload, key = dsse.opened(json.loads(envelope), dsse.CHECKPOINT, self._keys)
            said = json.loads(payload)
            at_s = float(said["at"])
            found = {"runtime": str(said["runtime"]), "seq": int(said["seq"]), "hash": said["hash"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return None, str(error) if type(error) is ValueError else "it is no checkpoint"
        return found, "" if key.signs_at(at_s) else f"its key {key.kid} was not in use when it says it was signed"


def _said(entry: Entry) -> dict[str, Any] | None:
    """What an entry's text says; None when it is not what was hashed, or not what its row says."""
    try:
        if hashlib.sha256(entry.body.encode()).hexdigest() != entry.hash:
            return None
        said: dict[str, Any] = json.loads(entry.body)
        columns = (said["runtime"], said["seq"], said["kind"], said["task"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return said if columns == (entry.runtime_id, entry.seq, entry.kind, entry.task) else None


def _before_of(body: str) -> float:
    """Up to when a pruning says that it forgot; its entry is judged with the others."""
    try:
        return float(json.loads(body)["before"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0


def _missing(before: int, seq: int) -> str:
    count = seq - before - 1
    return f"entry {seq - 1} is missing" if count == 1 else f"entries {before + 1} to {seq - 1} are missing"


def _at(entry: Entry, group: str, detail: str) -> Fault:
    return Fault(group=group, detail=detail, runtime=entry.runtime_id, seq=entry.seq, task=entry.task)
