"""What policy asks a person about waits, is judged again, and runs once: for exactly what was agreed to."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import fakes
from fumehood.admission import approval, verify
from fumehood.approvals import prompt
from fumehood.lifecycle import Event
from fumehood.model import (
    Decision,
    Deny,
    Filesystem,
    Grant,
    Image,
    Keeping,
    PinOf,
    Scope,
    Sender,
    SessionLife,
    Verdict,
    Verified,
    WorkspaceMode,
)
from fumehood.permission import Need
from fumehood.ports import Approvals, Definition, Ports
from fumehood.reasons import Reason
from fumehood.screening.known import KnownSecrets

pytestmark = pytest.mark.anyio
IMAGE = Image(name="python", digest="sha256:" + "2" * 64, docker_id=None)


class OneImage:
    def resolve(self, name: str) -> Image | None:  # noqa: ARG002 - the port's signature
        return IMAGE


@dataclass
class Noted:
    """A log that keeps what is noted."""

    events: list[tuple[Event, Mapping[str, Any]]] = field(default_factory=list)

    async def event(self, event: Event, **facts: Any) -> None:
        self.events.append((event, facts))


@dataclass
class Client:
    """The client of a call: what it says when it is told."""

    says: bool | None = None
    withdraws: bool = False
    told: list[Mapping[str, Any]] = field(default_factory=list)

    async def pending(self, waiting: Mapping[str, Any]) -> bool | None:
        self.told.append(waiting)
        return self.says


def asked_about(verdict: Verdict, *secrets: str) -> approval._Question:
    known = KnownSecrets()
    known.enter_texts("lease", secrets)
    return approval._Question(verdict, known)


@dataclass
class World:
    """A ledger, and calls that begin in it."""

    ledger: fakes.FakeLedger = field(default_factory=fakes.FakeLedger)
    approvals: Approvals = field(default_factory=lambda: Approvals(approvers=frozenset({"alice", "bob"}), wait_s=30))
    log: Noted = field(default_factory=Noted)
    clock: fakes.FakeClock = field(default_factory=fakes.FakeClock)

    @property
    def ports(self) -> Ports:
        return replace(fakes.ports(self.ledger, self.clock), approvals=self.approvals)

    async def verdict(self, need: Need | None = None, decision: Decision = Decision.ASK, **changed: Any) -> Verdict:
        call = replace(fakes.call(), **{"arguments": {"to": "origin"}, **changed})
        await self.ledger.open(call)
        found = verify.check(call, OneImage(), None if call.pin is None else self.ledger.pin_state(call))
        assert isinstance(found, Verified), found
        return Verdict(verified=found, decision=decision, rule="ask.1", why=("it pushes",), need=need or Need())

    async def settle(
        self, verdict: Verdict, judge: Callable[[], Verdict | Deny] | None = None, requester: Client | None = None
    ) -> Grant | Deny:
        async def again() -> Verdict | Deny:
            return verdict if judge is None else judge()

        with anyio.fail_after(10):
            return await approval.settle(verdict, again, requester, self.log, self.ports)

    async def asked(self, number: int = 1) -> list[dict[str, Any]]:
        with anyio.fail_after(5):
            while len(found := self.ledger.waiting()) < number:
                await anyio.lowlevel.checkpoint()
        return found


async def with_approver(world: World, settling: Awaitable[Grant | Deny], act: Callable[[str], None]) -> Grant | Deny:
    """What comes of a call while somebody acts on what waits."""
    found: list[Grant | Deny] = []

    async def settle() -> None:
        found.append(await settling)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(settle)
        act((await world.asked())[0]["id"])
    return found[0]


def reason(found: Grant | Deny) -> Reason:
    assert isinstance(found, Deny), found
    return found.reason


async def test_what_is_allowed_asks_nobody() -> None:
    world = World()
    verdict = await world.verdict(decision=Decision.ALLOW)
    assert await world.settle(verdict) == Grant(verdict=verdict)
    assert (world.ledger.waiting(), world.log.events) == ([], [])


async def test_a_call_waits_for_its_approver_and_its_grant_names_who_it_was() -> None:
    world = World()
    verdict, client = await world.verdict(), Client()
    found = await with_approver(world, world.settle(verdict, requester=client), lambda name: world.ledger.vote(name, reason="looks fine"))
    assert isinstance(found, Grant)
    assert found.approval is not None
    (vote,) = found.approval.votes
    assert (vote.approver, vote.how, vote.reason, vote.identity) == ("alice", "signed", "looks fine", "key:k")
    assert [event for event, _ in world.log.events] == [Event.ASK]
    assert world.log.events[0][1]["binding"] == found.approval.binding
    assert "it pushes" in "\n".join(prompt.lines(client.told[0]))


async def test_a_call_that_nobody_decides_is_told_how_it_goes_on_and_the_same_request_goes_on() -> None:
    world = World(approvals=Approvals(approvers=frozenset({"alice"}), wait_s=0))
    first = await world.settle(await world.verdict())
    assert reason(first) is Reason.APPROVAL_PENDING
    (row,) = world.ledger.waiting()
    assert isinstance(first, Deny)
    assert row["id"] in (first.remedy or "")
    assert reason(await world.settle(await world.verdict())) is Reason.APPROVAL_PENDING
    assert len(world.ledger.waiting()) == 1, "the same request attaches"
    world.ledger.vote(row["id"])
    assert isinstance(await world.settle(await world.verdict()), Grant)
    assert reason(await world.settle(await world.verdict())) is Reason.APPROVAL_PENDING, "it was for one call"


async def test_a_denial_is_told_with_the_approvers_words() -> None:
    world = World()
    verdict = await world.verdict()
    found = await with_approver(world, world.settle(verdict), lambda name: world.ledger.vote(name, approves=False, reason="not on a Friday"))
    assert reason(found) is Reason.APPROVAL_DENIED
    assert "alice denied" in found.detail  # type: ignore[union-attr]
    assert "not on a Friday" in found.detail  # type: ignore[union-attr]


async def test_what_nobody_could_approve_is_refused_at_once() -> None:
    world = World()
    for need in (Need(approvers=frozenset({"carol"})), Need(approvers=frozenset()), Need(count=3)):
        assert reason(await world.settle(await world.verdict(need))) is Reason.APPROVAL_UNAVAILABLE
    world.approvals = Approvals()
    assert reason(await world.settle(await world.verdict())) is Reason.APPROVAL_UNAVAILABLE
    assert world.ledger.waiting() == []


async def test_a_verdict_that_denies_is_no_grant() -> None:
    world = World()
    assert reason(await world.settle(await world.verdict(decision=Decision.DENY))) is Reason.APPROVAL_UNAVAILABLE


def swapped(verdict: Verdict, **call: Any) -> Verdict:
    return replace(verdict, verified=replace(verdict.verified, call=replace(verdict.verified.call, **call)))


@pytest.mark.parametrize(
    "other",
    [
        {"arguments": {"to": "elsewhere"}},
        {"tool": "git_reset"},
        {"pin": "sha256:other"},
        {"sender": Sender(uid=0, name="http:mallory")},
        {"sender": Sender(uid=0, name="root", tenant="other")},
        {"server": "another", "request_digest": "sha256:x"},
        {"request_digest": "sha256:another"},
        {"session": "0" * 26},
        {"front_door": "delegate"},
    ],
)
async def test_an_approval_is_for_nothing_else(other: dict[str, Any]) -> None:
    world = World()
    verdict = await world.verdict()
    assert asked_about(verdict).binding != asked_about(swapped(verdict, **other)).binding


async def test_an_approval_is_of_one_profile_image_policy_need_and_workspace(tmp_path: Path) -> None:
    world = World()
    verdict = await world.verdict()
    profile = verdict.verified.call.profile
    mounted = replace(profile, filesystem=Filesystem(workspace=WorkspaceMode.RW))
    bindings = {asked_about(verdict).binding}
    bindings.add(asked_about(swapped(verdict, profile=replace(profile, digest="sha256:9"))).binding)
    bindings.add(asked_about(replace(verdict, need=Need(count=2))).binding)
    image = replace(IMAGE, digest="sha256:" + "9" * 64)
    bindings.add(asked_about(replace(verdict, verified=replace(verdict.verified, image=image))).binding)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fd = os.open(tmp_path / name, os.O_RDONLY)
        # The same path: another directory may have been put in its place.
        bindings.add(asked_about(swapped(verdict, profile=mounted, workspace_fd=fd, workspace_path="/w")).binding)
        os.close(fd)
    bindings.add(asked_about(replace(verdict, policy="sha256:another")).binding)
    assert len(bindings) == 7


async def test_a_workspace_is_said_not_to_be_pinned(tmp_path: Path) -> None:
    world = World()
    verdict = await world.verdict()
    mounted = replace(verdict.verified.call.profile, filesystem=Filesystem(workspace=WorkspaceMode.RO))
    fd = os.open(tmp_path, os.O_RDONLY)
    question = asked_about(swapped(verdict, profile=mounted, workspace_fd=fd, workspace_path="/srv/w"))
    os.close(fd)
    shown = "\n".join(prompt.lines({"id": "x", "until": 1.0, "binding": "b", "question": question.fields, "need": {
        "approvers": None, "count": 1, "requester": False}}))  # fmt: skip
    assert "/srv/w (ro), contents not pinned" in shown


async def test_a_request_that_nothing_can_be_bound_to_is_refused() -> None:
    world = World()
    assert reason(await world.settle(await world.verdict(server="git", request_digest=None))) is Reason.BAD_REQUEST


async def test_the_policy_of_the_moment_decides_after_the_approver_did() -> None:
    world = World()
    verdict = await world.verdict()
    deny = Deny(reason=Reason.TOOL_NOT_ALLOWED, rule="new")
    found = await with_approver(world, world.settle(verdict, judge=lambda: deny), world.ledger.vote)
    assert found is deny


async def test_a_policy_that_asks_for_more_meanwhile_asks_anew() -> None:
    world = World(approvals=Approvals(approvers=frozenset({"alice", "bob"}), wait_s=1.0))
    verdict = await world.verdict()

    def judge() -> Verdict:
        world.clock.advance(2)  # nobody is there for the second time
        return replace(verdict, need=Need(count=2))

    found = await with_approver(world, world.settle(verdict, judge=judge), world.ledger.vote)
    assert reason(found) is Reason.APPROVAL_PENDING
    assert [event for event, _ in world.log.events] == [Event.ASK, Event.ASK]


async def test_a_tool_whose_definition_changed_while_it_waited_is_refused() -> None:
    world = World()
    place = PinOf(server="s", capabilities="c")
    await world.ledger.pins_seen(place, "git", "[]", [Definition(tool="git_log", text='{"name":"git_log"}', trusted=True)])
    pin = (await world.ledger.pins_of(place, "git"))["git_log"]
    verdict = await world.verdict(pin=pin, pin_of=place)

    def meanwhile(name: str) -> None:
        world.ledger.vote(name)
        world.ledger.review = True  # nothing that was only seen counts any more

    assert reason(await with_approver(world, world.settle(verdict), meanwhile)) is Reason.TOOL_CHANGED


async def test_two_equal_calls_need_two_approvals() -> None:
    world = World(approvals=Approvals(approvers=frozenset({"alice"}), wait_s=30))
    found: list[Grant | Deny] = []

    async def one() -> None:
        found.append(await world.settle(await world.verdict()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
        first = (await world.asked())[0]["id"]
        while sum(event is Event.ASK for event, _ in world.log.events) < 2:
            await anyio.lowlevel.checkpoint()
        world.ledger.vote(first)
        with anyio.fail_after(5):
            while not found or [row["id"] for row in world.ledger.waiting()] in ([], [first]):  # noqa: ASYNC110 - another task's
                await anyio.sleep(0.01)
        assert len(found) == 1
        world.ledger.vote(world.ledger.waiting()[0]["id"])
    spent = {each.approval.id for each in found if isinstance(each, Grant) and each.approval is not None}
    assert len(spent) == 2


async def test_a_client_cannot_approve_for_its_person_and_can_confirm_where_the_rule_says_so() -> None:
    world = World(approvals=Approvals(approvers=frozenset({"alice"}), wait_s=0.3))
    refused = await with_approver(
        world, world.settle(await world.verdict(), requester=Client(says=True)), lambda _: world.clock.advance(1)
    )
    assert reason(refused) is Reason.APPROVAL_PENDING
    found = await world.settle(await world.verdict(Need(requester=True)), requester=Client(says=True))
    assert isinstance(found, Grant)
    assert found.approval is not None
    assert [vote.how for vote in found.approval.votes] == ["requester-confirmed"]


async def test_a_client_that_takes_it_back_leaves_nothing_to_approve() -> None:
    world = World()
    assert reason(await world.settle(await world.verdict(), requester=Client(says=False))) is Reason.APPROVAL_WITHDRAWN
    assert world.ledger.waiting() == []


async def test_a_client_that_cannot_be_told_waits_all_the_same() -> None:
    class Broken(Client):
        async def pending(self, waiting: Mapping[str, Any]) -> bool | None:
            raise anyio.ClosedResourceError(waiting["id"])

    world = World()
    verdict = await world.verdict()
    assert isinstance(await with_approver(world, world.settle(verdict, requester=Broken()), world.ledger.vote), Grant)


@pytest.mark.parametrize("withdraws", [True, False])
async def test_only_a_client_that_cancels_takes_its_request_back(*, withdraws: bool) -> None:
    world = World()
    verdict = await world.verdict()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.settle, verdict, None, Client(withdraws=withdraws))
        await world.asked()
        tasks.cancel_scope.cancel()
    assert len(world.ledger.waiting()) == (0 if withdraws else 1)


async def test_an_approver_told_of_a_megabyte_of_arguments_sees_how_much_is_left_out_and_all_of_it_is_kept() -> None:
    told: list[Mapping[str, Any]] = []
    world = World(approvals=Approvals(approvers=frozenset({"alice"}), wait_s=0, tell=lambda fields, _: told.append(fields)))
    arguments = {"text": "x" * 2**20, "zz": "rm -rf"}
    verdict = await world.verdict(arguments=arguments)
    await world.settle(verdict)
    (data, _), = world.ledger.kept_bytes.values()
    assert json.loads(data) == arguments
    assert (verdict.verified.call.task, Keeping.ARGUMENTS) in world.ledger.kept_bytes
    shown = "\n".join(prompt.lines(told[0]))
    left = len(data) - prompt.ARGUMENTS_BYTES
    assert f"{left} bytes are left out: `fumehood approvals show {told[0]['id']} --arguments`" in shown


async def test_what_no_approver_could_see_waits_for_nobody() -> None:
    world = World(ledger=fakes.FakeLedger(room_bytes=10))
    found = await world.settle(await world.verdict(arguments={"text": "x" * 2**20}))
    assert reason(found) is Reason.RESULT_NOT_KEPT
    assert world.ledger.waiting() == []


async def test_without_a_ledger_nothing_is_asked_and_nothing_runs() -> None:
    world = World()
    verdict = await world.verdict()
    world.ledger.gone = True
    with pytest.raises(approval.FumehoodError, match="ledger_unavailable"):
        await world.settle(verdict)


async def test_a_ledger_that_goes_while_a_call_waits_ends_it_as_that() -> None:
    world = World()
    verdict = await world.verdict()

    def go(_: str) -> None:
        world.ledger.gone = True

    with pytest.raises(BaseExceptionGroup) as caught:
        await with_approver(world, world.settle(verdict), go)
    assert "ledger_unavailable" in str(caught.value.exceptions[0])


async def test_a_secret_is_neither_shown_nor_kept_and_calls_that_differ_in_it_are_two() -> None:
    world = World()
    secret, other = "s3cr3t-of-a-lease-1", "s3cr3t-of-a-lease-2"
    asked = [asked_about(await world.verdict(task=f"01hf7yat60000000000000009{n}", arguments={"to": each}), secret, other)
             for n, each in enumerate((secret, other))]
    assert not any(secret in question.arguments or secret in str(question.fields) for question in asked)
    assert asked[0].arguments == asked[1].arguments
    assert asked[0].binding != asked[1].binding


async def test_in_a_box_that_earlier_calls_have_used_nobody_is_asked_unless_the_profile_says_so() -> None:
    world = World()
    profile = replace(fakes.call().profile, scope=Scope.SESSION)
    verdict = await world.verdict(session="01hf7yat600000000000000099", profile=profile)
    found = await world.settle(verdict)
    assert isinstance(found, Deny)
    assert (found.reason, found.rule) == (Reason.APPROVAL_UNAVAILABLE, "session.approvals")
    assert world.ledger.waiting() == []
    call = verdict.verified.call
    allowed = replace(call, profile=replace(call.profile, session=SessionLife(approvals=True)))
    verdict = replace(verdict, verified=replace(verdict.verified, call=allowed))
    assert isinstance(await with_approver(world, world.settle(verdict), world.ledger.vote), Grant)
