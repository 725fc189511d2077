"""`fumehood receipt`, `audit` and `keys` on the records of real boxes, as an operator types them."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from lab import Lab, lab_for, needs_oci

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    needs_oci()
    with lab_for("python", "evidence") as made:
        yield made


@pytest.fixture(scope="module")
def task(lab: Lab) -> str:
    """A call that ran in a box."""
    done = lab.python("oci", "print('hello')")
    assert done.status == 0, done.stderr
    found: str = done.said["task"]
    return found


def statement(envelope: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return found


def exported(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = lab.fumehood("keys", "export").said
    return found


def test_a_receipt_says_what_ran_under_what_and_what_the_kernel_enforced(lab: Lab, task: str) -> None:
    envelope = lab.fumehood("receipt", task, "--json").said
    said = statement(envelope)
    assert (envelope["payloadType"], said["_type"]) == ("application/vnd.in-toto+json", "https://in-toto.io/Statement/v1")
    assert said["subject"][0]["name"] == f"task:{task}"
    predicate, record = said["predicate"], lab.record("task", task)
    assert (predicate["result"], predicate["exit_code"]) == ("ok", 0)
    assert predicate["enforced"] == json.loads(record["readback"])
    assert predicate["enforced"]
    assert predicate["teardown"] == json.loads(record["teardown"])
    assert predicate["image"]["digest"] == record["image_digest"]
    assert predicate["init"] == record["init_digest"]
    assert predicate["decision"] == {"decision": "allow", "rule": record["rule"], "approvals": []}
    assert predicate["accept_risks"] == predicate["plan"]["accept_risk"]
    assert predicate["usage"]["memory_peak_bytes"] == record["memory_peak_bytes"]
    assert predicate["chain"]["runtime"] == record["runtime_id"]
    assert len(predicate["chain"]["prev"]) == 64


def test_a_receipt_is_drawn_for_people_and_verified_with_exported_keys_alone(lab: Lab, task: str) -> None:
    keys = lab.folder / "trusted.json"
    keys.write_text(json.dumps(exported(lab)))
    done = lab.fumehood("receipt", task[:20], "--verify", "--keys", str(keys))
    assert done.status == 0, done.stderr
    for part in (task, "verified: signed by", "allow", "seccomp", "entry", "made after it"):
        assert part in done.stdout
    other = lab.folder / "others.json"
    other.write_text(json.dumps({"keys": []}))
    refused = lab.fumehood("receipt", task, "--verify", "--keys", str(other))
    assert refused.status == 1
    assert "NOT verified" in refused.stdout
    assert lab.fumehood("receipt", task, "--keys", str(other), "--json").status == 1
    assert "Traceback" not in refused.stderr


def test_a_receipt_is_verified_by_an_independent_implementation(lab: Lab, task: str) -> None:
    envelope = Envelope.from_dict(lab.fumehood("receipt", task, "--json").said)
    keys = [
        SSlibKey(jwk["kid"], "ed25519", "ed25519", {"public": base64.urlsafe_b64decode(jwk["x"] + "=").hex()})
        for jwk in exported(lab)["keys"]
    ]
    assert [key.keyid for key in envelope.verify(keys, 1).values()] == [keys[-1].keyid]
    envelope.payload = envelope.payload.replace(b'"result":"ok"', b'"result":"no"')
    with pytest.raises(VerificationError):
        envelope.verify(keys, 1)


def test_the_guides_program_verifies_a_receipt_without_us(lab: Lab, task: str) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "evidence.md").read_text()
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "verify-receipt.py" in block]
    assert "fumehood" not in program
    receipt, keys = lab.folder / "receipt.json", lab.folder / "keys.json"
    receipt.write_text(lab.fumehood("receipt", task, "--json").stdout)
    keys.write_text(lab.fumehood("keys", "export").stdout)
    argv = [sys.executable, "-Ic", program, str(receipt), str(keys)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ok"), done.stderr
    envelope = json.loads(receipt.read_text())
    payload = base64.b64decode(envelope["payload"]).replace(b'"result":"ok"', b'"result":"no"')
    receipt.write_text(json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}))
    assert subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode != 0


def test_asking_twice_gives_the_same_receipt(lab: Lab, task: str) -> None:
    assert lab.fumehood("receipt", task, "--json").stdout == lab.fumehood("receipt", task, "--json").stdout


def test_an_audit_says_that_nothing_was_changed_and_where_something_was(lab: Lab, task: str) -> None:
    done = lab.fumehood("audit", "verify")
    assert (done.status, "nothing was changed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert lab.fumehood("audit", "verify", "--json").said["ok"] is True
    with editing(lab) as raw:
        raw.execute("UPDATE records SET exit_code = 1 WHERE task = ?", (task,))
        raw.commit()
        found = lab.fumehood("audit", "verify", "--json")
        (fault,) = found.said["faults"]
        assert (found.status, fault["group"], fault["task"]) == (1, "record", task)
        assert task in lab.fumehood("audit", "verify").stdout
    assert lab.fumehood("audit", "verify").status == 0


def test_a_receipt_that_the_chain_contradicts_is_not_signed(lab: Lab, task: str) -> None:
    with editing(lab) as raw:
        raw.execute("DROP TRIGGER chain_keeps")
        raw.execute("UPDATE chain SET statement = replace(statement, '\"result\":\"ok\"', '\"result\":\"no\"') WHERE task = ?", (task,))
        raw.commit()
        assert "evidence_edited" in lab.fumehood("receipt", task).one_clear_line()


@contextmanager
def editing(lab: Lab) -> Iterator[sqlite3.Connection]:
    """The database for the body; afterwards it is as it was."""
    file = lab.state / "ledger" / "ledger.db"
    before = file.read_bytes()
    raw = sqlite3.connect(file)
    try:
        yield raw
    finally:
        raw.close()
        file.write_bytes(before)


def test_the_whole_chain_is_exported_as_lines_that_can_be_checked_elsewhere(lab: Lab, task: str) -> None:
    import hashlib

    lines = [json.loads(line) for line in lab.fumehood("audit", "export").stdout.splitlines()]
    entries = [line for line in lines if "body" in line]
    assert all(hashlib.sha256(entry["body"].encode()).hexdigest() == entry["hash"] for entry in entries)
    assert [entry["kind"] for entry in entries if entry["task"] == task] == ["opened", "closed"]
    assert any("checkpoint" in line for line in lines)


def test_heads_say_how_far_each_chain_is_signed(lab: Lab, task: str) -> None:
    runtime = lab.record("task", task)["runtime_id"]
    (head,) = [each for each in lab.fumehood("audit", "heads", "--json").said["chains"] if each["runtime_id"] == runtime]
    assert (head["ended"], head["signed"]) == (True, head["seq"])
    assert runtime in lab.fumehood("audit", "heads").stdout


def test_keys_are_private_listed_rotated_and_exported(lab: Lab, task: str) -> None:
    before = exported(lab)["keys"]
    made = lab.fumehood("keys", "rotate", "--overlap", "0s", "--json").said
    after = lab.fumehood("keys", "list", "--json").said["keys"]
    assert [key["kid"] for key in after] == [*(key["kid"] for key in before), made["kid"]]
    assert all("d" not in key for key in after)
    assert "exp" in after[-2]
    assert made["kid"] in lab.fumehood("keys", "list").stdout
    assert lab.fumehood("keys", "export", "--format", "pem").stdout.count("BEGIN PUBLIC KEY") == len(after)
    assert lab.python("oci", "pass").status == 0
    done = lab.fumehood("audit", "verify")
    assert done.status == 0, done.stdout
    assert statement(lab.fumehood("receipt", task, "--json").said)["predicate"]["task"] == task
    folder = lab.state / "ledger"
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (folder, folder / "keys", *(folder / "keys").iterdir())}
    assert modes.pop("ledger") == modes.pop("keys") == "0o700"
    assert set(modes.values()) == {"0o600"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("receipt", "zzzzzzzzzz"), "task_unknown"),
        (("receipt", "0"), "bad_request"),
        (("keys", "rotate", "--overlap", "soon"), "bad_request"),
        (("audit", "verify", "--witness", "/nonexistent"), "bad_request"),
        (("audit", "verify", "--keys", "/etc/hostname"), "bad_request"),
    ],
)
def test_what_an_operator_gets_wrong_is_one_line(lab: Lab, task: str, words: tuple[str, ...], code: str) -> None:
    assert task
    assert lab.python("oci", "pass").status == 0  # so that `0` begins several names
    done = lab.fumehood(*words)
    assert done.status == 125
    assert f"fumehood: {code}:" in done.one_clear_line()


def test_a_call_that_is_under_way_has_no_receipt_yet(lab: Lab) -> None:
    with lab.live("oci", "print('here'); input()") as live:
        live.line()
        (record,) = lab.fumehood("tasks", "--result", "open", "--json").said
        assert "receipt_none" in lab.fumehood("receipt", record["task"]).one_clear_line()
        assert lab.fumehood("audit", "verify").status == 0, "a pass while a runtime writes"
        live.say("")
        assert live.end().status == 0
    assert lab.fumehood("receipt", record["task"]).status == 0


def test_help_says_what_each_command_does(lab: Lab) -> None:
    for words in (("audit",), ("audit", "verify"), ("audit", "export"), ("audit", "heads"), ("keys",), ("keys", "rotate"), ("receipt",)):
        assert "Usage" in lab.fumehood(*words, "--help").stdout
    assert Path(lab.state / "ledger").is_dir()
