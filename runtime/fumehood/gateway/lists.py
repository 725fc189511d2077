"""One page of a list. Pure.

A cursor is an offset into a list with a digest: a list that has changed meanwhile would be skipped in or repeated, so
its cursors end.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fumehood.gateway.protocol import INVALID_PARAMS, GatewayError

PAGE_ENTRIES = 500
# A list may be kept as long as a person waits: it changes when the operator reloads, and clients are told then.
LIST_TTL_MS = 60_000
DIGEST_CHARS = 16


def page(member: str, entries: Sequence[Mapping[str, Any]], cursor: Any, *, modern: bool) -> dict[str, Any]:
    """The page at `cursor`. Raises `GatewayError`."""
    shown: dict[str, Any] = {}
    start = 0
    if cursor is not None or len(entries) > PAGE_ENTRIES:
        digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]
        start = 0 if cursor is None else _offset(cursor, digest, len(entries))
        if start + PAGE_ENTRIES < len(entries):
            shown["nextCursor"] = base64.urlsafe_b64encode(f"{digest}{start + PAGE_ENTRIES}".encode()).decode()
    shown[member] = list(entries[start : start + PAGE_ENTRIES])
    return shown | ({"ttlMs": LIST_TTL_MS, "cacheScope": "private"} if modern else {})


def _offset(cursor: Any, digest: str, length: int) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor).decode("ascii")
        offset = int(text[DIGEST_CHARS:])
    except (ValueError, TypeError):
        raise GatewayError(INVALID_PARAMS, "Invalid cursor") from None
    if text[:DIGEST_CHARS] != digest or not 0 < offset < length:
        raise GatewayError(INVALID_PARAMS, "Invalid cursor: the list has changed; ask for its first page")
    return offset
