"""Idempotency keys in the ledger process: durable, one of many, shared by ledgers of one folder, and as the fake has them."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from fakes import FakeLedger, call, new_task
from fumehood.evidence.client import opening
from fumehood.faults import FumehoodError, LedgerGone
from fumehood.model import Outcome, Result, ToolCall
from fumehood.ports import Ledger
from ledgers import Running, client, running

KEY = "f3c1a7be-0000-4000-8000-000000000001"
PATH = ("verified", "decided", "granted", "planned", "made", "bound", "running", "exited")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def request(**changed: Any) -> ToolCall:
    return replace(call(), **{"idempotency_key": KEY, "request_digest": "sha256:a", **changed})


def claim(ledger: Running, one: ToolCall) -> Any:
    ledger.ask("open", **opening(one))
    return ledger.ask("claim", task=one.task, policy="p/1")["earlier"]


def test_a_claim_is_on_disk_when_it_is_answered(folder: Path) -> None:
    first = request()
    with running(folder) as ledger:
        assert claim(ledger, first) is None
        ledger.process.kill()
        ledger.process.wait()
    with running(folder, runtime="r2") as again:
        assert claim(again, request()) == first.task


def test_of_two_ledgers_that_are_asked_at_once_one_gives_the_key(folder: Path) -> None:
    with running(folder) as one, running(folder, runtime="r2") as other:
        for number in range(20):
            key = f"{KEY}-{number}"
            calls = [request(idempotency_key=key), request(idempotency_key=key)]
            said: dict[str, Any] = {}

            def ask(ledger: Running, mine: ToolCall, said: dict[str, Any] = said) -> None:
                said[mine.task] = claim(ledger, mine)

            threads = [threading.Thread(target=ask, args=pair) for pair in zip((one, other), calls, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            (winner,) = [task for task, earlier in said.items() if earlier is None]
            assert [earlier for earlier in said.values() if earlier is not None] == [winner]


async def answers(ledger: Ledger) -> list[Any]:
    """What a ledger says to the same questions, with task ids by their order."""
    names: dict[str, str] = {}
    said: list[Any] = []

    async def ask(one: ToolCall, policy: str = "p/1") -> None:
        names[one.task] = f"task {len(names)}"
        await ledger.open(one)
        try:
            found = await ledger.claim(one.task, policy)
        except FumehoodError as error:
            detail = error.detail
            for task, name in names.items():
                detail = detail.replace(task, name)
            said.append((error.reason, detail))
        else:
            said.append(names.get(found or "", found))

    async def close(one: ToolCall, result: Result, *states: str) -> None:
        for state in states:
            await ledger.event(one.task, state, {})
        await ledger.close(Outcome(task=one.task, result=result))

    first, refused, failed, ran = request(), request(), request(), request()
    await ask(refused)
    await close(refused, Result.REFUSED)
    await ask(failed)
    await close(failed, Result.FAILED, *PATH[:5])
    await ask(first)
    await ask(request(request_digest="sha256:b"))
    await ask(request(pin="sha256:b"))
    await ask(request(profile=replace(first.profile, digest="sha256:2")))
    await ask(request(tool="other"))
    await ask(request(), "p/2")
    await ask(request(sender=replace(first.sender, name="ada"), request_digest="sha256:c"))
    await ask(ran)
    await close(first, Result.KILLED, *PATH)
    await ask(request())
    await ask(request(idempotency_key=None))
    return said


@pytest.mark.anyio
async def test_the_fake_ledger_gives_keys_as_the_process_does(folder: Path) -> None:
    with anyio.fail_after(20), running(folder) as ledger:
        async with client(ledger) as real:
            found = await answers(real)
            fake = await answers(FakeLedger())
    assert found[:-1] == fake[:-1]
    assert found[-1][0] == fake[-1][0]
    assert found[:3] == [None, None, None]
    assert found[-3:-1] == ["task 2", "task 2"]


@pytest.mark.anyio
async def test_without_a_ledger_there_is_no_claim(folder: Path) -> None:
    with anyio.fail_after(20), running(folder) as ledger:
        async with client(ledger) as real:
            one = request()
            await real.open(one)
            ledger.process.kill()
            ledger.process.wait()
            with pytest.raises(LedgerGone):
                await real.claim(one.task, "p/1")


@pytest.mark.parametrize("task", [new_task(), "0" * 25, "../x", None])
def test_a_task_that_is_none_claims_nothing(folder: Path, task: Any) -> None:
    with running(folder) as ledger, pytest.raises(FumehoodError):
        ledger.ask("claim", task=task, policy="p/1")
