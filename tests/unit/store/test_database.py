"""The ledger's file: who may read it, which schemas it takes, what a full or read-only disk means."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect

from fakes import call
from fumehood.evidence.client import opening
from fumehood.faults import LedgerGone
from fumehood.reasons import Reason
from fumehood.store import records
from fumehood.store.database import FILE, Database, opened
from fumehood.store.migrations import MIGRATIONS, VERSION
from fumehood.store.reserve import RESERVE_BYTES
from fumehood.store.tables import METADATA


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def database(folder: Path) -> Iterator[Database]:
    with opened(folder) as found:
        yield found


def open_one(database: Database) -> str:
    one = call()
    with database.write(durable=True) as conn:
        assert records.open_record(conn, opening(one), runtime_id="r", boot_id="b", at_s=1.0)
    return one.task


def test_the_folder_is_0700_and_every_file_in_it_0600_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        with opened(folder) as database:
            open_one(database)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    finally:
        os.umask(before)
    assert modes == {
        "ledger": 0o700,
        FILE: 0o600,
        f"{FILE}-wal": 0o600,
        f"{FILE}-shm": 0o600,
        "reserve": 0o600,
    }


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(LedgerGone) as refused, opened(folder):
        pass
    assert refused.value.reason is Reason.STATE_UNAVAILABLE


def test_a_planted_symlink_is_not_followed(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerGone), opened(folder):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert list(MIGRATIONS) == list(range(1, VERSION + 1))


def test_the_migrated_schema_is_what_the_queries_expect(database: Database) -> None:
    with database.read() as conn:
        found = inspect(conn.core)
        for table in METADATA.sorted_tables:
            columns = {column["name"]: bool(column["nullable"]) for column in found.get_columns(table.name)}
            assert columns == {column.name: bool(column.nullable) for column in table.columns}
            assert found.get_pk_constraint(table.name)["constrained_columns"] == list(table.primary_key.columns.keys())


def test_a_newer_schema_is_refused_and_left_alone(folder: Path) -> None:
    with opened(folder) as database:
        open_one(database)
    with sqlite3.connect(folder / FILE) as raw:
        raw.execute(f"PRAGMA user_version = {VERSION + 1}")
    raw.close()
    with pytest.raises(LedgerGone) as refused, opened(folder):
        pass
    assert refused.value.reason is Reason.STATE_NEWER
    assert re.search(rf"{VERSION + 1}.*{VERSION}", refused.value.detail)


def test_opening_twice_keeps_what_was_written(folder: Path) -> None:
    with opened(folder) as database:
        task = open_one(database)
    with opened(folder) as database, database.read() as conn:
        assert conn.run("SELECT task FROM records").fetchall() == [(task,)]


def test_commits_are_fsynced_in_a_write_ahead_log(database: Database) -> None:
    with database.write(durable=False):
        pass
    with database.write(durable=True) as conn:
        assert conn.run("PRAGMA journal_mode").fetchone() == ("wal",)
        assert conn.run("PRAGMA synchronous").fetchone() == (2,)
    with database.write(durable=False) as conn:
        assert conn.run("PRAGMA synchronous").fetchone() == (1,)


def test_a_full_database_takes_no_record_and_keeps_the_others(database: Database) -> None:
    first = open_one(database)
    with database.read() as conn:
        (pages,) = conn.run("PRAGMA page_count").fetchone()
        conn.run(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerGone) as gone:  # noqa: PT012 - which of them finds it full depends on the page size
        for _ in range(200):
            open_one(database)
    assert gone.value.reason is Reason.LEDGER_UNAVAILABLE
    assert "full" in gone.value.detail
    with database.write(durable=True) as conn:
        assert records.close_lost(conn, first, {}, at_s=2.0)


def test_a_database_that_may_not_be_written_takes_no_record(database: Database) -> None:
    with database.read() as conn:
        conn.run("PRAGMA query_only = ON")
    with pytest.raises(LedgerGone) as gone:
        open_one(database)
    assert gone.value.reason is Reason.LEDGER_UNAVAILABLE
    assert "readonly" in gone.value.detail


def test_garbage_in_place_of_the_database_is_told(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(LedgerGone) as gone, opened(folder):
        pass
    assert gone.value.reason is Reason.LEDGER_UNAVAILABLE


def test_an_error_does_not_quote_what_was_to_be_written(database: Database) -> None:
    with pytest.raises(LedgerGone) as gone, database.write(durable=True) as conn:
        conn.run("INSERT INTO records (task) VALUES (?)", ("a secret",))
    assert "secret" not in gone.value.detail


def test_sqlalchemy_is_a_guest_in_a_transaction_that_it_cannot_end(database: Database) -> None:
    with pytest.raises(LedgerGone) as gone, database.write(durable=True) as conn:  # noqa: PT012 - its end is what fails
        assert records.open_record(conn, opening(call()), runtime_id="r", boot_id="b", at_s=1.0)
        assert conn.core.exec_driver_sql("SELECT count(*) FROM records").scalar() == 1
        conn.core.commit()
        conn.core.exec_driver_sql("INSERT INTO records (task) VALUES (?)", ("a secret",))
    assert gone.value.detail == "the database says: NOT NULL constraint failed: records.tenant"
    with database.read() as conn:
        assert conn.core.exec_driver_sql("SELECT count(*) FROM records").scalar() == 0


def test_a_ledger_that_is_asked_for_no_list_imports_no_sqlalchemy() -> None:
    code = "import sys, fumehood.ledger.serve; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_space_is_set_aside_and_given_back(database: Database, folder: Path) -> None:
    assert database.reserve.fill()
    assert (folder / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES
    database.reserve.spend()
    assert (folder / "reserve").stat().st_blocks == 0
    assert database.reserve.fill()
