"""What was used once and is never taken again: the nonces of requests that show their origin. Each function runs inside a transaction.

Invariants: a nonce of a key is inserted once, whichever runtime on this state folder asks; it is forgotten only `GRACE_S` after its
request expired, by this process's clock; and once something was forgotten, nothing that expires no later than it is ever taken
again. That last one is for a clock that steps back: a captured request would look fresh again when its nonce is gone already.

What cannot be remembered is refused. A key holds at most `NONCES_OF_A_KEY`, so that one sender cannot fill the store for the others;
all of them together at most `NONCES`, however many keys a worker that was taken over makes up.
"""

from __future__ import annotations

from fumehood.reasons import Reason
from fumehood.store.database import Transaction

NONCES = 262_144
NONCES_OF_A_KEY = 32_768
# More than any front door forgives a sender's clock.
GRACE_S = 60.0
FURTHEST_S = 3600.0
_FORGOTTEN_AT_ONCE = 256

_TAKEN = "SELECT 1 FROM nonces WHERE key = ? AND nonce = ?"
_TAKE = "INSERT INTO nonces (key, nonce, until) VALUES (?, ?, ?)"
_COUNT = "INSERT INTO nonce_counts (key, held) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET held = held + excluded.held"
_HELD = "SELECT held FROM nonce_counts WHERE key = ?"
_COUNTED_OUT = "DELETE FROM nonce_counts WHERE held <= 0"
_OLD = "SELECT until, key, nonce FROM nonces WHERE until < ? ORDER BY until LIMIT ?"
_FORGET = "DELETE FROM nonces WHERE key = ? AND nonce = ?"
_RAISE = "UPDATE nonces_forgotten SET until = max(until, ?), held = held - ?"
_STATE = "SELECT until, held FROM nonces_forgotten"


def spend(conn: Transaction, key: str, nonce: str, until_s: float, *, at_s: float) -> Reason | None:
    """Take a nonce of a request that expires at `until_s` (epoch); why not, when it is not to be taken."""
    forget(conn, at_s, _FORGOTTEN_AT_ONCE)
    if until_s + GRACE_S < at_s:
        return Reason.PROOF_EXPIRED
    if until_s > at_s + FURTHEST_S:
        return Reason.PROOF_INVALID
    forgotten_s, _ = conn.run(_STATE).fetchone()
    if until_s <= forgotten_s:
        return Reason.CLOCK_WENT_BACK
    if conn.run(_TAKEN, (key, nonce)).fetchone() is not None:
        return Reason.REPLAYED
    if _is_full(conn, key):
        forget(conn, at_s, NONCES)  # after a long pause most of it may be old
        if _is_full(conn, key):
            return Reason.NONCES_FULL
    conn.run(_TAKE, (key, nonce, until_s))
    conn.run(_COUNT, (key, 1))
    conn.run(_RAISE, (forgotten_s, -1))
    return None


def forget(conn: Transaction, at_s: float, most: int) -> None:
    """Drop at most so many nonces of requests that nobody would take any more, and remember until when they would have been."""
    old = conn.run(_OLD, (at_s - GRACE_S, most)).fetchall()
    if not old:
        return
    counts: dict[str, int] = {}
    for _, key, nonce in old:
        conn.run(_FORGET, (key, nonce))
        counts[key] = counts.get(key, 0) - 1
    for each in counts.items():
        conn.run(_COUNT, each)
    conn.run(_COUNTED_OUT)
    conn.run(_RAISE, (old[-1][0], len(old)))


def _is_full(conn: Transaction, key: str) -> bool:
    (held,) = conn.run(_HELD, (key,)).fetchone() or (0,)
    return held >= NONCES_OF_A_KEY or conn.run(_STATE).fetchone()[1] >= NONCES
