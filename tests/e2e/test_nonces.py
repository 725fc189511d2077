"""Nonces in the ledger process: on disk before the answer, shared by all runtimes of a state folder, refused where they cannot be kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from fakes import FakeLedger, call
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.ports import Ledger
from fumehood.reasons import Reason
from fumehood.store.nonces import FURTHEST_S, GRACE_S
from ledgers import SERVE, client, running

# The ledger, saying on its standard error how many transactions it has made durable.
SERVE_AND_COUNT = """
import functools, sqlite3, sys
class Counting(sqlite3.Connection):
    def execute(self, sql, *values):
        if sql == "COMMIT":
            print(sql, file=sys.stderr, flush=True)
        return super().execute(sql, *values)
sqlite3.connect = functools.partial(sqlite3.connect, factory=Counting)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def spent(ledger: Any, nonce: str, key: str = "k", until: float | None = None) -> str:
    """What the ledger says to a nonce."""
    try:
        ledger.ask("spend", key=key, nonce=nonce, until=time.time() + 30 if until is None else until)
    except Refused as error:
        return error.reason.value
    return "taken"


def test_a_nonce_taken_by_one_gateway_is_refused_by_another_and_after_kill_9(folder: Path) -> None:
    with running(folder) as first, running(folder, runtime="r2") as second:
        assert spent(first, "n") == "taken"
        assert spent(second, "n") == "replayed"
        assert spent(second, "m") == "taken"
        first.process.kill()
        second.process.kill()
    with running(folder, runtime="r3") as again:
        assert [spent(again, each) for each in ("n", "m", "o")] == ["replayed", "replayed", "taken"]


def test_of_a_hundred_that_send_one_nonce_at_once_one_is_taken(folder: Path) -> None:
    async def ask(real: Ledger, said: list[str]) -> None:
        try:
            await real.spend("k", "n", time.time() + 30)
        except Refused as error:
            said.append(error.reason.value)
        else:
            said.append("taken")

    async def main() -> list[str]:
        said: list[str] = []
        with running(folder) as one, running(folder, runtime="r2") as two:
            async with client(one) as first, client(two) as second, anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(ask, (first, second)[number % 2], said)
        return said

    said = anyio.run(main)
    assert (said.count("taken"), said.count("replayed")) == (1, 99)


def test_many_nonces_at_once_share_their_commits(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with running(folder, program=SERVE_AND_COUNT + SERVE) as ledger:
            async with client(ledger) as real, anyio.create_task_group() as group:
                for number in range(400):
                    group.start_soon(real.spend, "k", str(number), time.time() + 30)

    anyio.run(main)
    assert capfd.readouterr().err.count("COMMIT") < 200


def test_without_its_ledger_a_nonce_is_refused(folder: Path) -> None:
    with running(folder) as ledger:
        ledger.process.kill()
        ledger.process.wait()

        async def main() -> None:
            async with client(ledger) as real:
                with pytest.raises(LedgerGone) as gone:
                    await real.spend("k", "n", time.time() + 30)
                assert gone.value.reason is Reason.LEDGER_UNAVAILABLE

        anyio.run(main)


async def answers(ledger: Ledger) -> list[str]:
    """What a ledger says to right and wrong use."""
    said: list[str] = []
    now_s = time.time()
    for key, nonce, until_s in (
        ("k", "n", now_s + 30), ("k", "n", now_s + 30), ("k", "n", now_s + 40), ("j", "n", now_s + 30),
        ("k", "old", now_s - GRACE_S - 5), ("k", "far", now_s + FURTHEST_S + 100), ("k", "x" * 256, now_s + 30),
    ):  # fmt: skip
        try:
            await ledger.spend(key, nonce, until_s)
        except FumehoodError as error:
            said.append(str(error))
        else:
            said.append("taken")
    return said


@pytest.mark.anyio
async def test_the_fake_ledger_takes_nonces_as_the_process_does(folder: Path) -> None:
    with anyio.fail_after(20), running(folder) as ledger:
        ledger.open(call())
        async with client(ledger) as real:
            assert await answers(real) == await answers(FakeLedger())
