"""The lease journal of a ledger process: what was answered is on disk, sealed, and handed to one sweeper."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeLedger, call, new_task
from fumehood.faults import Refused
from fumehood.model import Outcome, Result
from fumehood.ports import EgressEntry, Ledger, Revoked
from fumehood.sealing import FILE as KEY
from fumehood.store.database import FILE
from ledgers import client, running

pytestmark = pytest.mark.anyio
CANARY = "canary-f00d-token"
DONE = Revoked(gone=True, asked="DELETE", answer="204")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != KEY)


async def test_a_lease_is_on_disk_when_its_opening_is_answered_and_opens_for_the_sweeper_of_a_later_runtime(folder: Path) -> None:
    one, lease = call(), new_task()
    with running(folder) as ledger:
        async with client(ledger) as worker:
            await worker.open(one)
            await worker.lease_opened(lease, one.task, "github", "gh", {"kind": "x", "role": "r"}, 50.0)
            raw = sqlite3.connect(folder / FILE)
            assert raw.execute("SELECT lease, task, state FROM leases").fetchall() == [(lease, one.task, "opened")]
            raw.close()
            await worker.lease_issued(lease, 60.0, {"token": CANARY}, {"scope": "x"})
            ledger.process.kill()
            ledger.process.wait()
    assert CANARY.encode() not in on_disk(folder)
    with running(folder, runtime="r2") as again:
        async with client(again) as sweeper:
            assert await sweeper.leases_claim(orphaned=True) == []  # nobody has said yet that its call is over
            again.ask("close_lost", again.broker, task=one.task, facts={})
            (found,) = await sweeper.leases_claim(orphaned=True)
            assert (found.lease, found.provider, found.handle, found.until_s) == (lease, "gh", {"kind": "x", "role": "r"}, 60.0)
            assert found.sealed == {"token": CANARY}
            assert CANARY not in repr(found)
            await sweeper.lease_closed(lease, None, "the backend is away")
            assert await sweeper.leases_claim(orphaned=True) == []
            (found,) = await sweeper.leases_claim(lease=lease, orphaned=False)
            await sweeper.lease_closed(lease, DONE, None)
        assert CANARY.encode() not in on_disk(folder)
        (row,) = again.ask("leases", again.broker, task=one.task)["leases"]
        assert (row["state"], row["tries"], row["proof"]["answer"]) == ("closed", 2, "204")


async def test_two_sweepers_at_once_share_the_leases_and_none_twice(folder: Path) -> None:
    one = call()
    with running(folder) as ledger:
        async with client(ledger) as worker:
            await worker.open(one)
            for _ in range(24):
                await worker.lease_opened(new_task(), one.task, "c", "p", {}, None)
            await worker.close(Outcome(task=one.task, result=Result.OK))
        with running(folder, runtime="r2") as second, running(folder, runtime="r3") as third:
            async with client(second) as left, client(third) as right:
                import anyio

                taken: list[str] = []

                async def sweep(ledger: Any) -> None:
                    while found := await ledger.leases_claim(orphaned=True):
                        taken.extend(each.lease for each in found)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(sweep, left)
                    tasks.start_soon(sweep, right)
                assert len(taken) == len(set(taken)) == 24


async def test_a_lost_key_is_told_and_the_lease_stays(folder: Path) -> None:
    one, lease = call(), new_task()
    with running(folder) as ledger:
        async with client(ledger) as worker:
            await worker.open(one)
            await worker.lease_opened(lease, one.task, "c", "p", {}, None)
            await worker.lease_issued(lease, None, {"token": CANARY}, {})
            await worker.close(Outcome(task=one.task, result=Result.OK))
    (folder / KEY).unlink()
    with running(folder, runtime="r2") as again:
        async with client(again) as sweeper:
            (found,) = await sweeper.leases_claim(orphaned=True)
    assert found.sealed == {}
    assert found.problem is not None
    assert "cannot be opened" in found.problem


async def _told(ledger: Ledger) -> list[Any]:
    """What a ledger says of leases and egress, step by step."""
    one, lease, other = call(), new_task(), new_task()
    told: list[Any] = []
    await ledger.open(one)
    await ledger.lease_opened(lease, one.task, "c", "p", {"role": "r"}, 5.0)
    told.append(await ledger.leases_claim(orphaned=True))
    told.append([each.handle for each in await ledger.leases_claim(task=one.task, after=other, orphaned=False)])
    await ledger.lease_issued(lease, 6.0, {"token": "t"}, {"a": 1})
    await ledger.egress(one.task, [EgressEntry(at_s=1.0, kind="dns", facts={"name": "x" * 3000})], {"dns": 1})
    await ledger.close(Outcome(task=one.task, result=Result.OK))
    (found,) = await ledger.leases_claim(orphaned=True)
    told.append((found.credential, found.provider, found.handle, found.sealed, found.until_s, found.problem))
    await ledger.lease_closed(lease, DONE, None)
    told.append(await ledger.leases_claim(orphaned=True))
    return told


async def test_the_fake_ledger_says_what_the_ledger_process_says(folder: Path) -> None:
    with running(folder) as ledger:
        async with client(ledger) as real:
            assert await _told(FakeLedger()) == await _told(real)


async def test_a_long_log_goes_in_several_messages_and_comes_back_in_pages(folder: Path) -> None:
    one = call()
    entries = [EgressEntry(at_s=float(n), kind="connect", facts={f"f{f}": "y" * 400 for f in range(9)}) for n in range(300)]
    with running(folder) as ledger:
        async with client(ledger) as worker:
            await worker.open(one)
            await worker.egress(one.task, entries, {"connections": 300})
            with pytest.raises(Refused):
                await worker.egress(new_task(), [], {})
        page = ledger.ask("egress_of", ledger.broker, task=one.task)
        seen = list(page["entries"])
        while page["more"]:
            page = ledger.ask("egress_of", ledger.broker, task=one.task, after_seq=seen[-1]["seq"])
            seen += page["entries"]
    assert [entry["at"] for entry in seen] == [float(n) for n in range(300)]
    assert seen[0]["facts"]["left_out"]
    assert page["counters"] == {"connections": 300}


async def test_pruning_by_age_forgets_closed_leases(folder: Path) -> None:
    one, lease = call(), new_task()
    with running(folder) as ledger:
        async with client(ledger) as worker:
            await worker.open(one)
            await worker.lease_opened(lease, one.task, "c", "p", {}, None)
            await worker.lease_closed(lease, DONE, None)
            await worker.egress(one.task, [], {"dns": 1})
            await worker.close(Outcome(task=one.task, result=Result.OK))
        assert ledger.ask("prune", ledger.broker, older_than_s=None) == {"removed": 0, "bytes": 0, "leases": 0, "egress": 0}
        assert ledger.ask("prune", ledger.broker, older_than_s=0.0) == {"removed": 0, "bytes": 0, "leases": 1, "egress": 1}
        assert ledger.ask("leases", ledger.broker)["leases"] == []
