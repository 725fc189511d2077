"""One connection to the ledger's SQLite file, set up so that what was committed is on disk and nobody else reads it.

Invariants: the folder is ours and 0700, the files 0600; writes are `BEGIN IMMEDIATE` (a deferred transaction that
turns into a write can fail without waiting when another ledger writes); several ledger processes share one file, so
transactions are short and wait `BUSY_MS` for each other. WAL with `synchronous=FULL` fsyncs every commit. A
transaction that may be lost in a power cut, though not with a killed process, runs with NORMAL: the next FULL commit
makes it durable too, because the log is one file in order.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from fumehood.faults import LedgerGone
from fumehood.reasons import Reason
from fumehood.store.migrations import migrate
from fumehood.store.reserve import Reserve

__all__ = ["Connection", "Database", "opened"]  # the ledger's loop speaks of a connection and imports no SQLAlchemy

FILE = "ledger.db"
BUSY_MS = 4000
_PRAGMAS = (
    f"busy_timeout = {BUSY_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    # A database that someone could edit must not run functions of its schema's choosing.
    "trusted_schema = OFF",
    # Sorting would else spill records into /var/tmp, outside the 0700 folder.
    "temp_store = MEMORY",
)


class Database:
    """The ledger's database. Make it with `opened`."""

    def __init__(self, conn: Connection, reserve: Reserve) -> None:
        """Use a connection that nobody else uses."""
        self._conn = conn
        self._durable = True
        self.reserve = reserve

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Connection]:
        """One write transaction, on disk when the body has been left (if `durable`). Raises LedgerGone."""
        if durable != self._durable:
            cursor = self._conn.connection.cursor()
            cursor.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            cursor.close()
            self._durable = durable
        with self._transaction("BEGIN IMMEDIATE") as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view. Raises LedgerGone."""
        with self._transaction("BEGIN") as conn:
            yield conn

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        try:
            with self._conn.execution_options(begin=begin).begin():
                yield self._conn
        except SQLAlchemyError as error:
            raise LedgerGone(Reason.LEDGER_UNAVAILABLE, f"the database says: {_told(error)}") from error


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    """The database in `folder`, made or migrated as needed. Raises LedgerGone."""
    _check_folder(folder)
    try:
        reserve = Reserve(folder)
        # SQLite would make it 0644; -wal and -shm take the database's mode.
        os.close(os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise LedgerGone(Reason.LEDGER_UNAVAILABLE, f"{folder}: {error.strerror}") from error
    engine = create_engine(f"sqlite+pysqlite:///{folder / FILE}", poolclass=StaticPool)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    try:
        with _alone(folder), engine.connect() as conn, conn.execution_options(begin="BEGIN IMMEDIATE").begin():
            migrate(conn)
        with engine.connect() as conn:
            yield Database(conn, reserve)
    except SQLAlchemyError as error:
        raise LedgerGone(Reason.LEDGER_UNAVAILABLE, f"{folder / FILE}: {_told(error)}") from error
    finally:
        engine.dispose()
        reserve.close()


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN; pysqlite's own guess would be a deferred one
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(conn: Connection) -> None:
    conn.exec_driver_sql(conn.get_execution_options()["begin"])


def _told(error: SQLAlchemyError) -> str:
    """SQLite's own words, without the statement and its parameters: they are a record's content."""
    return str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise LedgerGone(Reason.STATE_UNAVAILABLE, f"{folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise LedgerGone(Reason.STATE_UNAVAILABLE, f"{folder} must be a folder of uid {os.geteuid()} with mode 0700")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder while the schema is made: turning WAL on does not wait for another process that does the same."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
