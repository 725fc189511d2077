"""Who can write the ledger's files edits, removes, inserts, reorders, cuts and restores: `audit verify` says so, and where.

The histories are made by real ledger processes and live in real SQLite files; the edits are what an attacker with root, but without
the signing keys, would do, except where a test says otherwise.
"""

# ruff: noqa: S608 - the statements are the attacker's

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fakes import call
from fumehood import wire
from fumehood.faults import LedgerGone, Refused
from fumehood.keys import KeyFolder
from fumehood.ledger.attesting import MOST_ENTRIES
from fumehood.ledger.requests import SHAPES
from fumehood.reasons import Reason
from fumehood.store.database import FILE
from fumehood.store.digests import LEASE, OPENING, RECORD
from fumehood.store.tables import RECORDS
from histories import REVOKED, History, audited, checkpoints, edited, killed, made, whole_call
from ledgers import running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return made(tmp_path_factory.mktemp("history") / "ledger")


@pytest.fixture
def folder(history: History, tmp_path: Path) -> Path:
    return history.copy(tmp_path / "ledger")


def groups(folder: Path, **options: Any) -> set[str]:
    return {fault.group for fault in audited(folder, **options)[0]}


def test_an_honest_ledger_of_runtimes_that_overlapped_died_and_were_swept_has_no_fault(folder: Path) -> None:
    faults, summary = audited(folder, witness=checkpoints(folder))
    assert faults == []
    assert (summary.chains, summary.calls, summary.uncovered) == (3, 7, 0)
    assert summary.unfinished == ["r1", "r3"]  # killed: without a closing entry, and not called edited
    assert summary.witnessed > 0


def test_what_a_later_runtime_swept_is_attested_in_its_own_chain(history: History, folder: Path) -> None:
    with running(folder, runtime="r4") as ledger:
        ledger.ask("close_lost", ledger.broker, task=history.open, facts={"swept_by": "r4"})
        for revoked, error in ((None, "the backend is away"), (REVOKED, None)):
            (claimed,) = ledger.ask("leases_claim", lease=history.living, task=None, after=None, orphaned=False, limit=4)
            ledger.ask("lease_closed", lease=claimed["lease"], revoked=revoked, error=error)
    assert audited(folder)[0] == []
    raw = sqlite3.connect(folder / FILE)
    kinds = raw.execute("SELECT kind, task FROM chain WHERE runtime_id = 'r4' ORDER BY seq").fetchall()
    raw.close()
    assert kinds == [("began", None), ("lost", history.open), ("lease.closed", history.open), ("ended", None)]
    edited(folder, f"UPDATE leases SET proof = '{{}}' WHERE lease = '{history.living}'")
    assert [(fault.group, fault.runtime) for fault in audited(folder)[0]] == [("leases", "r4")]


# Every column of a closed record, an open one's opening, a lease of either kind; a value that is another whatever it was.
OTHER = {"opened_at": "opened_at + 0.001", "closed_at": "closed_at + 0.001", "sender_uid": "sender_uid + 1"}


def changed(column: str) -> str:
    return OTHER.get(column, f"CASE WHEN typeof({column}) = 'text' THEN {column} || ' ' WHEN {column} IS NULL THEN '7' ELSE {column} + 1 END")


def test_no_column_of_a_record_is_left_out() -> None:
    assert {*RECORD} == {column.name for column in RECORDS.c}


@pytest.mark.parametrize("column", [name for name in RECORD if name not in {"task", "state"}])
def test_a_closed_record_edited_in_any_column(history: History, folder: Path, column: str) -> None:
    edited(folder, f"UPDATE records SET {column} = {changed(column)} WHERE task = '{history.closed}'")
    (fault,) = audited(folder)[0]
    assert (fault.group, fault.task) == ("opening" if column in OPENING else "record", history.closed)
    assert (fault.runtime, fault.seq is not None) == ("r1", True)


@pytest.mark.parametrize("column", [name for name in OPENING if name != "task"])
def test_an_open_record_edited_in_any_column_of_its_opening(history: History, folder: Path, column: str) -> None:
    edited(folder, f"UPDATE records SET {column} = {changed(column)} WHERE task = '{history.open}'")
    assert [(fault.group, fault.task) for fault in audited(folder)[0]] == [("opening", history.open)]


@pytest.mark.parametrize("column", [name for name in LEASE if name not in {"lease", "task", "state"}])
def test_a_closed_lease_edited_in_any_column(history: History, folder: Path, column: str) -> None:
    edited(folder, f"UPDATE leases SET {column} = {changed(column)} WHERE lease = '{history.lease}'")
    assert [(fault.group, fault.task) for fault in audited(folder)[0]] == [("leases", history.closed)]


EDITS = {
    "a step of a timeline": ("UPDATE events SET facts = '{{}}' WHERE task = '{closed}' AND seq = 3", "events"),
    "the time of a step": ("UPDATE events SET at = at + 1 WHERE task = '{closed}' AND seq = 3", "events"),
    "a step taken out": ("DELETE FROM events WHERE task = '{closed}' AND seq = 12", "events"),
    "a step put in": ("INSERT INTO events VALUES ('{closed}', 99, 1.0, 'made', '{{}}')", "events"),
    "a line of an egress log": ("UPDATE egress SET kind = 'dns' WHERE task = '{closed}' AND seq = 2", "egress"),
    "a line of an egress log taken out": ("DELETE FROM egress WHERE task = '{closed}' AND seq = 5", "egress"),
    "a line of an egress log put in": ("INSERT INTO egress VALUES ('{closed}', 6, 1.0, 'dns', '{{}}')", "egress"),
    "the gate's counters": ("UPDATE egress_totals SET counters = '{{}}' WHERE task = '{closed}'", "egress"),
    "the digest of an egress log": ("UPDATE egress_totals SET digest = NULL WHERE task = '{closed}'", "egress"),
    "the whole of an egress log": ("DELETE FROM egress_totals WHERE task = '{closed}'", "egress"),
    "an egress log put in": ("INSERT INTO egress VALUES ('{lost}', 1, 1.0, 'dns', '{{}}')", "egress"),
    "a closed lease taken out": ("DELETE FROM leases WHERE lease = '{lease}'", "leases"),
    "a closed lease opened": ("UPDATE leases SET state = 'issued', closed_at = NULL, proof = NULL WHERE lease = '{lease}'", "leases"),
    "a lease that lives": ("UPDATE leases SET handle = '{{}}' WHERE lease = '{living}'", "leases"),
    "the end of a lease that lives": ("UPDATE leases SET until = 1.0 WHERE lease = '{living}'", "leases"),
    "a lease that lives taken out": ("DELETE FROM leases WHERE lease = '{living}'", "leases"),
    "a lease that lives said to be closed": ("UPDATE leases SET state = 'closed', closed_at = 1.0, proof = '{{}}' WHERE lease = '{living}'", "leases"),
    "a lease put into a closed call": ("INSERT INTO leases SELECT 'x', task, runtime_id, credential, provider, handle, sealed, facts, state, opened_at, issued_at, closed_at, until, tries, error, proof, claimed_by, claimed_at, abandoned FROM leases WHERE lease = '{lease}'", "leases"),
    "a lease put into an open call": ("INSERT INTO leases SELECT 'x', task, runtime_id, credential, provider, handle, sealed, facts, state, opened_at, issued_at, closed_at, until, tries, error, proof, claimed_by, claimed_at, abandoned FROM leases WHERE lease = '{living}'", "leases"),
    "a closed record taken out": ("DELETE FROM records WHERE task = '{closed}'", "record"),
    "a lost record taken out": ("DELETE FROM records WHERE task = '{lost}'", "record"),
    "an open record taken out": ("DELETE FROM records WHERE task = '{open}'", "record"),
    "an open record said to be closed": ("UPDATE records SET state = 'closed', result = 'ok', closed_at = 1.0 WHERE task = '{open}'", "record"),
    "a record under another id": ("UPDATE records SET task = '0' || substr(task, 2, 24) || 'z' WHERE task = '{closed}'", "record"),
    "a statement": ("UPDATE chain SET statement = replace(statement, '\"result\":\"ok\"', '\"result\":\"failed\"') WHERE task = '{closed}' AND kind = 'closed'", "statement"),
    "a statement taken out": ("UPDATE chain SET statement = NULL WHERE task = '{closed}' AND kind = 'closed'", "statement"),
    "the text of an entry": ("UPDATE chain SET body = replace(body, '\"v\":1', '\"v\":2') WHERE task = '{closed}' AND kind = 'opened'", "entry"),
    "the hash of an entry": ("UPDATE chain SET hash = upper(hash) WHERE task = '{closed}' AND kind = 'opened'", "entry"),
    "the kind of an entry": ("UPDATE chain SET kind = 'lost' WHERE task = '{closed}' AND kind = 'closed'", "entry"),
    "the task of an entry": ("UPDATE chain SET task = '{lost}' WHERE task = '{closed}' AND kind = 'opened'", "entry"),
    "an entry's text that is no JSON": ("UPDATE chain SET body = '[' WHERE task = '{closed}' AND kind = 'opened'", "entry"),
    "an entry taken out": ("DELETE FROM chain WHERE task = '{closed}' AND kind = 'lease.issued'", "order"),
    "a chain's first entry taken out": ("DELETE FROM chain WHERE runtime_id = 'r2' AND seq = 1", "order"),
    "the ledger's first entry taken out": ("DELETE FROM chain WHERE number = 1", "order"),
    "a whole chain taken out": ("DELETE FROM chain WHERE runtime_id = 'r2'", "order"),
    "a chain's end taken out": ("DELETE FROM chain WHERE kind = 'ended'", "order"),
    "an entry of another runtime's": ("UPDATE chain SET runtime_id = 'r9' WHERE task = '{closed}' AND kind = 'opened'", "entry"),
    "a checkpoint's place": ("UPDATE checkpoints SET seq = seq - 1 WHERE runtime_id = 'r2'", "checkpoint"),
    "a checkpoint's text": ("UPDATE checkpoints SET envelope = replace(envelope, 'payload\":\"e', 'payload\":\"f') WHERE runtime_id = 'r2'", "checkpoint"),
    "a checkpoint that is no JSON": ("UPDATE checkpoints SET envelope = '[' WHERE runtime_id = 'r2'", "checkpoint"),
    "checkpoints taken out": ("DELETE FROM checkpoints", "checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "group"), EDITS.values(), ids=EDITS)
def test_an_edit_of_any_kind_is_found(history: History, folder: Path, edit: str, group: str) -> None:
    names = {"closed": history.closed, "lost": history.lost, "open": history.open, "lease": history.lease, "living": history.living}
    edited(folder, edit.format(**names))
    found = [fault for fault in audited(folder)[0] if fault.group == group]
    assert found
    assert all(fault.runtime or fault.task for fault in found), "it does not say where"


def test_a_record_put_in_by_hand(history: History, folder: Path) -> None:
    columns = ", ".join(RECORD[1:])
    edited(folder, f"INSERT INTO records (task, {columns}) SELECT '{'z' * 26}', {columns} FROM records WHERE task = '{history.closed}'")
    assert [(fault.group, fault.task) for fault in audited(folder)[0]] == [("record", "z" * 26)]


def test_two_entries_that_changed_places(folder: Path) -> None:
    one, two = 4, 5
    edited(folder, f"UPDATE chain SET number = -1 WHERE number = {one}", f"UPDATE chain SET number = {one} WHERE number = {two}",
           f"UPDATE chain SET number = {two} WHERE number = -1")  # fmt: skip
    assert "order" in groups(folder)


def test_two_chains_that_changed_names(folder: Path) -> None:
    edited(folder, *(f"UPDATE chain SET runtime_id = '{to}' WHERE runtime_id = '{name}'" for name, to in (("r1", "x"), ("r2", "r1"), ("x", "r2"))))
    assert {"entry", "checkpoint"} <= groups(folder)


def forged(folder: Path, number: int, change: Any) -> None:
    """An entry rewritten, and every hash after it made anew, as one does who knows how the chain is made."""
    raw = sqlite3.connect(folder / FILE)
    raw.execute("DROP TRIGGER chain_keeps")
    new: dict[str, str] = {}
    for row, body, known in raw.execute("SELECT number, body, hash FROM chain WHERE number >= ? ORDER BY number", (number,)).fetchall():
        said = json.loads(body)
        if row == number:
            change(said)
        said["prev"] = new.get(said["prev"], said["prev"])
        if said["beside"] is not None:
            said["beside"][2] = new.get(said["beside"][2], said["beside"][2])
        text = json.dumps(said, separators=(",", ":"))
        new[known] = hashlib.sha256(text.encode()).hexdigest()
        raw.execute("UPDATE chain SET body = ?, hash = ? WHERE number = ?", (text, new[known], row))
    raw.commit()
    raw.close()


def number_of(folder: Path, task: str, kind: str) -> int:
    raw = sqlite3.connect(folder / FILE)
    (number,) = raw.execute("SELECT number FROM chain WHERE task = ? AND kind = ?", (task, kind)).fetchone()
    raw.close()
    return int(number)


def test_a_history_rewritten_with_all_its_hashes_contradicts_the_signed_checkpoints(history: History, folder: Path) -> None:
    forged(folder, number_of(folder, history.closed, "opened"), lambda said: said.update(at=1.0))
    assert groups(folder) == {"checkpoint"}


def test_checkpoints_taken_away_to_hide_that_are_missed(history: History, folder: Path) -> None:
    forged(folder, number_of(folder, history.closed, "opened"), lambda said: said.update(at=1.0))
    edited_again = sqlite3.connect(folder / FILE)
    edited_again.execute("DELETE FROM checkpoints")
    edited_again.commit()
    edited_again.close()
    faults, _ = audited(folder)
    assert [(fault.group, fault.runtime) for fault in faults] == [("checkpoint", "r2")], "r2 ended in order, so its end was signed"


def test_a_long_chain_without_checkpoints_is_told_of_though_it_never_ended(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with running(folder) as ledger:
        for _ in range(MOST_ENTRIES * 2 + 10):
            whole_call(ledger, steps=False)
        killed(ledger)
    assert audited(folder)[0] == []
    edited(folder, "DELETE FROM checkpoints")
    (fault,) = audited(folder)[0]
    assert (fault.group, fault.runtime) == ("checkpoint", "r1")


def test_rows_deleted_and_called_forgotten_are_not_believed_without_a_checkpoint(history: History, folder: Path) -> None:
    """The attacker adds an entry `pruned` of their own making, to cover up a lease that they removed."""
    raw = sqlite3.connect(folder / FILE)
    runtime, seq, known = raw.execute("SELECT runtime_id, seq, hash FROM chain ORDER BY number DESC LIMIT 1").fetchone()
    said = {"v": 1, "runtime": runtime, "seq": seq + 1, "kind": "pruned", "at": 9e9, "task": None, "prev": known, "beside": None, "before": 9e9}
    body = json.dumps(said, separators=(",", ":"))
    values = (runtime, seq + 1, "pruned", body, hashlib.sha256(body.encode()).hexdigest())
    raw.execute("INSERT INTO chain (runtime_id, seq, kind, body, hash) VALUES (?, ?, ?, ?, ?)", values)
    raw.execute(f"DELETE FROM leases WHERE lease = '{history.lease}'")
    raw.commit()
    raw.close()
    assert groups(folder) == {"leases"}


def test_what_was_pruned_in_order_is_no_deletion(history: History, folder: Path) -> None:
    with running(folder, runtime="r4") as ledger:
        assert ledger.ask("prune", older_than_s=0.0)["leases"] == 1
    raw = sqlite3.connect(folder / FILE)
    assert raw.execute("SELECT count(*) FROM leases WHERE lease = ?", (history.lease,)).fetchone() == (0,)
    assert raw.execute("SELECT count(*) FROM egress WHERE task = ?", (history.closed,)).fetchone() == (0,)
    raw.close()
    assert audited(folder)[0] == []


@pytest.mark.parametrize(
    "members",
    [{"opening": None}, {"kind": "closed"}, {"kind": "lease.closed", "lease": []}, {"kind": "began"}, {"beside": 5}, {"beside": ["r1"]},
     {"kind": "lease.issued"}, {"kind": "closed", "record": 1, "events": 2, "held": 3, "egress": 4, "says": 5}],
)  # fmt: skip
def test_an_entry_that_says_what_no_ledger_writes_is_a_fault_and_breaks_no_audit(folder: Path, members: dict[str, Any]) -> None:
    raw = sqlite3.connect(folder / FILE)
    runtime, seq, known = raw.execute("SELECT runtime_id, seq, hash FROM chain ORDER BY number DESC LIMIT 1").fetchone()
    said = {"runtime": runtime, "seq": seq + 1, "kind": "opened", "task": "t", "prev": known, "beside": None, **members}
    body = json.dumps(said, separators=(",", ":"))
    values = (runtime, seq + 1, said["kind"], "t", body, hashlib.sha256(body.encode()).hexdigest())
    raw.execute("INSERT INTO chain (runtime_id, seq, kind, task, body, hash) VALUES (?, ?, ?, ?, ?, ?)", values)
    raw.commit()
    raw.close()
    assert {(fault.runtime, fault.seq) for fault in audited(folder)[0]} == {(runtime, seq + 1)}


def test_a_value_of_another_type_in_a_table_made_anew_is_an_edit(history: History, folder: Path) -> None:
    raw = sqlite3.connect(folder / FILE)
    raw.execute("ALTER TABLE records RENAME TO before")
    raw.execute("CREATE TABLE records AS SELECT * FROM before")
    raw.execute(f"UPDATE records SET exit_code = x'00ff' WHERE task = '{history.closed}'")
    raw.commit()
    raw.close()
    assert [(fault.group, fault.task) for fault in audited(folder)[0]] == [("record", history.closed)]


def test_a_damaged_page_is_told_and_is_no_traceback(history: History, folder: Path) -> None:
    content = bytearray((folder / FILE).read_bytes())
    place = content.find(history.closed.encode(), len(content) // 3)
    content[place - 600 : place + 600] = b"\xff" * 1200
    (folder / FILE).write_bytes(content)
    try:
        assert audited(folder)[0]
    except LedgerGone as gone:
        assert gone.reason is Reason.LEDGER_UNAVAILABLE


def test_a_signature_by_another_key(folder: Path) -> None:
    """Somebody puts a key of their own beside the ledger's, and signs a history of their own: exported keys tell."""
    trusted = {key.kid: key for key in KeyFolder(folder).public()}
    shutil.rmtree(folder / "keys")
    with running(folder, runtime="r5") as ledger:
        whole_call(ledger)
    assert {fault.group for fault in audited(folder)[0]} == {"checkpoint"}, "the old checkpoints are signed by no key that is there"
    faults, _ = audited(folder, keys=trusted)
    assert [(fault.group, fault.runtime) for fault in faults] == [("checkpoint", "r5")]


def test_keys_that_were_rotated_go_on_verifying_and_one_out_of_its_time_does_not(folder: Path) -> None:
    keys = KeyFolder(folder)
    (first,) = keys.public()
    keys.rotate(3600.0)
    with running(folder, runtime="r6") as ledger:
        whole_call(ledger)
    assert audited(folder)[0] == []
    signers = {json.loads(envelope)["signatures"][0]["keyid"] for envelope in checkpoints(folder)}
    assert len(signers) == 2
    assert first.kid in signers
    path = folder / "keys" / f"{first.kid}.jwk"
    path.write_text(json.dumps({**json.loads(path.read_text()), "exp": 1000}))
    faults, _ = audited(folder)
    assert {fault.group for fault in faults} == {"checkpoint"}
    assert "not in use" in faults[0].detail


def test_a_running_ledger_signs_with_the_new_key_once_there_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with running(folder) as ledger:
        for _ in range(MOST_ENTRIES // 2 + 2):
            whole_call(ledger, steps=False)
        made = KeyFolder(folder).rotate(3600.0)
        for _ in range(MOST_ENTRIES // 2 + 2):
            whole_call(ledger, steps=False)
    assert json.loads(checkpoints(folder)[-1])["signatures"][0]["keyid"] == made.kid
    assert audited(folder)[0] == []


def test_the_newest_entries_cut_off(folder: Path) -> None:
    """Without a witness this cannot be told from a ledger that was never further; with one it is."""
    told = checkpoints(folder)
    raw = sqlite3.connect(folder / FILE)
    (task, first) = raw.execute("SELECT task, number FROM chain WHERE runtime_id = 'r2' AND kind = 'opened' ORDER BY number DESC LIMIT 1").fetchone()
    raw.close()
    statements = [f"DELETE FROM chain WHERE number >= {first}", "DELETE FROM checkpoints WHERE seq >= (SELECT max(seq) FROM chain WHERE runtime_id = 'r2')"]
    edited(folder, *statements)
    raw = sqlite3.connect(folder / FILE)
    for table in ("events", "egress", "egress_totals", "leases", "records"):
        raw.execute(f"DELETE FROM {table} WHERE task >= ?", (task,))
    raw.commit()
    raw.close()
    assert audited(folder)[0] == []
    faults, _ = audited(folder, witness=told)
    assert {(fault.group, fault.runtime) for fault in faults} == {("witness", "r2")}
    assert "cut" in faults[0].detail


def test_a_checkpoint_that_stayed_tells_of_what_was_cut_off_before_it(folder: Path) -> None:
    raw = sqlite3.connect(folder / FILE)
    (number,) = raw.execute("SELECT max(number) FROM chain WHERE runtime_id = 'r2' AND kind = 'closed'").fetchone()
    raw.close()
    edited(folder, f"DELETE FROM chain WHERE number >= {number}")
    assert "checkpoint" in groups(folder)


def test_an_old_copy_put_back(history: History, tmp_path: Path) -> None:
    folder = history.copy(tmp_path / "ledger")
    old = history.copy(tmp_path / "old")
    with running(folder, runtime="r7") as ledger:
        whole_call(ledger)
    told = checkpoints(folder)
    shutil.rmtree(folder)
    old.rename(folder)
    assert audited(folder)[0] == [], "the specification says that this takes a witness"
    faults, _ = audited(folder, witness=told)
    assert [(fault.group, fault.runtime) for fault in faults] == [("witness", "r7")]


def test_a_witness_whose_lines_were_edited_or_are_of_another_ledger(folder: Path) -> None:
    told = checkpoints(folder)
    assert audited(folder, witness=[*told, "", "\n"])[0] == []
    faults, _ = audited(folder, witness=[told[0].replace('"sig":"', '"sig":"AAAA'), "{", "[]", '{"payloadType": 1}'])
    assert [fault.group for fault in faults] == ["witness"] * 4


@pytest.fixture(scope="module")
def logged(history: History, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger whose newest calls are in the write-ahead log alone, a checkpoint among them."""
    folder = history.copy(tmp_path_factory.mktemp("wal") / "ledger")
    with running(folder, runtime="r8") as ledger:
        whole_call(ledger, steps=False)
        reader = sqlite3.connect(folder / FILE, isolation_level=None)
        reader.execute("BEGIN")  # who reads an old view keeps the log from being folded into the file
        reader.execute("SELECT count(*) FROM chain").fetchone()
        for _ in range(MOST_ENTRIES // 2 + 10):
            whole_call(ledger, steps=False)
        killed(ledger)
        copied = folder.with_name("copied")
        shutil.copytree(folder, copied)
        reader.close()
    (copied / f"{FILE}-shm").unlink()
    return copied


@pytest.mark.parametrize("harm", ["removed", "edited", "cut"])
def test_a_write_ahead_log_that_was_edited_or_removed(logged: Path, tmp_path: Path, harm: str) -> None:
    """SQLite takes a log up to its first wrong page, so what is left is an older ledger, whole: the witness tells."""
    whole, folder = tmp_path / "whole", tmp_path / "ledger"
    for to in (whole, folder):
        shutil.copytree(logged, to)
    told = checkpoints(whole)
    assert audited(whole, witness=told)[0] == []
    wal = folder / f"{FILE}-wal"
    content = bytearray(wal.read_bytes())
    if harm == "removed":
        wal.unlink()
    elif harm == "edited":
        content[len(content) // 4] ^= 0xFF
        wal.write_bytes(content)
    else:
        wal.write_bytes(content[: len(content) // 2])
    if harm != "removed":  # SQLite had folded some pages of it into the file, which then fit no others
        assert audited(folder)[0] == [], "nothing is torn, and nothing is made up"
    faults, _ = audited(folder, witness=told)
    assert ("witness", "r8") in {(fault.group, fault.runtime) for fault in faults}


def test_a_chain_whose_head_was_replaced_under_a_running_ledger_gets_no_more_entries(tmp_path: Path) -> None:
    """Else the ledger would go on from what somebody else put there, and sign it."""
    folder = tmp_path / "ledger"
    with running(folder) as ledger:
        whole_call(ledger)
        edited(folder, "UPDATE chain SET hash = upper(hash) WHERE number = (SELECT max(number) FROM chain)")
        with pytest.raises(LedgerGone, match="changed by another"):
            ledger.open(call())


def test_a_worker_that_was_taken_over_has_no_verb_for_entries_and_none_for_another_runtime(tmp_path: Path) -> None:
    assert not {verb for verb in SHAPES if any(word in verb for word in ("chain", "entry", "checkpoint", "sign", "key_"))}
    assert not any("runtime_id" in SHAPES[verb] for verb in ("open", "event", "close", "close_lost", "egress", "prune"))
    folder = tmp_path / "ledger"
    with running(folder, runtime="r1") as ours, running(folder, runtime="r2") as theirs:
        one = call()
        theirs.open(one)
        for verb, fields in (("chain", {}), ("sign", {}), ("rotate", {}), ("verify", {})):
            with pytest.raises(Refused):
                ours.ask(verb, **fields)
        with pytest.raises(Refused):
            ours.close(one.task)
        with pytest.raises(Refused):
            ours.ask("close_lost", task=one.task, facts={})
        theirs.close(one.task)
    raw = sqlite3.connect(folder / FILE)
    assert {kind for (kind,) in raw.execute("SELECT kind FROM chain WHERE runtime_id = 'r1'")} <= {"began", "ended"}
    raw.close()
    assert audited(folder)[0] == []


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_between_write_and_commit_loses_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """The ledger is killed at random moments of a stream of calls, often inside a commit."""
    folder, rng = tmp_path / "ledger", random.Random(seed)  # noqa: S311 - moments, no secrets
    acknowledged: set[str] = set()
    closed: set[str] = set()
    for turn in range(5):
        with running(folder, runtime=f"r{turn}") as ledger:
            whole_call(ledger, steps=False)
            pid, wait = ledger.process.pid, rng.uniform(0.0, 0.05)
            killer = os.fork()
            if killer == 0:
                import time

                time.sleep(wait)
                os.kill(pid, 9)
                os._exit(0)
            try:
                while True:
                    one = call()
                    ledger.open(one)
                    acknowledged.add(one.task)
                    ledger.close(one.task)
                    closed.add(one.task)
            except wire.WireError:
                os.waitpid(killer, 0)
    faults, summary = audited(folder)
    assert faults == []
    assert len(summary.unfinished) == 5
    raw = sqlite3.connect(folder / FILE)
    there = dict(raw.execute("SELECT task, state FROM records"))
    raw.close()
    assert acknowledged <= there.keys()
    assert {task for task in closed if there[task] != "closed"} == set()


SLOW_COMMIT = """
import os, sqlite3, socket, sys
from pathlib import Path
import fumehood.store.database as database
class Connection(sqlite3.Connection):
    commits = 0
    def execute(self, sql, *values):
        if sql == "COMMIT" and self.in_transaction and self.total_changes:
            Connection.commits += 1
            if Connection.commits == int(os.environ["DIE_AT"]):
                os.kill(os.getpid(), 9)
        return super().execute(sql, *values)
plain = sqlite3.connect
database.sqlite3.connect = lambda *words, **options: plain(*words, factory=Connection, **options)
from fumehood.ledger import serve
serve([socket.socket(fileno=int(fd)) for fd in sys.argv[3:]], Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("commit", [3, 4, 5])
def test_a_ledger_killed_after_it_wrote_and_before_it_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: int) -> None:
    folder = tmp_path / "ledger"
    monkeypatch.setenv("DIE_AT", str(commit))
    done: list[str] = []
    with running(folder, program=SLOW_COMMIT) as ledger, pytest.raises(wire.WireError):  # noqa: PT012 - it meets one of them
        while True:
            done.append(whole_call(ledger, steps=False))
    faults, summary = audited(folder)
    assert faults == []
    assert summary.calls == len(done)


def test_records_from_before_there_was_a_chain_are_not_covered_and_that_is_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with running(folder) as ledger:
        old = whole_call(ledger)
    edited(folder, "DELETE FROM chain", "DELETE FROM checkpoints")
    with running(folder, runtime="r2") as ledger:
        whole_call(ledger)
    faults, summary = audited(folder)
    assert (faults, summary.uncovered) == ([], 1)
    raw = sqlite3.connect(folder / FILE)
    raw.execute(f"DELETE FROM events WHERE task = '{old}'")
    raw.execute(f"DELETE FROM records WHERE task = '{old}'")
    raw.commit()
    raw.close()
    (fault,) = audited(folder)[0]
    assert "before there was a chain" in fault.detail
