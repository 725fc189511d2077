"""Approvals by attack, with real gateways, boxes and commands: nobody approves for another, twice, or something else (rule 23)."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fumehood.approvals.answers import made
from fumehood.thumbprint import text_of
from lab import Lab, lab_for
from live_gateway import LiveGateway, configure, live_gateway, napping, naps
from people import asks, at_terminal, listed, program, waiting

pytestmark = pytest.mark.root
ALICE = Ed25519PrivateKey.generate()
BOB = Ed25519PrivateKey.generate()
APPROVERS = ", ".join(
    f"{name}: {{key: {text_of(key.public_key().public_bytes_raw())}}}" for name, key in (("alice", ALICE), ("bob", BOB))
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "-approvals") as made_:
        yield made_


@pytest.fixture(autouse=True)
def _nothing_left(lab: Lab) -> Iterator[None]:
    if (database := lab.state / "ledger" / "ledger.db").exists():
        with sqlite3.connect(database) as connection:  # what a test left is not the next one's
            connection.execute("UPDATE approvals SET state = 'withdrawn', decided_at = 1.0 WHERE state IN ('open', 'approved', 'denied')")
    (lab.folder / "gateway.yaml").unlink(missing_ok=True)
    yield
    assert lab.left() == []


def waiting_now(lab: Lab) -> list[dict[str, Any]]:
    return [row for row in listed(lab) if row["state"] == "open"]


def configured(lab: Lab, engine: str = "oci", approvals: str = "", more: str = "") -> Path:
    server, workspace = napping(lab, "napper", engine=engine)
    (workspace / "touched").unlink(missing_ok=True)
    section = f"approvals: {{wait: 20s{approvals}}}\n"
    return configure(lab, f"{{servers: {{{server}}}{more}}}", section)


def outcome(result: Any) -> Any:
    """Why a call was refused."""
    return result["_meta"]["fumehood/outcome"]["reason"]


def text(result: Any) -> str:
    return result["content"][0]["text"]


def ran(lab: Lab) -> bool:
    return (lab.folder / "workspaces" / "napper" / "touched").exists()


def call(gateway: LiveGateway, **arguments: Any) -> int:
    return gateway.send("tools/call", name="napper", arguments={"write": "touched", **arguments})


def answer(key: Ed25519PrivateKey, row: dict[str, Any], name: str = "alice", **changed: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": name, "aud": "fumehood", "iat": now, "exp": now + 200, "jti": os.urandom(12).hex(), "approval": row["id"],
        "binding": row["binding"], "decision": "approve", "reason": "", **changed,
    }  # fmt: skip
    return made(key.sign, claims)


def brings(lab: Lab, text_: str) -> dict[str, Any]:
    """What comes of a signed answer that is given to the command line."""
    done = lab.fumehood("approvals", "answer", "-", "--config", str(lab.folder / "gateway.yaml"), "--json", input=text_)
    return done.said if done.status == 0 else {"refused": done.one_clear_line()}


def test_a_call_runs_once_a_person_at_a_terminal_has_seen_it_and_said_yes(lab: Lab, engine: str) -> None:
    with live_gateway(lab, configured(lab, engine), program(asks())) as gateway:
        gateway.tools()
        number = call(gateway)
        (row,) = waiting(lab)
        assert not ran(lab)
        assert not naps("napper"), "what waits has no box"
        status, said = at_terminal(lab, "approve", row["id"], "--reason", "looks fine")
        assert status == 0, said
        for word in ("tool napper of the server napper", "it is a test", '"write": "touched"', "It cannot", row["binding"], "contents not pinned"):
            assert word in said, said
        result = gateway.answer(number)["result"]
        assert text(result) == "napper"
        assert ran(lab)
        record = lab.fumehood("task", result["_meta"]["fumehood/task"], "--json").said
        facts = {event["state"]: event["facts"] for event in record["events"]}
        assert facts["waiting"]["approval"] == row["id"]
        (vote,) = facts["granted"]["approval"]["votes"]
        assert (vote["approver"], vote["how"], vote["identity"], vote["reason"]) == ("root", "terminal", "uid:0", "looks fine")
        assert record["timings_ms"]["approval"] > 0
        assert gateway.end() == 0
    done = lab.fumehood("receipt", "show", record["task"], "--json")
    if done.status == 0:
        assert row["id"] in done.stdout
    (spent,) = [each for each in listed(lab, "--all") if each["id"] == row["id"]]
    assert (spent["state"], spent["spent_by"]) == ("spent", record["task"])
    assert lab.fumehood("audit", "verify").status == 0


def test_a_no_is_told_with_its_reason_and_holds_for_the_same_request(lab: Lab) -> None:
    with live_gateway(lab, configured(lab, approvals=f", approvers: {{{APPROVERS}}}"), program(asks())) as gateway:
        gateway.tools()
        number = call(gateway, seconds=0.1)
        (row,) = waiting(lab)
        assert brings(lab, answer(ALICE, row, decision="deny", reason="not \x1b[2J today"))["state"] == "denied"
        for each in (number, call(gateway, seconds=0.1)):
            result = gateway.answer(each)["result"]
            assert outcome(result) == "approval_denied"
            assert "alice denied" in text(result)
            assert "\x1b" not in text(result)
    assert not ran(lab)


def test_an_agent_that_runs_as_the_operator_does_not_approve_its_own_call_by_a_command(lab: Lab) -> None:
    with live_gateway(lab, configured(lab), program(asks())) as gateway:
        gateway.tools()
        number = call(gateway, seconds=0.2)
        (row,) = waiting(lab)
        assert "at a terminal" in lab.fumehood("approvals", "approve", row["id"]).one_clear_line()
        bare = lab.fumehood("approvals", "approve", row["id"], "--yes")
        assert "--binding" in bare.one_clear_line()
        done = lab.fumehood("approvals", "approve", row["id"], "--yes", "--binding", row["binding"])
        assert "approver_unfit: root asked for it" in done.one_clear_line()
        status, said = at_terminal(lab, "approve", row["id"], types="n\n")
        assert status == 1, said
        assert waiting(lab) == [row]
        gateway.send("notifications/none")
        gateway.process.stdin.close()  # type: ignore[union-attr]
        gateway.process.wait(20)
    assert number
    assert not ran(lab)


def test_where_the_operator_forbids_it_not_even_a_terminal_approves_what_the_same_account_asked_for(lab: Lab) -> None:
    with live_gateway(lab, configured(lab, approvals=", own: never"), program(asks())) as gateway:
        gateway.tools()
        call(gateway, seconds=0.3)
        (row,) = waiting(lab)
        status, said = at_terminal(lab, "approve", row["id"])
        assert status != 0
        assert "approver_unfit" in said
        assert waiting(lab) == [row]


def test_an_approval_is_for_these_arguments_and_for_one_call(lab: Lab) -> None:
    with live_gateway(lab, configured(lab, approvals=f", approvers: {{{APPROVERS}}}"), program(asks())) as gateway:
        gateway.tools()
        first = call(gateway)
        (row,) = waiting(lab)
        other = call(gateway, seconds=0.01)
        two = waiting(lab, 2)
        assert brings(lab, answer(ALICE, row))["state"] == "approved"
        assert text(gateway.answer(first)["result"]) == "napper"
        assert [each["id"] for each in waiting(lab)] == [each["id"] for each in two if each["id"] != row["id"]]
        again = call(gateway)
        assert row["id"] not in {each["id"] for each in waiting(lab, 2)}, "what was used is asked for anew"
        for number, reason in ((other, "not this"), (again, "nor this")):
            rows = waiting_now(lab)
            assert rows
            assert number
            assert brings(lab, answer(BOB, rows[0], "bob", decision="deny", reason=reason))["state"] == "denied"
        assert {outcome(gateway.answer(number)["result"]) for number in (other, again)} == {"approval_denied"}


def test_two_gateways_with_one_approval_run_one_call(lab: Lab) -> None:
    file = configured(lab, approvals=f", approvers: {{{APPROVERS}}}")
    with live_gateway(lab, file, program(asks())) as one, live_gateway(lab, file, program(asks())) as other:
        numbers = []
        for gateway in (one, other):
            gateway.tools()
            numbers.append(call(gateway, seconds=0.02))
            (row,) = waiting(lab)
        assert brings(lab, answer(ALICE, row))["state"] == "approved"
        (left,) = waiting(lab)  # the slower one asks again
        assert left["id"] != row["id"]
        assert brings(lab, answer(ALICE, left, decision="deny"))["state"] == "denied"
        found = [gateway.answer(number)["result"] for gateway, number in zip((one, other), numbers, strict=True)]
        assert sorted(bool(each.get("isError")) for each in found) == [False, True]


@pytest.mark.parametrize(
    "changed",
    [
        {"binding": "sha256:" + "0" * 64}, {"approval": "0" * 26}, {"aud": "another"}, {"iss": "bob"}, {"exp": 1}, {"decision": "maybe"},
    ],
)  # fmt: skip
def test_a_forged_answer_decides_nothing(lab: Lab, changed: dict[str, Any]) -> None:
    with live_gateway(lab, configured(lab, approvals=f", approvers: {{{APPROVERS}}}"), program(asks())) as gateway:
        gateway.tools()
        call(gateway, seconds=0.4)
        (row,) = waiting(lab)
        assert "refused" in brings(lab, answer(ALICE, row, **changed))
        assert "answer_unfit" in brings(lab, answer(Ed25519PrivateKey.generate(), row))["refused"]
        good = answer(ALICE, row)
        assert "answer_unfit" in brings(lab, good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"))["refused"]
        assert waiting(lab) == [row]


def test_two_of_three_are_two_persons_and_an_answer_counts_once(lab: Lab) -> None:
    patch = asks("Need(count=2)")
    with live_gateway(lab, configured(lab, approvals=f", approvers: {{{APPROVERS}}}"), program(patch)) as gateway:
        gateway.tools()
        number = call(gateway)
        (row,) = waiting(lab)
        mine = answer(ALICE, row)
        assert brings(lab, mine)["state"] == "open"
        assert "replayed" in brings(lab, mine)["refused"]
        assert "approver_unfit" in brings(lab, answer(ALICE, row))["refused"]
        assert not ran(lab)
        assert brings(lab, answer(BOB, row, "bob"))["state"] == "approved"
        assert text(gateway.answer(number)["result"]) == "napper"


def test_a_gateway_that_is_killed_while_a_call_waits_leaves_nothing_but_the_question(lab: Lab) -> None:
    file = configured(lab, approvals=f", approvers: {{{APPROVERS}}}")
    with live_gateway(lab, file, program(asks())) as gateway:
        gateway.tools()
        call(gateway)
        (row,) = waiting(lab)
        ours = gateway.ours()
        gateway.process.send_signal(signal.SIGKILL)
        gateway.process.wait(20)
        deadline_s = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in ours[1:]):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)  # others' progress, with a deadline
    assert waiting(lab) == [row]
    with live_gateway(lab, file, program(asks())) as gateway:
        gateway.tools()
        number = call(gateway)
        assert waiting(lab) == [row], "the same request goes on waiting"
        assert brings(lab, answer(ALICE, row))["state"] == "approved"
        assert text(gateway.answer(number)["result"]) == "napper"
        gateway.end()
    lost = lab.fumehood("task", row["task"], "--json").said
    assert (lost["result"], lost["state"]) == ("lost", "closed")


def test_a_client_that_hangs_up_withdraws_nothing_and_one_that_cancels_does(lab: Lab) -> None:
    file = configured(lab)
    with live_gateway(lab, file, program(asks())) as gateway:
        gateway.tools()
        number = call(gateway, seconds=0.5)
        waiting(lab)
        assert gateway.process.stdin is not None
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
        gateway.process.stdin.write(json.dumps(cancel).encode() + b"\n")
        gateway.process.stdin.flush()
        gateway.until(lambda: not waiting_now(lab))
        assert [row["state"] for row in listed(lab, "--all")][-1] == "withdrawn"
        call(gateway, seconds=0.6)
        waiting(lab)
        assert gateway.end() == 0
    waiting(lab)
    assert not ran(lab)


def test_what_waits_ends_when_everything_is_stopped_and_nothing_is_used_meanwhile(lab: Lab) -> None:
    with live_gateway(lab, configured(lab, approvals=f", approvers: {{{APPROVERS}}}"), program(asks())) as gateway:
        gateway.tools()
        number = call(gateway)
        (row,) = waiting(lab)
        try:
            assert lab.fumehood("stop", "--all", "--json").said["calls_ended"] == 1
            assert outcome(gateway.answer(number)["result"]) == "operator"
            assert brings(lab, answer(ALICE, row))["state"] == "approved", "a word can be said, and begins nothing"
            assert outcome(gateway.answer(call(gateway))["result"]) == "stopped"
            assert not ran(lab)
        finally:
            assert lab.fumehood("start").status == 0
        assert text(gateway.answer(call(gateway))["result"]) == "napper"


def test_a_question_with_a_megabyte_of_arguments_and_a_disguise_is_told_as_what_it_is(lab: Lab) -> None:
    with live_gateway(lab, configured(lab), program(asks())) as gateway:
        gateway.tools()
        call(gateway, word="\x1b[2J\u202eevil\u200b", text="x" * 900_000, zz="rm -rf")
        (row,) = waiting(lab)
        shown = lab.fumehood("approvals", "show", row["id"])
        assert "bytes are left out: `fumehood approvals show" in shown.stdout
        assert all(char.isprintable() or char == "\n" for char in shown.stdout)
        whole = lab.fumehood("approvals", "show", row["id"], "--arguments")
        assert '"zz": "rm -rf"' in whole.stdout
        assert "\\u001b[2J\\u202eevil\\u200b" in whole.stdout
        kept = lab.state / "ledger" / "results" / f"{row['task']}.arguments"
        assert kept.exists()
        status, _ = at_terminal(lab, "deny", row["id"])
        assert status == 0
        assert not kept.exists(), "of what is decided the arguments are not kept"
        gone = lab.fumehood("approvals", "show", row["id"], "--arguments")
        assert "no longer kept" in gone.one_clear_line()


def test_one_sender_cannot_flood_the_queue(lab: Lab) -> None:
    with live_gateway(lab, configured(lab), program(asks())) as gateway:
        gateway.tools()
        numbers = [call(gateway, seconds=0, n=number) for number in range(17)]
        waiting(lab, 16)
        deadline_s = time.monotonic() + 20
        full: list[Any] = []
        while not full:
            assert time.monotonic() < deadline_s
            full = [row for row in lab.fumehood("tasks", "--json", "--result", "refused").said if row["reason"] == "approvals_full"]
        assert len(numbers) == 17
        assert gateway.end() == 0


def test_after_its_expiry_nobody_approves_it(lab: Lab) -> None:
    with live_gateway(lab, configured(lab, approvals=f", expire: 10s, approvers: {{{APPROVERS}}}"), program(asks())) as gateway:
        gateway.tools()
        number = call(gateway, seconds=0.7)
        (row,) = waiting(lab)
        assert outcome(gateway.answer(number)["result"]) == "approval_expired"
        assert "approval_expired" in brings(lab, answer(ALICE, row))["refused"]
        assert not ran(lab)


def test_many_words_at_once_are_counted_one_after_the_other(lab: Lab) -> None:
    with live_gateway(lab, configured(lab, approvals=f", approvers: {{{APPROVERS}}}"), program(asks("Need(count=2)"))) as gateway:
        gateway.tools()
        call(gateway, seconds=0.8)
        (row,) = waiting(lab)
        said: list[dict[str, Any]] = []
        threads = [threading.Thread(target=lambda: said.append(brings(lab, answer(ALICE, row)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(each.get("state") == "open" for each in said) == 1
        assert waiting(lab)[0]["state"] == "open"


def test_changes_that_wait_are_listed_shown_and_decided_beside_calls(lab: Lab) -> None:
    workspace = lab.workspace("changes")
    profile = lab.profile("changes", "filesystem: {workspace: rw, commit: ask}\n")
    done = lab.run("oci", "sh", "-c", "echo hello > new", profile=profile, workspace=workspace)
    assert done.said["pending"], done.said
    task = done.said["task"]
    (row,) = [row for row in listed(lab) if row["kind"] == "changes" and row["id"] == task]
    assert "1 changes of" in row["what"]
    assert "+hello" in lab.fumehood("approvals", "show", task).stdout
    status, said = at_terminal(lab, "approve", task)
    assert status == 0, said
    assert "+hello" in said
    assert (workspace / "new").read_text() == "hello\n"


def test_nobody_but_its_owner_has_the_state_folder(lab: Lab) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "cat", str(lab.state / "ledger" / "ledger.db")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
