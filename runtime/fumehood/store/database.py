"""One connection to the ledger's SQLite file, set up so that what was committed is on disk and nobody else reads it.

Invariants: the folder is ours and 0700, the files 0600; writes are `BEGIN IMMEDIATE` (a deferred transaction that
turns into a write can fail without waiting when another ledger writes); several ledger processes share one file, so
transactions are short and wait `BUSY_MS` for each other. WAL with `synchronous=FULL` fsyncs every commit. A
transaction that may be lost in a power cut, though not with a killed process, runs with NORMAL: the next FULL commit
makes it durable too, because the log is one file in order.

What every call needs is said in SQL: importing SQLAlchemy takes longer than the whole of a call, and `fumehood run` would wait
for it. The questions of people, which are put together from what they ask, go through SQLAlchemy, imported with the first.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fumehood.faults import LedgerGone
from fumehood.reasons import Reason
from fumehood.store.migrations import migrate
from fumehood.store.reserve import Reserve

if TYPE_CHECKING:
    from sqlalchemy import Connection

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


class Transaction:
    """A transaction under way. Only `Database` begins and ends one."""

    def __init__(self, database: Database, conn: sqlite3.Connection) -> None:
        """Speak for a connection that has begun."""
        self._database = database
        self._conn = conn

    def run(self, sql: str, values: Mapping[str, Any] | tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """One statement. The cursor's rows are tuples."""
        return self._conn.execute(sql, values)

    @property
    def core(self) -> Connection:
        """The same connection, inside the same transaction, through SQLAlchemy."""
        return self._database.core()


class Database:
    """The ledger's database. Make it with `opened`."""

    def __init__(self, conn: sqlite3.Connection, reserve: Reserve) -> None:
        """Use a connection that nobody else uses."""
        self._conn = conn
        self._core: Connection | None = None
        self._faults: tuple[type[Exception], ...] = (sqlite3.Error,)
        self._durable = True
        self.reserve = reserve

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Transaction]:
        """One write transaction, on disk when the body has been left (if `durable`). Raises LedgerGone."""
        if durable != self._durable:
            self._conn.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}").close()
            self._durable = durable
        with self._transaction("BEGIN IMMEDIATE") as transaction:
            yield transaction

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One consistent view. Raises LedgerGone."""
        with self._transaction("BEGIN") as transaction:
            yield transaction

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Transaction]:
        try:
            self._conn.execute(begin)
            try:
                yield Transaction(self, self._conn)
                self._conn.execute("COMMIT")
            finally:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
        except self._faults as error:
            raise LedgerGone(Reason.LEDGER_UNAVAILABLE, f"the database says: {_told(error)}") from error

    def core(self) -> Connection:
        """SQLAlchemy's view of the connection, made when it is first wanted."""
        if self._core is None:
            from fumehood.store import core

            self._core = core.guest(self._conn)
            self._faults = (sqlite3.Error, core.SQLAlchemyError)
        return self._core


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
    try:
        conn = sqlite3.connect(folder / FILE, isolation_level=None)  # we say BEGIN; its own guess would be a deferred one
        try:
            with _alone(folder):
                for pragma in _PRAGMAS:
                    conn.execute(f"PRAGMA {pragma}").close()
                migrate(conn)
            yield Database(conn, reserve)
        finally:
            conn.close()
    except sqlite3.Error as error:
        raise LedgerGone(Reason.LEDGER_UNAVAILABLE, f"{folder / FILE}: {_told(error)}") from error
    finally:
        reserve.close()


def _told(error: Exception) -> str:
    """SQLite's own words, without the statement and its parameters: they are a record's content."""
    words = getattr(error, "orig", error)
    return str(words) if isinstance(words, sqlite3.Error) else type(error).__name__


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
