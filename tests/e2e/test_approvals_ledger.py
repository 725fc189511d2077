"""Approvals in the ledger process: durable, judged by it alone, and not a worker's to give; the fake does the same."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fakes
from fakes import call
from fumehood.approvals.answers import made
from fumehood.evidence.client import opening
from fumehood.faults import Refused
from fumehood.memory import Memory
from fumehood.model import Keeping, Sender, ToolCall
from fumehood.permission import Need
from fumehood.ports import Ledger, Waiting
from fumehood.reasons import Reason
from fumehood.thumbprint import text_of
from ledgers import SERVE, Running, client, running

ALICE = Ed25519PrivateKey.generate()
KEY = text_of(ALICE.public_key().public_bytes_raw())
QUESTION = {"tool": "t", "arguments": "{}", "arguments_bytes": 2, "arguments_sha256": "d", "may": []}
BINDING = "sha256:" + "b" * 64
# A worker's ledger, and one of an operator's command.
OF_WORKER = SERVE.replace(
    "sys.argv[2])", f"sys.argv[2], how_approved=Approving(approvers=(('alice', 'key', '{KEY}'), ('root', 'uid', '0')), uid=0, account='root'))"
).replace("from fumehood.ledger import serve", "from fumehood.ledger.serve import serve\nfrom fumehood.ledger.approving import Approving")
OF_OPERATOR = OF_WORKER.replace("account='root'", "account='root', decides=True")
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def ask(ledger: Running, one: ToolCall, **need: Any) -> dict[str, Any]:
    ledger.ask("open", **opening(one))
    asked = {"approvers": None, "count": 1, "requester": False, **need}
    found: dict[str, Any] = ledger.ask(
        "approval_ask", task=one.task, binding=BINDING, need=asked, question=QUESTION, until=time.time() + 100
    )
    return found


def answer(row: dict[str, Any], key: Ed25519PrivateKey = ALICE) -> str:
    now = int(time.time())
    return made(key.sign, {
        "iss": "alice", "aud": "fumehood", "iat": now, "exp": now + 200, "jti": os.urandom(12).hex(), "approval": row["id"],
        "binding": BINDING, "decision": "approve", "reason": "",
    })  # fmt: skip


def vote(row: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {"approval": row["id"], "binding": BINDING, "approves": True, "reason": "", "at_terminal": True, **changed}


def test_a_worker_that_was_taken_over_approves_nothing(folder: Path) -> None:
    with running(folder, program=OF_WORKER) as ledger:
        one = call()
        row = ask(ledger, one)
        for verb, args, reason in (
            ("approval_vote", vote(row), Reason.APPROVER_UNFIT),
            ("approval_answer", {"answer": answer(row, Ed25519PrivateKey.generate())}, Reason.ANSWER_UNFIT),
            ("approval_confirm", {"approval": row["id"], "task": one.task}, Reason.APPROVER_UNFIT),
        ):
            with pytest.raises(Refused, match=f"^{reason.value}"):
                ledger.ask(verb, **args)
        assert ledger.ask("approval_spend", approval=row["id"], binding=BINDING, task=one.task) is None
        assert ledger.ask("approval_state", approval=row["id"])["state"] == "open"


def test_a_word_is_on_disk_when_it_is_answered_and_a_restart_keeps_the_queue(folder: Path) -> None:
    with running(folder, program=OF_WORKER) as ledger:
        row = ask(ledger, call())
        ledger.process.kill()
        ledger.process.wait()
    with running(folder, runtime="r2", program=OF_OPERATOR) as operator:
        assert [each["id"] for each in operator.ask("approvals")["approvals"]] == [row["id"]]
        assert operator.ask("approval_vote", **vote(row))["state"] == "approved"
        operator.process.kill()
        operator.process.wait()
    with running(folder, runtime="r3", program=OF_WORKER) as ledger:
        other = call()
        assert ask(ledger, other)["state"] == "approved", "the same request attaches"
        spent = ledger.ask("approval_spend", approval=row["id"], binding=BINDING, task=other.task)
        assert [each["how"] for each in spent["votes"]] == ["terminal"]
        assert ledger.ask("approval_spend", approval=row["id"], binding=BINDING, task=other.task) is None


def test_an_answer_is_verified_by_the_ledger_and_taken_once(folder: Path) -> None:
    with running(folder, program=OF_WORKER) as ledger:
        row = ask(ledger, call(), count=2)
        signed = answer(row)
        assert ledger.ask("approval_answer", answer=signed)["state"] == "open"
        with pytest.raises(Refused, match="replayed"):
            ledger.ask("approval_answer", answer=signed)
        with pytest.raises(Refused, match="approver_unfit"):
            ledger.ask("approval_answer", answer=answer(row))


def test_every_step_stands_in_the_chain_with_who_said_what(folder: Path) -> None:
    import sqlite3

    with running(folder, program=OF_OPERATOR) as ledger:
        one = call()
        row = ask(ledger, one)
        ledger.ask("approval_vote", **vote(row, reason="fine"))
        ledger.ask("approval_spend", approval=row["id"], binding=BINDING, task=one.task)
        ledger.close(one.task)
    with sqlite3.connect(folder / "ledger.db") as connection:
        kinds = [kind for (kind,) in connection.execute("SELECT kind FROM chain WHERE task = ? ORDER BY number", (one.task,))]
        (body,) = connection.execute("SELECT body FROM chain WHERE kind = 'approval.voted'").fetchone()
    assert kinds == ["opened", "approval.asked", "approval.voted", "approval.spent", "closed"]
    assert '"identity":"uid:0"' in body
    assert '"reason":"fine"' in body


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("UPDATE approval_votes SET approver = 'mallory'", "edited"),
        ("UPDATE approvals SET state = 'approved', spent_by = NULL", "edited"),
        ("UPDATE approvals SET binding = 'sha256:other'", "edited"),
        ("DELETE FROM approval_votes", "edited"),
        ("DELETE FROM approvals", "deleted"),
        (
            ("INSERT INTO approvals SELECT '0000000000000000000000000x', task, binding, tenant, sender, sender_uid, sender_key, approvers, count,"
            " requester, question, state, opened_at, until, decided_at, spent_by, told FROM approvals"),
            "put in",
        ),
    ],
)
def test_an_audit_finds_an_approval_that_was_edited_deleted_or_put_in(folder: Path, edit: str, said: str) -> None:
    import sqlite3

    from fumehood.keys import KeyFolder
    from fumehood.ledger.audit import Audit
    from fumehood.store.database import opened

    with running(folder, program=OF_OPERATOR) as ledger:
        one = call()
        row = ask(ledger, one)
        ledger.ask("approval_vote", **vote(row))
        ledger.ask("approval_spend", approval=row["id"], binding=BINDING, task=one.task)
        ledger.close(one.task)

    def faults() -> list[tuple[str, str]]:
        with opened(folder) as database, database.read() as conn:
            keys = {key.kid: key for key in KeyFolder(folder).public()}
            return [(fault.group, fault.detail) for fault in Audit(conn, keys).faults()]

    assert faults() == []
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute(edit)
    ((group, detail),) = faults()
    assert group == "approvals"
    assert said in detail


def test_what_is_decided_keeps_no_arguments_on_disk(folder: Path) -> None:
    from fumehood import wire

    with running(folder, program=OF_OPERATOR) as ledger:
        one = call()
        row = ask(ledger, one)
        with Memory(b"{}") as memory:
            memory.seal()
            wire.request(ledger.worker, "keep", {"task": one.task, "kind": "arguments", "offset": 0, "bytes": 2}, [memory.fd])
        assert (folder / "results" / f"{one.task}.arguments").exists()
        ledger.ask("approval_vote", **vote(row, approves=False))
        ledger.ask("ping")
        assert not (folder / "results" / f"{one.task}.arguments").exists()


async def course(ledger: Ledger) -> list[Any]:
    """What a worker's ledger says to the same asking."""
    one, other = call(), replace(call(), sender=Sender(uid=7, name="other"))
    for each in (one, other):
        await ledger.open(each)
    said: list[Any] = []

    def noted(waiting: Waiting) -> None:
        said.append((waiting.state, waiting.is_new, waiting.binding, len(waiting.votes)))

    until_s = time.time() + 100
    first = await ledger.approval_ask(one.task, BINDING, Need(requester=True), QUESTION, until_s)
    noted(first)
    noted(await ledger.approval_ask(one.task, BINDING, Need(requester=True), QUESTION, until_s))
    noted(await ledger.approval_ask(other.task, BINDING, Need(), QUESTION, until_s))
    for doing in (
        lambda: ledger.approval_confirm(first.id, other.task),
        lambda: ledger.approval_withdraw(first.id, other.task),
        lambda: ledger.approval_spend("0" * 26, BINDING, one.task),
    ):
        try:
            await doing()
        except Refused as error:
            said.append(error.reason)
    said.append(await ledger.approval_spend(first.id, BINDING, one.task))
    await ledger.approval_told(first.id, one.task, "told")
    await ledger.approval_confirm(first.id, one.task)
    noted(await ledger.approval_state(first.id))
    spent = await ledger.approval_spend(first.id, BINDING, one.task)
    assert spent is not None
    said.append([vote_.how for vote_ in spent.votes])
    noted(await ledger.approval_state(first.id))
    return said


async def test_the_fake_does_as_the_ledger_does(folder: Path) -> None:
    with running(folder, program=OF_WORKER) as process:
        async with client(process) as real:
            expected = await course(real)
    assert await course(fakes.FakeLedger(now_s=time.time())) == expected
    assert Keeping.ARGUMENTS == "arguments"
