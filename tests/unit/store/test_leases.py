"""The lease journal and the egress log: who may write what, who may claim, and how much one task gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import call, new_task
from fumehood.evidence.client import closing, opening
from fumehood.model import Outcome, Result
from fumehood.store import egress, leases, records
from fumehood.store.database import Transaction, opened
from fumehood.store.leases import CLAIM_S, LEASES_OF_A_TASK

NOW = 1_000.0


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Transaction]:
    with opened(tmp_path / "ledger") as database, database.write(durable=False) as found:
        yield found


def opened_task(conn: Transaction, runtime: str = "r1") -> str:
    one = call()
    assert records.open_record(conn, opening(one), runtime_id=runtime, boot_id="b", at_s=1.0)
    return one.task


def close_task(conn: Transaction, task: str, at_s: float = 2.0) -> None:
    fields = closing(Outcome(task=task, result=Result.OK))
    del fields["task"]
    assert records.close_record(conn, task, fields, runtime_id="r1", at_s=at_s)


def open_lease(conn: Transaction, task: str, runtime: str = "r1") -> str | None:
    lease = new_task()
    fields = {"lease": lease, "task": task, "credential": "c", "provider": "p", "handle": {"role": "x"}, "until": 9.0}
    return lease if leases.open_lease(conn, fields, runtime_id=runtime, at_s=NOW) else None


def issue(conn: Transaction, lease: str | None, runtime: str = "r1", sealed: str | None = None) -> bool:
    fields = {"lease": lease, "until": 8.0, "sealed": sealed, "facts": {"a": 1}}
    return leases.issue_lease(conn, fields, runtime_id=runtime, at_s=NOW + 1)


def close(conn: Transaction, lease: str | None, runtime: str = "r1", error: str | None = None, at_s: float = NOW + 2) -> bool:
    revoked = {"gone": True, "asked": "DELETE", "answer": "204"} if error is None else None
    return leases.close_lease(conn, {"lease": lease, "revoked": revoked, "error": error}, runtime_id=runtime, at_s=at_s)


def listed(conn: Transaction, **wanted: Any) -> list[dict[str, Any]]:
    page = leases.leases(conn, **{"task": None, "state": None, "after": None, "limit": 500, **wanted})
    return [dict(row) for row in page["leases"]]


def claim(conn: Transaction, runtime: str = "r2", at_s: float = NOW, **wanted: Any) -> list[str]:
    fields = {"lease": None, "task": None, "after": None, "orphaned": True, "limit": 16, **wanted}
    return [one.lease for one in leases.claim_leases(conn, **fields, runtime_id=runtime, at_s=at_s)]


def test_a_lease_goes_from_opened_over_issued_to_closed_and_keeps_its_proof(conn: Transaction) -> None:
    task = opened_task(conn)
    lease = open_lease(conn, task)
    assert issue(conn, lease, sealed="jwe")
    assert not issue(conn, lease)
    assert close(conn, lease, error="away")
    (row,) = listed(conn)
    assert (row["state"], row["tries"], row["error"], row["until"], row["sender"]) == ("issued", 1, "away", 8.0, "root")
    assert "sealed" not in row
    assert close(conn, lease)
    assert close(conn, lease, error="late", at_s=NOW + 50)  # told twice: nothing changes
    (row,) = listed(conn)
    assert (row["state"], row["tries"], row["closed_at"]) == ("closed", 2, NOW + 2)
    assert row["proof"] == {"gone": True, "asked": "DELETE", "answer": "204", "at": NOW + 2}
    assert conn.run("SELECT sealed FROM leases").fetchall() == [(None,)]


def test_only_its_own_runtime_opens_issues_and_closes_a_lease(conn: Transaction) -> None:
    task = opened_task(conn)
    assert open_lease(conn, task, runtime="r2") is None
    assert open_lease(conn, new_task()) is None
    lease = open_lease(conn, task)
    assert not issue(conn, lease, runtime="r2")
    assert not close(conn, lease, runtime="r2")
    assert not close(conn, new_task())
    close_task(conn, task)
    assert open_lease(conn, task) is None


def test_what_a_living_call_holds_is_not_swept_and_what_a_closed_one_left_is(conn: Transaction) -> None:
    task = opened_task(conn)
    lease = open_lease(conn, task)
    assert claim(conn) == []
    close_task(conn, task)
    assert claim(conn) == [lease]
    assert close(conn, lease, runtime="r2")
    assert claim(conn, at_s=NOW + 10_000) == []


def test_what_a_dead_worker_left_can_be_swept_before_its_record_is_closed(conn: Transaction) -> None:
    mine, theirs = opened_task(conn), opened_task(conn, "r9")
    lease = open_lease(conn, mine)
    assert open_lease(conn, theirs, runtime="r9")
    leases.abandon_leases(conn, "r1")
    assert claim(conn) == [lease]


def test_of_two_sweepers_one_has_the_claim_until_it_lapses(conn: Transaction) -> None:
    task = opened_task(conn)
    lease = open_lease(conn, task)
    close_task(conn, task)
    assert claim(conn, "r2") == [lease]
    assert claim(conn, "r3", at_s=NOW + CLAIM_S - 1) == []
    assert claim(conn, "r3", orphaned=False, lease=lease) == []
    assert not close(conn, lease, runtime="r3")
    assert claim(conn, "r3", at_s=NOW + CLAIM_S + 1) == [lease]
    assert not close(conn, lease, runtime="r2")
    assert close(conn, lease, runtime="r3")


def test_a_sweeper_that_died_holds_no_claim(conn: Transaction) -> None:
    task = opened_task(conn)
    lease = open_lease(conn, task)
    close_task(conn, task)
    assert claim(conn, "r2") == [lease]
    leases.abandon_leases(conn, "r2")
    assert claim(conn, "r3") == [lease]


def test_a_try_that_failed_is_not_repeated_at_once_and_the_pause_grows(conn: Transaction) -> None:
    task = opened_task(conn)
    lease = open_lease(conn, task)
    close_task(conn, task)
    at_s, pauses = NOW, []
    for _ in range(12):
        assert claim(conn, at_s=at_s) == [lease]
        assert close(conn, lease, runtime="r2", error="away", at_s=at_s)
        began = at_s
        while claim(conn, "r3", at_s=at_s) == []:
            at_s += 1
        assert close(conn, lease, runtime="r3", error="still", at_s=at_s)
        pauses.append(at_s - began)
        at_s += 601
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 601
    assert claim(conn, at_s=at_s - 600, orphaned=False) == [lease]  # an operator need not wait


def test_leases_are_claimed_a_few_at_a_time_in_order(conn: Transaction) -> None:
    task = opened_task(conn)
    made = [open_lease(conn, task) for _ in range(20)]
    close_task(conn, task)
    assert claim(conn, orphaned=False, after=made[3], limit=2) == made[4:6]
    assert claim(conn, limit=100) == [*made[:4], *made[6:18]]


def test_a_task_cannot_fill_the_journal(conn: Transaction) -> None:
    task = opened_task(conn)
    made = [open_lease(conn, task) for _ in range(LEASES_OF_A_TASK + 1)]
    assert made[-1] is None
    assert made[-2] is not None


def test_lists_come_in_pages_with_filters(conn: Transaction) -> None:
    task, other = opened_task(conn), opened_task(conn)
    made = [open_lease(conn, task) for _ in range(5)]
    theirs = open_lease(conn, other)
    close(conn, made[0])
    assert [row["lease"] for row in listed(conn, task=other)] == [theirs]
    assert [row["lease"] for row in listed(conn, task=task, state="open")] == made[1:]
    assert [row["lease"] for row in listed(conn, state="closed")] == made[:1]
    assert [row["lease"] for row in listed(conn, after=made[3])] == [made[4], theirs]
    assert leases.leases(conn, task=task, state=None, after=None, limit=2)["more"]


def test_an_egress_log_is_bounded_and_counts_what_it_does_not_keep(conn: Transaction) -> None:
    task = opened_task(conn)
    entry = {"at": 1.0, "kind": "dns", "facts": {"name": "x" * 1500}}
    for number in range(10):
        assert egress.add_egress(conn, task, [entry] * 100, {"dns": number}, runtime_id="r1")
    page = egress.egress_of(conn, task, after_seq=None)
    total = conn.run("SELECT count(*) FROM egress").fetchone()[0]
    assert total + page["dropped"] == 1000
    assert egress.LOG_BYTES - 2000 < total * (1500 + len('{"name": ""}') + 64) <= egress.LOG_BYTES
    assert page["counters"] == {"dns": 9}
    seen = list(page["entries"])
    while page["more"]:
        page = egress.egress_of(conn, task, after_seq=seen[-1]["seq"])
        seen += page["entries"]
    assert [row["seq"] for row in seen] == list(range(1, total + 1))
    # Not one that is small enough for what is left: the log has no holes.
    assert egress.add_egress(conn, task, [{**entry, "facts": {}}], {}, runtime_id="r1")
    assert conn.run("SELECT count(*) FROM egress").fetchone()[0] == total


def test_only_the_runtime_of_an_open_record_adds_to_its_egress_log(conn: Transaction) -> None:
    task = opened_task(conn)
    assert not egress.add_egress(conn, task, [], {}, runtime_id="r2")
    assert not egress.add_egress(conn, new_task(), [], {}, runtime_id="r1")
    close_task(conn, task)
    assert not egress.add_egress(conn, task, [], {}, runtime_id="r1")
    assert egress.egress_of(conn, task, after_seq=None) == {"entries": [], "counters": {}, "dropped": 0, "more": False}


def test_pruning_forgets_closed_leases_and_logs_and_nothing_that_is_open(conn: Transaction) -> None:
    old, young, running = opened_task(conn), opened_task(conn), opened_task(conn)
    for task in (old, young, running):
        egress.add_egress(conn, task, [{"at": 1.0, "kind": "dns", "facts": {}}], {"dns": 1}, runtime_id="r1")
    closed, left = open_lease(conn, old), open_lease(conn, old)
    close(conn, closed, at_s=10.0)
    close_task(conn, old, at_s=11.0)
    close_task(conn, young, at_s=100.0)
    assert leases.prune_leases(conn, 50.0) == 1
    assert egress.prune_egress(conn, 50.0) == 1
    assert [row["lease"] for row in listed(conn)] == [left]
    assert [bool(egress.egress_of(conn, task, after_seq=None)["entries"]) for task in (old, young, running)] == [False, True, True]
