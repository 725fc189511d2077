"""Fakes of `ports`, and the values that tests begin with.

A fake does what the real thing does as far as its caller can tell; `tests/e2e/test_ledger_process.py` holds
FakeLedger against the ledger process.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from fumehood.approvals.prompt import votes_of
from fumehood.evidence.client import closing, opening
from fumehood.faults import BoxFailed, LedgerGone, Refused
from fumehood.ledger import booking
from fumehood.lifecycle import NEXT, State
from fumehood.model import (
    Binding,
    Deny,
    Frame,
    Image,
    Keeping,
    Kind,
    Outcome,
    PinOf,
    PinState,
    Profile,
    Result,
    SeccompPolicy,
    Sender,
    ToolCall,
    Usage,
    task_id,
)
from fumehood.permission import Approval, Need
from fumehood.policies.config import PolicyConfig
from fumehood.policies.known import Account, Booked, Conversation
from fumehood.policies.policy import Policies, made
from fumehood.ports import (
    Definition,
    EgressEntry,
    Exited,
    Kept,
    Ledger,
    Listen,
    Made,
    Opened,
    OpenLease,
    Ports,
    Revoked,
    SenderKey,
    Settled,
    Sockets,
    Waiting,
)
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import Surveyed
from fumehood.store import approvals, conversations, nonces, pins, records
from fumehood.store.approvals import Voter
from fumehood.store.database import Transaction
from fumehood.store.migrations import migrate
from fumehood.store.pins import Place

_numbers = itertools.count(1)


@dataclass
class FakeClock:
    """Time that stands still until it is moved."""

    now_s: float = 1_000_000.0

    def wall_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def _pins() -> Transaction:
    """The ledger's own SQL about pins, on a database in memory."""
    conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(conn)
    return Transaction(cast("Any", None), conn)


@dataclass
class FakeLedger:
    """A ledger in memory. `gone` makes every request fail; `ends_at` makes it go when that state is reported."""

    gone: bool = False
    ends_at: State | None = None
    states: dict[str, State] = field(default_factory=dict)
    events: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    closed: dict[str, Outcome] = field(default_factory=dict)
    calls: dict[str, ToolCall] = field(default_factory=dict)
    kept_bytes: dict[tuple[str, Keeping], tuple[bytes, float]] = field(default_factory=dict)
    room_bytes: int = 2**30
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    egress_log: dict[str, list[EgressEntry]] = field(default_factory=dict)
    egress_counters: dict[str, Mapping[str, int]] = field(default_factory=dict)
    kept_s: float = 86_400.0
    senders: dict[str, SenderKey] = field(default_factory=dict)
    spent: dict[tuple[str, str], float] = field(default_factory=dict)
    review: bool = False
    pins: Transaction = field(default_factory=_pins)
    keys: dict[tuple[Sender, str], tuple[str, str]] = field(default_factory=dict)
    now_s: float = 1_000_000.0
    answers: list[str] = field(default_factory=list)

    async def open(self, call: ToolCall, account: Account | None = None) -> Opened:
        self._check()
        if call.task in self.states:
            raise _not_possible("open", call.task)
        self.states[call.task] = State.OPEN
        self.calls[call.task] = call
        said = booking.opened(self.pins, opening(call, account), at_s=time.time())
        booked = Booked() if said is None else Booked.of(said)
        return Opened(pin=None if call.pin is None or call.pin_of is None else self.pin_state(call), booked=booked)

    async def conversation(self, task: str, account: Account) -> Conversation | None:
        said = conversations.known(self.pins, task, asdict(account), at_s=time.time())
        return None if said is None else Conversation.of(said)

    async def pins_seen(
        self, of: PinOf, profile: str, declared: str, definitions: Sequence[Definition]
    ) -> Mapping[str, PinState]:
        self._check()
        place = Place(profile=profile, **asdict(of))
        told = [asdict(each) for each in definitions]
        pins.see(self.pins, place, told, declared, review=self.review, at_s=1.0)
        return {
            each.tool: pins.state(self.pins, place, each.tool, pins.pin_of(each.text), review=self.review) for each in definitions
        }

    async def pins_of(self, of: PinOf, profile: str) -> Mapping[str, str]:
        self._check()
        page = pins.states(self.pins, Place(profile=profile, **asdict(of)), None, review=self.review)
        return {row["tool"]: row["seen"] for row in page["pins"] if row["state"] == PinState.ACCEPTED}

    def pin_state(self, call: ToolCall) -> PinState:
        """What the ledger says of a call's pin."""
        assert call.pin is not None
        assert call.pin_of is not None
        place = Place(profile=call.profile.name, **asdict(call.pin_of))
        return pins.state(self.pins, place, call.tool or "", call.pin, review=self.review)

    def accept(self, tool: str) -> None:
        """What an operator does: whatever is seen of this tool now is accepted."""
        key = dict.fromkeys(("server", "profile", "tool", "capabilities"), "")
        for row in pins.pins(self.pins, key)["pins"]:
            if row["tool"] == tool:
                pins.accept(self.pins, {**row, "pin": row["seen"]}, at_s=2.0)

    async def claim(self, task: str, policy: str) -> str | None:
        self._check()
        call = self.calls[task]
        if call.idempotency_key is None or self.states[task] is State.CLOSED:
            raise _not_possible("claim", task)
        earlier, under = self.keys.setdefault((call.sender, call.idempotency_key), (task, policy))
        if earlier == task:
            return None
        other = self.calls[earlier]
        compared = {
            "another tool": (other.named, call.named),
            "another request": (other.request_digest, call.request_digest),
            "another definition of the tool": (other.pin, call.pin),
            "another version of the profile": (other.profile.digest, call.profile.digest),
            "another policy": (under, policy),
        }
        for what, (theirs, ours) in compared.items():
            if theirs != ours:
                raise Refused(Deny(reason=Reason.KEY_REUSED, rule="once.key", detail=f"task {earlier} has it, for {what}"))
        return earlier

    async def approval_ask(self, task: str, binding: str, need: Need, question: Mapping[str, Any], until_s: float) -> Waiting:
        self._check()
        asked = {**asdict(need), "approvers": None if need.approvers is None else sorted(need.approvers)}
        given = {"task": task, "binding": binding, "need": asked, "question": dict(question), "until": until_s}
        self._known(task)
        name = task_id(next(_numbers), os.urandom(10))
        row, is_new = approvals.ask(self.pins, given, runtime_id="fake", approval=name, at_s=self.now_s)
        return replace(_waiting(row), is_new=is_new)

    async def approval_state(self, approval: str) -> Waiting:
        self._check()
        return _waiting(approvals.find(self.pins, approval))

    async def approval_spend(self, approval: str, binding: str, task: str) -> Approval | None:
        self._check()
        self._known(task)
        row = approvals.spend(self.pins, approval, binding, task, runtime_id="fake", at_s=self.now_s)
        return None if row is None else Approval(id=approval, binding=binding, votes=_waiting(row).votes)

    async def approval_confirm(self, approval: str, task: str) -> None:
        self._check()
        approvals.confirm(self.pins, approval, task, runtime_id="fake", at_s=self.now_s)

    async def approval_withdraw(self, approval: str, task: str) -> None:
        self._check()
        approvals.withdraw(self.pins, approval, task, runtime_id="fake", at_s=self.now_s)

    async def approval_answer(self, text: str) -> Waiting:
        self._check()
        self.answers.append(text)
        raise Refused(Deny(reason=Reason.ANSWER_UNFIT, rule="approval.answer", detail="this ledger takes none"))

    async def approval_told(self, approval: str, task: str, told: str) -> None:
        self._check()
        approvals.tell(self.pins, approval, task, told, runtime_id="fake")

    def waiting(self) -> list[dict[str, Any]]:
        """The approvals that wait."""
        found: list[dict[str, Any]] = approvals.approvals(self.pins, after=None, everything=False)["approvals"]
        return found

    def vote(self, approval: str, *, approves: bool = True, reason: str = "", **voter: Any) -> None:
        """What an approver does."""
        who = Voter(**{"approver": "alice", "how": "signed", "kid": "k", **voter})
        binding = approvals.find(self.pins, approval)["binding"]
        approvals.decide(self.pins, approval, binding, who, approves=approves, reason=reason, signed=None, at_s=self.now_s)

    def _known(self, task: str) -> None:
        """Have the SQL about approvals know of a call."""
        records.open_record(self.pins, opening(self.calls[task]), runtime_id="fake", boot_id="b", at_s=self.now_s)

    async def event(self, task: str, state: str, facts: Mapping[str, Any]) -> None:
        if self.ends_at == state:
            self.gone = True
        self._check()
        before, after = self.states.get(task), State(state)
        # The ledger process refuses these on its stderr only: nobody waits for an event's reply.
        if any(old is before and new is after for (old, _), new in NEXT.items()) and after is not State.CLOSED:
            self.states[task] = after
            self.events.append((task, state, dict(facts)))

    async def close(self, outcome: Outcome) -> None:
        self._check()
        if self.states.get(outcome.task, State.CLOSED) is State.CLOSED:
            raise _not_possible("close", outcome.task)
        self.states[outcome.task] = State.CLOSED
        self.closed[outcome.task] = outcome
        booking.closed(self.pins, outcome.task, closing(outcome), at_s=time.time())
        ran = any((task, state) == (outcome.task, State.BOUND) for task, state, _ in self.events)
        if outcome.result is Result.REFUSED or not ran:
            self.keys = {name: taken for name, taken in self.keys.items() if taken[0] != outcome.task}

    async def keep(self, task: str, kind: Keeping, source: int, offset: int, size: int) -> float:
        self._check()
        data = os.pread(source, size, offset)
        kept = sum(len(other) for other, _ in self.kept_bytes.values())
        if task not in self.calls or (task, kind) in self.kept_bytes or kept + size > self.room_bytes:
            raise Refused(Deny(reason=Reason.RESULT_NOT_KEPT, rule="ledger.keep", detail="as the test asked"))
        self.kept_bytes[task, kind] = data, time.time()
        return time.time() + self.kept_s

    async def lease_opened(
        self, lease: str, task: str, credential: str, provider: str, handle: Mapping[str, Any], until_s: float | None
    ) -> None:
        self._check()
        told = {"task": task, "credential": credential, "provider": provider, "handle": dict(handle), "until": until_s}
        self.leases[lease] = {**told, "state": "opened", "tries": []}

    async def lease_issued(
        self, lease: str, expires_at_s: float | None, sealed: Mapping[str, str], facts: Mapping[str, Any]
    ) -> None:
        self._check()
        self.leases[lease].update(state="issued", until=expires_at_s, sealed=dict(sealed), facts=dict(facts))

    async def lease_closed(self, lease: str, revoked: Revoked | None, error: str | None) -> None:
        self._check()
        self.leases[lease]["tries"].append(error)
        self.leases[lease]["claimed"] = False
        if revoked is not None:
            self.leases[lease].update(state="closed", revoked=revoked)

    async def leases_claim(
        self, *, lease: str | None = None, task: str | None = None, after: str | None = None, orphaned: bool
    ) -> Sequence[OpenLease]:
        self._check()
        found = [
            OpenLease(
                lease=name, task=row["task"], credential=row["credential"], provider=row["provider"], handle=row["handle"],
                sealed=row.get("sealed", {}), opened_at_s=row.get("opened_at", 0.0), issued=row["state"] == "issued", until_s=row["until"], tries=len(row["tries"]),
            )
            for name, row in sorted(self.leases.items())
            if row["state"] != "closed" and lease in {None, name} and task in {None, row["task"]} and (after is None or name > after)
            # The real one lets a lease rest after a try that failed.
            and not (orphaned and (row["tries"] or self.states.get(row["task"]) is not State.CLOSED))
            and not row.get("claimed")
        ]  # fmt: skip
        for each in found:
            self.leases[each.lease]["claimed"] = True
        return found

    async def egress(self, task: str, entries: Sequence[EgressEntry], counters: Mapping[str, int]) -> None:
        self._check()
        self.egress_log.setdefault(task, []).extend(entries)
        self.egress_counters[task] = dict(counters)

    async def spend(self, key: str, nonce: str, until_s: float) -> None:
        self._check()
        now_s = time.time()
        reason = None
        if key in self.senders and self.senders[key].revoked:
            reason = Reason.SENDER_REVOKED
        elif until_s + nonces.GRACE_S < now_s:
            reason = Reason.PROOF_EXPIRED
        elif until_s > now_s + nonces.FURTHEST_S:
            reason = Reason.PROOF_INVALID
        elif (key, nonce) in self.spent:
            reason = Reason.REPLAYED
        elif sum(other == key for other, _ in self.spent) >= nonces.NONCES_OF_A_KEY:
            reason = Reason.NONCES_FULL
        if reason is not None:
            raise Refused(Deny(reason=reason, rule="ledger.spend"))
        self.spent[key, nonce] = until_s

    async def sender(self, kid: str) -> SenderKey | None:
        self._check()
        return self.senders.get(kid)

    async def kept(self, task: str, kind: Keeping) -> Kept | None:
        self._check()
        call = self.calls.get(task)
        if call is None:
            return None
        outcome = self.closed.get(task)
        found: dict[str, Any] = {}
        if (task, kind) in self.kept_bytes:
            data, at_s = self.kept_bytes[task, kind]
            fd = os.memfd_create("kept", os.MFD_CLOEXEC)
            os.write(fd, data)
            found = {"fd": fd, "size_bytes": len(data), "kept_at_s": at_s, "until_s": at_s + self.kept_s}
        return Kept(
            sender=call.sender, front_door=call.front_door, is_open=outcome is None,
            result=None if outcome is None else outcome.result.value,
            reason=None if outcome is None or outcome.reason is None else outcome.reason.value,
            opened_at_s=1.0, closed_at_s=None if outcome is None else 2.0, **found,
        )  # fmt: skip

    def facts_of(self, state: State) -> Mapping[str, Any]:
        """What was reported when a call came to `state`."""
        return next(facts for _, name, facts in self.events if name == state)

    def _check(self) -> None:
        if self.gone:
            raise LedgerGone(Reason.LEDGER_UNAVAILABLE, "the fake is gone")


def _waiting(row: Mapping[str, Any]) -> Waiting:
    return Waiting(
        id=row["id"], task=row["task"], binding=row["binding"], state=row["state"], until_s=row["until"], votes=votes_of(row["votes"])
    )


def _not_possible(verb: str, task: str) -> Refused:
    detail = f"{verb}: not possible for {task} in its state"
    return Refused(Deny(reason=Reason.BAD_REQUEST, rule="ledger.request", detail=detail))


class NoBroker:
    """A broker that nobody may reach: for tests of what happens without a box."""

    async def make(self, task: str, frame: Frame) -> Made:
        raise _no_box(task, frame)

    async def network(self, task: str, listen: Sequence[Listen]) -> Sockets:
        raise _no_box(task, listen)

    async def bind(self, task: str, binding: Binding, supplies: Supplies) -> Mapping[str, Any]:
        raise _no_box(task, binding, supplies)

    async def start(
        self, task: str, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int], *, check_fence: bool
    ) -> Mapping[str, Any]:
        del check_fence
        raise _no_box(task, argv, env, stdio)

    async def wait(self, task: str) -> Exited:
        raise _no_box(task)

    async def kill(self, task: str, reason: Reason) -> None:
        raise _no_box(task, reason)

    async def freeze(self, task: str, seconds: float) -> Usage:
        raise _no_box(task, seconds)

    async def thaw(self, task: str) -> None:
        raise _no_box(task)

    async def survey(self, task: str) -> Surveyed:
        raise _no_box(task)

    async def put(self, task: str, source: int, path: str) -> None:
        raise _no_box(task, source, path)

    async def get(self, task: str, path: str, target: int, most_bytes: int | None = None) -> None:
        raise _no_box(task, path, target, most_bytes)

    async def settle(self, task: str, action: str, protect: Sequence[str]) -> Settled:
        raise _no_box(task, action, protect)

    async def remove(self, task: str) -> Mapping[str, Any]:
        raise _no_box(task)


def _no_box(*asked: object) -> BoxFailed:
    return BoxFailed(Reason.INTERNAL, f"this test has no broker, and it was asked {asked!r}")


class NoImages:
    """An empty image store."""

    def resolve(self, name: str) -> Image | None:  # noqa: ARG002 - the port's signature
        return None


def all_senders() -> Policies:
    """The policies that ship, with the one that lets every sender call what profiles allow."""
    return Policies(made(PolicyConfig(shipped=("owner", "senders", "taint")), ()))


def ports(ledger: Ledger | None = None, clock: FakeClock | None = None) -> Ports:
    """Ports whose ledger and clock are fakes, with no broker and no images behind them."""
    return Ports(
        broker=NoBroker(), ledger=ledger or FakeLedger(), images=NoImages(), clock=clock or FakeClock(), owner_uid=0
    )


def new_task() -> str:
    """A task id after all others of this test run."""
    number = next(_numbers)
    return task_id(1_700_000_000_000 + number, number.to_bytes(10, "big"))


def call(*, task: str | None = None, tool: str | None = "git_log", profile: str = "git") -> ToolCall:
    """A call of a tool by the owner of the state folder."""
    return ToolCall(
        task=task or new_task(),
        tool=tool,
        kind=Kind.COMMAND if tool is None else Kind.TOOL,
        arguments={"argv": ["python3", "-c", "pass"]} if tool is None else {},
        sender=Sender(uid=0, name="root"),
        profile=Profile(
            name=profile,
            digest="sha256:" + "1" * 64,
            image="python",
            seccomp=SeccompPolicy(name="default", default_errno=1, rules=()),
        ),
    )
