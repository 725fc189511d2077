"""SQLAlchemy on a connection that is not its own: it may ask and change, and neither begin nor end a transaction.

Importing this imports SQLAlchemy: `Database.core` does, when somebody first needs it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

__all__ = ["SQLAlchemyError", "guest"]


class _Guest:
    """As much of a connection as SQLAlchemy's dialect needs. What would end the host's transaction does nothing."""

    def __init__(self, host: sqlite3.Connection) -> None:
        self._host = host

    def cursor(self) -> sqlite3.Cursor:
        return self._host.cursor()

    def create_function(self, name: str, arguments: int, function: Callable[..., Any], **options: Any) -> None:
        self._host.create_function(name, arguments, function, **options)

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


def guest(host: sqlite3.Connection) -> Connection:
    """A connection for as long as `host` is open."""
    engine = create_engine("sqlite+pysqlite://", creator=lambda: _Guest(host), poolclass=StaticPool)
    return engine.connect()
