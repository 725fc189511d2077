"""Leases of a call: on disk before they are issued, revoked however the call is left, told when they could not be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest

from fakes import FakeLedger, call, ports
from fumehood import sandbox
from fumehood.credentials import leasing, revoking
from fumehood.credentials.leasing import lease
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.lifecycle import State
from fumehood.model import (
    Decision,
    Fresh,
    Grant,
    Image,
    Kind,
    Plan,
    Scope,
    ToolCall,
    Verdict,
    Verified,
)
from fumehood.ports import Issued, LeaseRequest, Outward, Ports, Revoked
from fumehood.reach import CredentialUse, Delivery, Secret, SecretForm
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio
CANARY = "canary-5f1c2a-do-not-tell"


@dataclass
class FakeProvider:
    """A backend in memory that notes what it is asked, and fails as it is told."""

    kind: str = "fake"
    revocable: bool = True
    least_s: float = 0.0
    maximum: Mapping[str, Any] = field(default_factory=lambda: {"repo": ["acme/*"]})
    ledger: FakeLedger | None = None
    live: set[str] = field(default_factory=set)
    requests: list[LeaseRequest] = field(default_factory=list)
    revoked: list[tuple[Mapping[str, Any], Mapping[str, str]]] = field(default_factory=list)
    failing: int = 0
    raises: Exception | None = None
    issue_s: float = 0.0
    hangs: bool = False

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        return {"name": f"r-{request.lease}"}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        if self.ledger is not None:  # rule 19: how to revoke it is on disk before it is made
            assert self.ledger.leases[request.lease]["state"] == "opened"
            assert self.ledger.leases[request.lease]["handle"]["name"] == handle["name"]
        await anyio.sleep(self.issue_s)
        self.requests.append(request)
        if self.raises is not None:
            raise self.raises
        self.live.add(handle["name"])
        secret = Secret(form=SecretForm.TOKEN, parts={"token": f"{CANARY}-{len(self.requests)}"})
        return Issued(secret=secret, expires_at_s=2_000_000.0, sealed={"token": CANARY}, facts={"scope": dict(request.scope)})

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        self.revoked.append((handle, sealed))
        if self.hangs:
            await anyio.sleep_forever()
        if self.failing:
            self.failing -= 1
            raise FumehoodError(Reason.LEASE_FAILED, "the backend is away")
        self.live.discard(handle["name"])
        return Revoked(gone=True, asked="DELETE", answer="204")


@dataclass
class Remarks:
    said: list[str] = field(default_factory=list)

    def remark(self, text: str) -> None:
        self.said.append(text)


USE = CredentialUse(name="github", source="gh", scope={"repo": "acme/{args.repo}"})


def planned(*uses: CredentialUse, kind: Kind = Kind.TOOL, session: str | None = None, **arguments: Any) -> Plan:
    one: ToolCall = call()
    profile = replace(one.profile, credentials=uses, scope=Scope.CALL)
    one = replace(one, profile=profile, arguments={"repo": "site", **arguments}, kind=kind, session=session)
    image = Image(name="python", digest="sha256:" + "0" * 64, docker_id=None)
    verdict = Verdict(verified=Verified(call=one, image=image), decision=Decision.ALLOW, rule="test")
    return sandbox.plan(Fresh(grant=Grant(verdict=verdict)))


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def provider(ledger: FakeLedger) -> FakeProvider:
    return FakeProvider(ledger=ledger)


@pytest.fixture
def given(ledger: FakeLedger, provider: FakeProvider) -> Ports:
    return replace(ports(ledger), outward=Outward(providers={"gh": provider, "other": provider}))


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "REVOKE_DEADLINE_S", 0.3)
    monkeypatch.setattr(leasing, "_PAUSES_S", (0.005,))


async def test_a_lease_is_journalled_issued_usable_and_revoked_with_its_proof(
    given: Ports, ledger: FakeLedger, provider: FakeProvider
) -> None:
    plan = planned(USE)
    async with lease(plan, given, Remarks()) as leases:
        (row,) = ledger.leases.values()
        assert row["state"] == "issued"
        assert (row["task"], row["credential"], row["provider"]) == (plan.call.task, "github", "gh")
        assert row["handle"]["kind"] == "fake"
        secret = leases.secret("github")
        assert secret is not None
        assert secret.parts["token"].startswith(CANARY)
        assert leases.secret("other") is None
        assert leases.supplies.files == ()
        assert not leases.supplies.environment
    assert row["state"] == "closed"
    assert row["revoked"] == Revoked(gone=True, asked="DELETE", answer="204")
    assert leases.secret("github") is None
    assert provider.live == set()
    assert provider.requests[0].scope == {"repo": "acme/site"}
    assert provider.requests[0].seconds > plan.limits.wall_s


@pytest.mark.parametrize("how", [RuntimeError("a stage"), FumehoodError(Reason.BOX_FAILED, "x"), None])
async def test_it_is_revoked_however_the_call_is_left(given: Ports, provider: FakeProvider, how: Exception | None) -> None:
    with anyio.CancelScope() as scope:
        try:
            async with lease(planned(USE), given, Remarks()):
                assert provider.live
                if how is None:
                    scope.cancel()
                    await anyio.sleep_forever()
                raise how
        except (RuntimeError, FumehoodError) as error:
            assert error is how
    assert provider.live == set()


async def test_a_cancel_in_the_middle_of_an_issue_does_not_lose_what_revokes_it(
    given: Ports, ledger: FakeLedger, provider: FakeProvider
) -> None:
    provider.issue_s = 0.05
    with anyio.move_on_after(0.01):
        async with lease(planned(USE), given, Remarks()):
            pass
    assert provider.live == set()
    ((_, sealed),) = provider.revoked
    assert sealed == {"token": CANARY}
    assert {row["state"] for row in ledger.leases.values()} == {"closed"}


async def test_a_failed_revocation_is_tried_again(given: Ports, ledger: FakeLedger, provider: FakeProvider) -> None:
    provider.failing = 3
    log = Remarks()
    async with lease(planned(USE), given, log):
        pass
    (row,) = ledger.leases.values()
    assert row["state"] == "closed"
    assert row["tries"] == ["the backend is away"] * 3 + [None]
    assert log.said == []


@pytest.mark.parametrize("hangs", [True, False])
async def test_what_cannot_be_revoked_in_time_stays_open_and_the_outcome_says_until_when(
    given: Ports, ledger: FakeLedger, provider: FakeProvider, hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    provider.failing, provider.hangs = 10**6, hangs
    log = Remarks()
    with anyio.fail_after(5), caplog.at_level(logging.WARNING):
        async with lease(planned(USE), given, log):
            pass
    (row,) = ledger.leases.values()
    assert row["state"] == "issued"
    assert row["tries"][-1]
    (said,) = log.said
    assert "unrevoked until 1970-01-24T03:33:20Z" in said
    assert CANARY not in caplog.text + said


async def test_an_issue_whose_answer_is_lost_is_revoked_by_its_handle(
    given: Ports, ledger: FakeLedger, provider: FakeProvider
) -> None:
    provider.raises = FumehoodError(Reason.LEASE_FAILED, "no answer")
    with pytest.raises(Refused) as refused:
        async with lease(planned(USE), given, Remarks()):
            raise AssertionError("the body must not run")
    assert refused.value.reason is Reason.LEASE_FAILED
    ((handle, sealed),) = provider.revoked
    assert handle["name"].startswith("r-")
    assert sealed == {}
    assert {row["state"] for row in ledger.leases.values()} == {"closed"}


async def test_words_of_a_providers_own_exceptions_are_not_told(given: Ports, provider: FakeProvider) -> None:
    provider.raises = ValueError(f"https://user:{CANARY}@example.org")
    with pytest.raises(Refused) as refused:
        async with lease(planned(USE), given, Remarks()):
            pass
    assert "ValueError" in str(refused.value)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


async def test_one_of_several_that_fails_ends_the_others(given: Ports, ledger: FakeLedger, provider: FakeProvider) -> None:
    broken = FakeProvider(ledger=ledger, raises=FumehoodError(Reason.LEASE_FAILED, "no"))
    given = replace(given, outward=Outward(providers={"gh": provider, "other": broken}))
    with pytest.raises(Refused):
        async with lease(planned(USE, replace(USE, name="two", source="other")), given, Remarks()):
            pass
    assert len(provider.requests) == 1
    assert provider.live == set()


async def test_several_are_issued_at_once(given: Ports, provider: FakeProvider) -> None:
    provider.issue_s = 0.1
    began = anyio.current_time()
    async with lease(planned(*(replace(USE, name=f"c{number}") for number in range(8))), given, Remarks()):
        assert anyio.current_time() - began < 0.5
        assert len(provider.live) == 8
    assert provider.live == set()


async def test_nothing_is_asked_when_one_scope_is_too_wide_or_a_provider_unknown(
    given: Ports, ledger: FakeLedger, provider: FakeProvider
) -> None:
    wide = replace(USE, name="two", scope={"repo": "evil/{args.repo}"})
    unknown = replace(USE, name="two", source="nobody")
    for uses, reason in (((USE, wide), Reason.SCOPE_REFUSED), ((USE, unknown), Reason.CONFIG_INVALID)):
        with pytest.raises(Refused) as refused:
            async with lease(planned(*uses), given, Remarks()):
                pass
        assert refused.value.reason is reason
    assert provider.requests == []
    assert ledger.leases == {}


async def test_without_a_journal_nothing_is_issued(given: Ports, ledger: FakeLedger, provider: FakeProvider) -> None:
    ledger.gone = True
    with pytest.raises(LedgerGone):
        async with lease(planned(USE), given, Remarks()):
            pass
    assert provider.requests == []
    assert provider.revoked == []


async def test_a_parked_call_holds_no_live_lease_and_gets_new_ones(given: Ports, ledger: FakeLedger, provider: FakeProvider) -> None:
    async with lease(planned(USE), given, Remarks()) as leases:
        first = leases.secret("github")
        await leases.suspend()
        assert provider.live == set()
        assert leases.secret("github") is None
        await leases.renew()
        second = leases.secret("github")
        assert second is not None
        assert second.parts != (first and first.parts)
        assert len(ledger.leases) == 2
    assert provider.live == set()
    assert {row["state"] for row in ledger.leases.values()} == {"closed"}


async def test_a_revocation_that_failed_while_parking_is_tried_again_at_the_end(given: Ports, provider: FakeProvider) -> None:
    async with lease(planned(USE), given, Remarks()) as leases:
        provider.failing = 10**6
        await leases.suspend()
        assert provider.live
        provider.failing = 0
    assert provider.live == set()


async def test_what_the_profile_delivers_into_the_box_is_supplied_and_not_renewed(given: Ports, provider: FakeProvider) -> None:
    env = replace(USE, name="env", deliver=Delivery.ENV, variable="TOKEN")
    file = replace(USE, name="file", deliver=Delivery.FILE, file="token")
    async with lease(planned(USE, env, file), given, Remarks()) as leases:
        assert list(leases.supplies.environment) == ["TOKEN"]
        assert leases.supplies.environment["TOKEN"].startswith(CANARY)
        (supplied,) = leases.supplies.files
        assert supplied.name == "secrets/token"
        assert CANARY not in repr(leases.supplies)
        assert CANARY not in repr(leases.secret("github"))
        await leases.suspend()
        await leases.renew()
        assert leases.secret("github") is not None
        assert leases.secret("env") is None
    assert provider.live == set()


async def test_a_session_holds_none_and_its_calls_take_none_into_its_box(given: Ports, provider: FakeProvider) -> None:
    async with lease(planned(USE, kind=Kind.SESSION), given, Remarks()) as leases:
        assert leases.secret("github") is None
    async with lease(planned(USE, session="0" * 26), given, Remarks()) as leases:
        assert leases.secret("github") is not None
    env = replace(USE, deliver=Delivery.ENV, variable="TOKEN")
    for plan in (planned(env, kind=Kind.SESSION), planned(env, session="0" * 26)):
        with pytest.raises(Refused) as refused:
            async with lease(plan, given, Remarks()):
                pass
        assert refused.value.reason is Reason.UNENFORCEABLE
    assert provider.live == set()


async def test_a_credential_that_nobody_can_revoke_is_closed_with_that_proof_and_not_remarked(
    given: Ports, ledger: FakeLedger, provider: FakeProvider
) -> None:
    async def cannot(handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        del handle, sealed
        return Revoked(gone=False, asked="nobody", answer="it ends by itself")

    provider.revoke = cannot  # type: ignore[method-assign]
    log = Remarks()
    for revocable, remarks in ((False, 0), (True, 1)):
        provider.revocable = revocable
        async with lease(planned(USE), given, log):
            pass
        assert len(log.said) == remarks
    assert {row["state"] for row in ledger.leases.values()} == {"closed"}


async def test_the_sweep_revokes_what_a_closed_call_left_and_says_what_stays(
    given: Ports, ledger: FakeLedger, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    from fumehood.credentials import sweep

    plan = planned(USE, replace(USE, name="two", source="other"))
    provider.failing = 10**6
    async with lease(plan, given, Remarks()):
        pass
    provider.failing = 0
    for row in ledger.leases.values():
        row["tries"].clear()
    ledger.states[plan.call.task] = State.RUNNING
    assert await sweep(ledger, {"gh": provider}) == (0, 0)  # its call lives
    ledger.states[plan.call.task] = State.CLOSED
    assert await sweep(ledger, {"gh": provider}) == (1, 1)
    (left,) = [row for row in ledger.leases.values() if row["state"] != "closed"]
    assert left["provider"] == "other"
    assert "no credential 'other' is configured now" in left["tries"][-1]
    assert "no credential 'other'" in caplog.text
    assert await sweep(ledger, {"gh": FakeProvider(kind="another"), "other": provider}) == (0, 0)
    left["tries"].clear()
    assert await sweep(ledger, {"other": FakeProvider(kind="another")}) == (0, 1)
    left["tries"].clear()
    assert await sweep(ledger, {"other": provider}) == (1, 0)
    assert provider.live == set()


async def test_a_lease_that_was_never_issued_is_looked_for_twice(
    ledger: FakeLedger, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack on ourselves: its worker died, we find nothing, and then the backend finishes what it was asked."""
    from fumehood.credentials import sweep

    monkeypatch.setattr(revoking.time, "time", lambda: 1_000_010.0)
    await ledger.lease_opened("l" * 26, "t", "c", "gh", {"kind": "fake", "name": "x"}, None)
    row = ledger.leases["l" * 26]
    row["opened_at"] = 1_000_000.0
    ledger.states["t"] = State.CLOSED
    assert await sweep(ledger, {"gh": provider}) == (0, 1)
    assert row["state"] == "opened"
    provider.live.add("x")
    row["tries"].clear()
    monkeypatch.setattr(revoking.time, "time", lambda: 1_000_031.0)
    assert await sweep(ledger, {"gh": provider}) == (1, 0)
    assert provider.live == set()


async def test_a_sweep_that_hangs_is_bounded(ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    from fumehood.credentials import sweeping

    monkeypatch.setattr(revoking, "REVOKE_DEADLINE_S", 0.05)
    provider = FakeProvider(hangs=True)
    await ledger.lease_opened("l" * 26, "t", "c", "gh", {"kind": "fake", "name": "x"}, None)
    ledger.states["t"] = State.CLOSED
    with anyio.fail_after(2):
        async with sweeping(ledger, {"gh": provider}):
            await anyio.sleep(0.1)
    assert ledger.leases["l" * 26]["tries"] == ["no answer within 0.05 s"]


async def test_a_runtime_that_ends_at_once_finishes_what_its_sweep_has_claimed(ledger: FakeLedger) -> None:
    from fumehood.credentials import sweeping

    class Slow(FakeProvider):
        async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
            await anyio.sleep(0.1)
            return await super().revoke(handle, sealed)

    await ledger.lease_opened("l" * 26, "t", "c", "gh", {"kind": "fake", "name": "x"}, None)
    ledger.states["t"] = State.CLOSED
    async with sweeping(ledger, {"gh": Slow(live={"x"})}):
        await anyio.sleep(0.01)
    assert (ledger.leases["l" * 26]["state"], ledger.leases["l" * 26]["tries"]) == ("closed", [None])


async def test_a_sweep_that_is_cut_short_gives_back_what_it_claimed(ledger: FakeLedger) -> None:
    from fumehood.credentials import sweep

    await ledger.lease_opened("l" * 26, "t", "c", "gh", {"kind": "fake", "name": "x"}, None)
    ledger.states["t"] = State.CLOSED
    with anyio.move_on_after(0.05):
        await sweep(ledger, {"gh": FakeProvider(hangs=True)})
    assert ledger.leases["l" * 26]["tries"] == ["whoever asked ended before the answer"]
    ledger.leases["l" * 26]["tries"].clear()
    assert await sweep(ledger, {"gh": FakeProvider(live={"x"})}) == (1, 0)


async def test_a_ledger_that_is_gone_ends_no_sweep_with_an_error(ledger: FakeLedger) -> None:
    from fumehood.credentials import sweeping

    ledger.gone = True
    async with sweeping(ledger, {}):
        pass
