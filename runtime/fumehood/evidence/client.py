"""`ports.Ledger` over the socket to the ledger process.

Invariants: `open` and `close` return when the ledger's commit is on disk; `event` when the message is in the kernel's
queue, from where the ledger takes it even if this process dies the next moment. A ledger that lives but cannot write
is asked again to close, because a record that stays open tells a lie; one that is gone is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import anyio

from fumehood.approvals.prompt import votes_of
from fumehood.asking import Asker
from fumehood.evidence.facts import DETAIL_CHARS, bounded, listed, plain, short, text
from fumehood.faults import LedgerGone
from fumehood.lifecycle import State
from fumehood.model import Keeping, Outcome, PinOf, PinState, Sender, ToolCall
from fumehood.permission import Approval, Need
from fumehood.policies.known import Account, Booked, Conversation
from fumehood.ports import Clock, Definition, EgressEntry, Kept, Opened, OpenLease, Revoked, SenderKey, Waiting
from fumehood.reasons import Reason
from fumehood.sealing import seal
from fumehood.wire import WireError

NAME_CHARS = 256
TEXT_CHARS = 1024
RETRY_S = 0.2
CLAIMED_AT_ONCE = 16
ENTRY_BYTES = 2 * 1024
ENTRIES_AT_ONCE = 64
LEASE_FACTS_BYTES = 4 * 1024
# Of the 192 KiB of a message; the longest definition, its quotes escaped, has 128.
DEFINITIONS_BYTES = 160 * 1024


class LedgerClient:
    """The worker's ledger. The caller bounds how long it waits."""

    def __init__(self, asker: Asker, clock: Clock) -> None:
        """Ask over `asker`, and date events by `clock`."""
        self._asker = asker
        self._clock = clock
        self._sealing_key: Mapping[str, Any] | None = None

    async def open(self, call: ToolCall, account: Account | None = None) -> Opened:
        """Write the call's record durably, and book it."""
        said, _ = await self._ask("open", opening(call, account))
        booked = Booked() if said["booked"] is None else Booked.of(said["booked"])
        return Opened(pin=None if said["pin"] is None else PinState(said["pin"]), booked=booked)

    async def conversation(self, task: str, account: Account) -> Conversation | None:
        """What there is by now. Raises LedgerGone."""
        said, _ = await self._ask("conversation", {"task": task, "account": _booking(account)})
        return None if said is None else Conversation.of(said)

    async def event(self, task: str, state: str, facts: Mapping[str, Any]) -> None:
        """Append one step of the call's timeline."""
        args = {"task": task, "state": state, "at": self._clock.wall_s(), "facts": bounded(facts)}
        try:
            await self._asker.tell("event", args)
        except WireError as error:
            raise _gone(error) from error

    async def close(self, outcome: Outcome) -> None:
        """Close the record, trying again for as long as the caller lets it while the ledger cannot write."""
        args = closing(outcome)
        while True:
            try:
                await self._ask("close", args)
            except LedgerGone as error:
                if isinstance(error.__cause__, WireError):
                    raise
            else:
                return
            await anyio.sleep(RETRY_S)

    async def claim(self, task: str, policy: str) -> str | None:
        """Take the key of a call, once: the earlier task that has it, or None. Raises Refused or LedgerGone."""
        said, _ = await self._ask("claim", {"task": task, "policy": text(policy, NAME_CHARS)})
        earlier: str | None = said["earlier"]
        return earlier

    async def keep(self, task: str, kind: Keeping, source: int, offset: int, size: int) -> float:
        """Keep bytes of a sealed memory file; until when. Raises Refused or LedgerGone."""
        args = {"task": task, "kind": kind.value, "offset": offset, "bytes": size}
        said, _ = await self._ask("keep", args, (source,))
        return float(said["until"])

    async def approval_ask(self, task: str, binding: str, need: Need, question: Mapping[str, Any], until_s: float) -> Waiting:
        """Have a call wait for an approval. Raises Refused or LedgerGone."""
        asked = {**asdict(need), "approvers": None if need.approvers is None else sorted(need.approvers)}
        said, _ = await self._ask(
            "approval_ask", {"task": task, "binding": binding, "need": asked, "question": dict(question), "until": until_s}
        )
        return _waiting(said)

    async def approval_state(self, approval: str) -> Waiting:
        """How it stands with it. Raises Refused or LedgerGone."""
        return _waiting((await self._ask("approval_state", {"approval": approval}))[0])

    async def approval_spend(self, approval: str, binding: str, task: str) -> Approval | None:
        """Use it up. Raises Refused or LedgerGone."""
        said, _ = await self._ask("approval_spend", {"approval": approval, "binding": binding, "task": task})
        return None if said is None else Approval(id=said["id"], binding=said["binding"], votes=votes_of(said["votes"]))

    async def approval_confirm(self, approval: str, task: str) -> None:
        """Take the requester's own confirmation. Raises Refused or LedgerGone."""
        await self._ask("approval_confirm", {"approval": approval, "task": task})

    async def approval_withdraw(self, approval: str, task: str) -> None:
        """Take the request back. Raises Refused or LedgerGone."""
        await self._ask("approval_withdraw", {"approval": approval, "task": task})

    async def approval_answer(self, text: str) -> Waiting:
        """Take a signed answer. Raises Refused or LedgerGone."""
        return _waiting((await self._ask("approval_answer", {"answer": text}))[0])

    async def approval_told(self, approval: str, task: str, told: str) -> None:
        """Note what became of telling approvers. Raises Refused or LedgerGone."""
        await self._ask("approval_told", {"approval": approval, "task": task, "told": text(told, NAME_CHARS)})

    async def lease_opened(
        self, lease: str, task: str, credential: str, provider: str, handle: Mapping[str, Any], until_s: float | None
    ) -> None:
        """Write durably that a credential is about to be issued."""
        fields = {"credential": credential, "provider": provider, "handle": dict(handle), "until": until_s}
        await self._ask("lease_opened", {"lease": lease, "task": task, **fields})

    async def lease_issued(
        self, lease: str, expires_at_s: float | None, sealed: Mapping[str, str], facts: Mapping[str, Any]
    ) -> None:
        """Write durably what else revoking it takes, sealed for the ledger alone."""
        shut = seal(await self._key(), lease, sealed) if sealed else None
        told = short(facts, LEASE_FACTS_BYTES)
        await self._ask("lease_issued", {"lease": lease, "until": expires_at_s, "sealed": shut, "facts": told})

    async def lease_closed(self, lease: str, revoked: Revoked | None, error: str | None) -> None:
        """Note a revocation, or a try that failed."""
        said = None
        if revoked is not None:
            asked, answer = text(revoked.asked, TEXT_CHARS), text(revoked.answer, TEXT_CHARS)
            said = {"gone": revoked.gone, "asked": asked, "answer": answer}
        problem = None if error is None else text(error, TEXT_CHARS)
        await self._ask("lease_closed", {"lease": lease, "revoked": said, "error": problem})

    async def leases_claim(
        self, *, lease: str | None = None, task: str | None = None, after: str | None = None, orphaned: bool
    ) -> Sequence[OpenLease]:
        """Take some leases to revoke."""
        wanted = {"lease": lease, "task": task, "after": after, "orphaned": orphaned, "limit": CLAIMED_AT_ONCE}
        rows, _ = await self._ask("leases_claim", wanted)
        return [OpenLease(until_s=row.pop("until"), opened_at_s=row.pop("opened_at"), **row) for row in rows]

    async def _key(self) -> Mapping[str, Any]:
        if self._sealing_key is None:
            self._sealing_key, _ = await self._ask("sealing_key", {})
        return self._sealing_key or {}

    async def egress(self, task: str, entries: Sequence[EgressEntry], counters: Mapping[str, int]) -> None:
        """Append to a task's egress log."""
        rows = [
            {"at": entry.at_s, "kind": text(entry.kind, 16), "facts": short(entry.facts, ENTRY_BYTES)} for entry in entries
        ]
        # At least one message, for the counters; so many at a time that the largest of them fit into one.
        for start in range(0, max(1, len(rows)), ENTRIES_AT_ONCE):
            part = rows[start : start + ENTRIES_AT_ONCE]
            await self._ask("egress", {"task": task, "entries": part, "counters": dict(counters)})

    async def spend(self, key: str, nonce: str, until_s: float) -> None:
        """Take a nonce durably. Raises Refused or LedgerGone."""
        await self._ask("spend", {"key": key, "nonce": nonce, "until": until_s})

    async def sender(self, kid: str) -> SenderKey | None:
        """The key of this thumbprint. Raises LedgerGone."""
        said, _ = await self._ask("sender", {"kid": kid})
        if said is None:
            return None
        return SenderKey(
            kid=kid, name=said["name"], key=said["key"], tenant=said["tenant"], groups=tuple(said["groups"]),
            audiences=tuple(said["audiences"]), revoked=said["revoked_at"] is not None,
        )  # fmt: skip

    async def pins_seen(
        self, of: PinOf, profile: str, declared: str, definitions: Sequence[Definition]
    ) -> Mapping[str, PinState]:
        """Tell what a server's tools are now, as many at a time as fit one message."""
        place = {**asdict(of), "profile": text(profile, NAME_CHARS), "declared": text(declared, TEXT_CHARS)}
        found: dict[str, PinState] = {}
        for part in _parts([asdict(each) for each in definitions]):
            said, _ = await self._ask("pins_seen", {**place, "definitions": part})
            found |= {tool: PinState(state) for tool, state in said.items()}
        return found

    async def pins_of(self, of: PinOf, profile: str) -> Mapping[str, str]:
        """The tools of a server that may be called now, page by page."""
        place = {**asdict(of), "profile": text(profile, NAME_CHARS)}
        found: dict[str, str] = {}
        after: str | None = None
        while True:
            page, _ = await self._ask("pins_of", {**place, "after": after})
            found |= {row["tool"]: row["seen"] for row in page["pins"] if row["state"] == PinState.ACCEPTED}
            if not page["more"]:
                return found
            after = page["pins"][-1]["tool"]

    async def kept(self, task: str, kind: Keeping) -> Kept | None:
        """What is kept of a task. Raises Refused or LedgerGone."""
        said, fds = await self._ask("kept", {"task": task, "kind": kind.value})
        if said is None:
            return None
        stored = said["kept"]
        return Kept(
            sender=Sender(uid=said["sender_uid"], name=said["sender"], tenant=said["tenant"]),
            front_door=said["front_door"],
            is_open=said["state"] != State.CLOSED,
            result=said["result"],
            reason=said["reason"],
            opened_at_s=said["opened_at"],
            closed_at_s=said["closed_at"],
            **(
                {"fd": fds[0], "size_bytes": stored["bytes"], "kept_at_s": stored["at"], "until_s": stored["until"]}
                if stored is not None
                else {}
            ),
        )

    async def _ask(self, verb: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        try:
            return await self._asker.ask(verb, args, fds)
        except WireError as error:
            raise _gone(error) from error


def _waiting(said: Mapping[str, Any]) -> Waiting:
    return Waiting(
        id=said["id"], task=said["task"], binding=said["binding"], state=said["state"], until_s=said["until"],
        votes=votes_of(said["votes"]), is_new=said.get("is_new", False),
    )  # fmt: skip


def opening(call: ToolCall, account: Account | None = None) -> dict[str, Any]:
    """What a record begins with. Arguments stay out of it, but for the name of an operator's ad-hoc command."""
    proof = call.proof
    return {
        "task": call.task,
        "tenant": text(call.sender.tenant, NAME_CHARS),
        "sender": text(call.sender.name, NAME_CHARS),
        "sender_uid": call.sender.uid,
        "front_door": call.front_door,
        "tool": None if call.named is None else text(call.named, TEXT_CHARS),
        "session": call.session,
        "command": _command(call),
        "profile": text(call.profile.name, NAME_CHARS),
        "profile_digest": call.profile.digest,
        "image": text(call.profile.image, TEXT_CHARS),
        "request_digest": call.request_digest,
        "pin": call.pin,
        "pin_of": None if call.pin_of is None else asdict(call.pin_of),
        "proof": None if proof is None else {
            "method": proof.method, "key": proof.key, "nonce": proof.nonce, "until": proof.until_s,
        },
        "idempotency_key": call.idempotency_key,
        "account": None if account is None else _booking(account),
    }  # fmt: skip


def _booking(account: Account) -> dict[str, Any] | None:
    return None if account.tool is None else {**asdict(account), "tool": text(account.tool, 2 * TEXT_CHARS)}


def closing(outcome: Outcome) -> dict[str, Any]:
    """What a record ends with."""
    return {
        "task": outcome.task,
        "result": outcome.result.value,
        "reason": None if outcome.reason is None else outcome.reason.value,
        "detail": text(outcome.detail, DETAIL_CHARS),
        "rule": None if outcome.rule is None else text(outcome.rule, NAME_CHARS),
        "repeats": None if outcome.repeats is None else outcome.repeats.task,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "engine": outcome.engine,
        "container": outcome.container,
        **plain(asdict(outcome.usage)),
        "stdout_bytes": outcome.stdout_total_bytes,
        "stderr_bytes": outcome.stderr_total_bytes,
        "stdout_truncated": outcome.stdout_truncated,
        "stderr_truncated": outcome.stderr_truncated,
        "files": listed(outcome.files),
        "files_total": max(outcome.files_total, len(outcome.files)),
        "pending": outcome.pending,
        "timings": plain(outcome.timings_ms),
    }


def _parts(definitions: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The definitions in lists of at most `DEFINITIONS_BYTES`, as they are written in a message."""
    part: list[Mapping[str, Any]] = []
    room = DEFINITIONS_BYTES
    for each in definitions:
        size = len(json.dumps(each, ensure_ascii=False).encode()) + 1
        if part and size > room:
            yield part
            part, room = [], DEFINITIONS_BYTES
        part.append(each)
        room -= size
    if part:
        yield part


def _command(call: ToolCall) -> str | None:
    argv = call.arguments.get("argv")
    if call.tool is not None or not isinstance(argv, list | tuple) or not argv:
        return None
    return text(str(argv[0]), TEXT_CHARS)


def _gone(error: WireError) -> LedgerGone:
    return LedgerGone(Reason.LEDGER_UNAVAILABLE, f"the ledger: {error}")
