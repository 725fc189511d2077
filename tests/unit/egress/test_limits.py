from __future__ import annotations

import asyncio
import asyncio.sslproto
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fakes
from fumehood.egress import log as logging
from fumehood.egress.limits import (
    BYTES_IN,
    BYTES_OUT,
    CONNECTION_BYTES,
    MOST_CONNECTIONS,
    Bucket,
    Budget,
    Meter,
    connection_bytes,
)
from fumehood.egress.log import BATCH_BYTES, MOST_BYTES, EgressLog
from fumehood.egress.refusals import Rejected
from fumehood.reach import EgressKind, EgressRule, NetworkLimits
from netbox import until

TASK = "01hf7yat0000000000000000ab"


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=200), st.integers(1, 50))
def test_a_bucket_never_lets_more_through_than_its_rate_and_one_burst(steps: list[float], rate: int) -> None:
    bucket, now_s, taken = Bucket(float(rate), float(rate)), 100.0, 0
    bucket.take(now_s, 0)
    for step in steps:
        now_s += step
        taken += bucket.take(now_s)
    assert taken <= rate + (now_s - 100.0) * rate + 1e-6


@pytest.mark.parametrize(
    ("kind", "fields", "sides"),
    [
        ("tcp", {}, 0), ("tls", {}, 0), ("http", {}, 2), ("http", {"insecure": True}, 0), ("postgres", {}, 0),
        ("postgres", {"credential": "db"}, 1),
    ],
)
def test_a_connection_takes_what_tls_takes_for_it(kind: str, fields: dict[str, Any], sides: int) -> None:
    rule = EgressRule(kind=EgressKind(kind), name="a.example", ports=(443,), **fields)
    assert connection_bytes(rule) == CONNECTION_BYTES + sides * asyncio.sslproto.SSLProtocol.max_size


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_bucket_pays_its_debts_at_its_rate(amount: float, rate: float) -> None:
    bucket = Bucket(rate + 1, 10.0)
    bucket.take(5.0, 0)
    wait_s = bucket.spend(5.0, amount)
    assert wait_s == pytest.approx(max(0.0, (amount - 10.0) / (rate + 1)))
    assert bucket.wait_s(5.0 + wait_s, 0.0) == pytest.approx(0.0, abs=1e-6)


def test_a_clock_that_stands_still_or_no_rate_at_all_is_no_trouble() -> None:
    assert Bucket(None, 0.0).spend(0.0, 1e12) == 0.0
    assert Bucket(None, 0.0).take(0.0, 5.0)
    bucket = Bucket(1.0, 1.0)
    assert [bucket.take(3.0), bucket.take(3.0), bucket.take(2.0)] == [True, False, False]


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_what_is_counted_never_goes_over_the_cap(chunks: list[int]) -> None:
    meter = Meter(NetworkLimits(bytes_out=20_000, bytes_in=10_000))
    for count, cap, why in ((meter.sent, 20_000, BYTES_OUT), (meter.received, 10_000, BYTES_IN)):
        total = 0
        for chunk in chunks:
            if total + chunk > cap:
                with pytest.raises(Rejected) as refused:
                    count(chunk, 0.0)
                assert refused.value.why is why
            else:
                count(chunk, 0.0)
                total += chunk
    assert meter.bytes_out <= 20_000
    assert meter.bytes_in <= 10_000


def test_no_profile_allows_more_connections_than_the_gate_has() -> None:
    assert Meter(NetworkLimits(connections=100_000)).connections_most == MOST_CONNECTIONS
    assert Meter(NetworkLimits(connections=3)).connections_most == 3


def test_a_rate_holds_for_both_directions_together() -> None:
    meter = Meter(NetworkLimits(bytes_per_second=1000))
    meter.questions.take(0.0)
    assert meter.sent(500, 50.0) == 0.0
    assert meter.received(1500, 50.0) == pytest.approx(1.0)


def test_memory_is_given_out_once_and_comes_back() -> None:
    budget = Budget(100)
    assert [budget.take(60), budget.take(60), budget.take(40)] == [True, False, True]
    assert budget.is_tight
    budget.change(-60)
    assert not budget.is_tight


@pytest.mark.anyio
async def test_a_log_writes_a_mebibyte_and_then_only_counts() -> None:
    ledger = fakes.FakeLedger()
    log = EgressLog(TASK, ledger, fakes.FakeClock())
    for number in range(30_000):
        log.add("refused", {"name": f"n{number}.example", "remedy": "x" * 1000})
    await log.finish()
    written = ledger.egress_log[TASK]
    assert sum(len(str(entry.facts)) for entry in written) < MOST_BYTES
    assert ledger.egress_counters[TASK]["refused"] == 30_000
    assert len(written) + ledger.egress_counters[TASK]["not_logged"] == 30_000
    assert [entry.facts["name"] for entry in written[:2]] == ["n0.example", "n1.example"]


@pytest.mark.anyio
async def test_batches_fit_a_message_and_come_in_order() -> None:
    sizes: list[int] = []

    class Ledger(fakes.FakeLedger):
        async def egress(self, task, entries, counters) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
            sizes.append(sum(len(str(entry.facts)) for entry in entries))
            await super().egress(task, entries, counters)

    ledger = Ledger()
    log = EgressLog(TASK, ledger, fakes.FakeClock())
    for number in range(2000):
        log.add("dns", {"name": "\N{SNOWMAN}" * 100, "number": number})
    await log.finish()
    assert len(sizes) > 1
    assert max(sizes) < BATCH_BYTES
    assert [entry.facts["number"] for entry in ledger.egress_log[TASK]] == list(range(len(ledger.egress_log[TASK])))


@pytest.mark.anyio
async def test_a_log_that_cannot_be_written_says_so() -> None:
    log = EgressLog(TASK, fakes.FakeLedger(gone=True), fakes.FakeClock())
    log.add("dns", {})
    await log.finish()
    assert log.is_broken


@pytest.mark.anyio
async def test_nothing_is_written_when_nothing_happened_and_all_of_it_soon_after_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "FLUSH_S", 0.02)
    ledger = fakes.FakeLedger()
    log = EgressLog(TASK, ledger, fakes.FakeClock())
    log.keep_flushing()
    await asyncio.sleep(0.05)
    assert TASK not in ledger.egress_log
    log.add("dns", {"nested": {"a": ["b" * 5000] * 50}})
    await until(lambda: TASK in ledger.egress_log)
    await log.finish()
    assert len(str(ledger.egress_log[TASK])) < 5000
