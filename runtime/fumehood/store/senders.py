"""Whose signatures are accepted: the public keys of senders. Each function runs inside a transaction.

Invariants: a key belongs to one name for good, because records name senders by their keys; a revoked key stays, and stays revoked.
So what was once read of a key can change in one way only, and that one is looked at in the transaction that takes a nonce.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fumehood.store.database import Transaction
from fumehood.store.paging import PAGE_BYTES, PAGE_ROWS, fitting
from fumehood.thumbprint import thumbprint

SENDERS = 4096
_COLUMNS = ("kid", "name", "key", "tenant", "groups", "audiences", "added_at", "revoked_at")
_ADD = """
    INSERT OR IGNORE INTO senders (kid, name, key, tenant, groups, audiences, added_at)
    SELECT :kid, :name, :key, :tenant, :groups, :audiences, :at WHERE (SELECT count(*) FROM senders) < :most
"""
_REVOKE = "UPDATE senders SET revoked_at = ? WHERE (kid = ? OR name = ?) AND revoked_at IS NULL RETURNING kid"
_FIND = f"SELECT {', '.join(_COLUMNS)} FROM senders WHERE kid = ?"  # noqa: S608 - the names are columns of ours
_LIST = f"SELECT {', '.join(_COLUMNS)} FROM senders WHERE kid > ? ORDER BY kid LIMIT ?"  # noqa: S608 - as above
_REVOKED = "SELECT 1 FROM senders WHERE kid = ? AND revoked_at IS NOT NULL"


def add_sender(conn: Transaction, fields: Mapping[str, Any], *, at_s: float) -> str | None:
    """Accept a key for a name from now on; its thumbprint. None when the key is known already, or there are too many."""
    kid = thumbprint(fields["key"])
    lists = {name: json.dumps(fields[name]) for name in ("groups", "audiences")}
    done = conn.run(_ADD, {**fields, **lists, "kid": kid, "at": at_s, "most": SENDERS})
    return kid if done.rowcount else None


def revoke_sender(conn: Transaction, named: str, *, at_s: float) -> list[str]:
    """Accept no more of a key, or of every key of a name; the thumbprints of those that were accepted until now."""
    return [kid for (kid,) in conn.run(_REVOKE, (at_s, named, named)).fetchall()]


def find_sender(conn: Transaction, kid: str) -> dict[str, Any] | None:
    """A key and whose it is, revoked or not."""
    row = conn.run(_FIND, (kid,)).fetchone()
    return None if row is None else _as_json(row)


def senders(conn: Transaction, *, after: str | None) -> dict[str, Any]:
    """`{"senders": [...], "more": bool}`, by thumbprint. Ask again with `after`."""
    page, more = fitting(map(_as_json, conn.run(_LIST, (after or "", PAGE_ROWS + 1))), PAGE_ROWS, PAGE_BYTES)
    return {"senders": page, "more": more}


def is_revoked(conn: Transaction, kid: str) -> bool:
    """Whether this is the key of a sender who may not use it any more."""
    return conn.run(_REVOKED, (kid,)).fetchone() is not None


def _as_json(row: Sequence[Any]) -> dict[str, Any]:
    shown = dict(zip(_COLUMNS, row, strict=True))
    return {**shown, "groups": json.loads(shown["groups"]), "audiences": json.loads(shown["audiences"])}
