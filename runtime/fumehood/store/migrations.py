"""The schema's history: numbered steps, each applied once, in order, in one transaction with its number.

Invariants: a step that was released never changes; the number is SQLite's `user_version`; a database with a number
above ours was written by a newer fumehood and is not touched. STRICT tables: a wrong type is an error on write, not a
surprise on read.
"""

from __future__ import annotations

import sqlite3

from fumehood.faults import LedgerGone
from fumehood.reasons import Reason

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """
        CREATE TABLE records (
          task TEXT PRIMARY KEY NOT NULL,
          tenant TEXT NOT NULL, sender TEXT NOT NULL, sender_uid INTEGER NOT NULL,
          runtime_id TEXT NOT NULL, boot_id TEXT NOT NULL,
          front_door TEXT NOT NULL, tool TEXT, command TEXT,
          profile TEXT NOT NULL, profile_digest TEXT NOT NULL,
          image TEXT NOT NULL, image_digest TEXT, init_digest TEXT, engine TEXT, container TEXT,
          state TEXT NOT NULL,
          result TEXT, reason TEXT, detail TEXT NOT NULL, rule TEXT, exit_code INTEGER, signal INTEGER,
          opened_at REAL NOT NULL, closed_at REAL,
          cpu_user_s REAL, cpu_system_s REAL, memory_peak_bytes INTEGER, pids_peak INTEGER, oom_kills INTEGER,
          pids_limit_hits INTEGER, cpu_throttled_s REAL, io_read_bytes INTEGER, io_write_bytes INTEGER,
          stdout_bytes INTEGER, stderr_bytes INTEGER, stdout_truncated INTEGER, stderr_truncated INTEGER,
          files TEXT, files_total INTEGER, pending INTEGER, timings TEXT, readback TEXT, teardown TEXT,
          CHECK ((state = 'closed') = (result IS NOT NULL AND closed_at IS NOT NULL))
        ) STRICT
        """,
        # The sweeper asks for the few open records among all that ever were.
        "CREATE INDEX records_open ON records (task, runtime_id) WHERE state <> 'closed'",
        """
        CREATE TABLE events (
          task TEXT NOT NULL REFERENCES records (task),
          seq INTEGER NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, facts TEXT NOT NULL,
          PRIMARY KEY (task, seq)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    2: (
        "ALTER TABLE records ADD COLUMN session TEXT",
        "CREATE INDEX records_of_session ON records (session, task) WHERE session IS NOT NULL",
    ),
    3: (
        """
        CREATE TABLE leases (
          lease TEXT PRIMARY KEY NOT NULL,
          task TEXT NOT NULL REFERENCES records (task),
          runtime_id TEXT NOT NULL, credential TEXT NOT NULL, provider TEXT NOT NULL,
          handle TEXT NOT NULL, sealed TEXT, facts TEXT,
          state TEXT NOT NULL CHECK (state IN ('opened', 'issued', 'closed')),
          opened_at REAL NOT NULL, issued_at REAL, closed_at REAL, until REAL,
          tries INTEGER NOT NULL, error TEXT, proof TEXT,
          claimed_by TEXT, claimed_at REAL, abandoned INTEGER NOT NULL DEFAULT 0,
          CHECK ((state = 'closed') = (closed_at IS NOT NULL AND proof IS NOT NULL))
        ) STRICT
        """,
        # The sweeper asks for the few that are open among all that ever were.
        "CREATE INDEX leases_open ON leases (lease) WHERE state <> 'closed'",
        "CREATE INDEX leases_of_task ON leases (task, lease)",
        """
        CREATE TABLE egress (
          task TEXT NOT NULL REFERENCES records (task),
          seq INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, facts TEXT NOT NULL,
          PRIMARY KEY (task, seq)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE egress_totals (
          task TEXT PRIMARY KEY NOT NULL REFERENCES records (task),
          entries INTEGER NOT NULL, bytes INTEGER NOT NULL, dropped INTEGER NOT NULL, counters TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
    4: (
        "ALTER TABLE records ADD COLUMN request_digest TEXT",
        "ALTER TABLE records ADD COLUMN pin TEXT",
        "ALTER TABLE records ADD COLUMN proof TEXT",
        "ALTER TABLE records ADD COLUMN idempotency_key TEXT",
    ),
    5: (
        # One row an entry, in the order of commits; `statement` is what the receipt of a closed call says.
        """
        CREATE TABLE chain (
          number INTEGER PRIMARY KEY,
          runtime_id TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, task TEXT,
          body TEXT NOT NULL, hash TEXT NOT NULL, statement TEXT,
          UNIQUE (runtime_id, seq)
        ) STRICT
        """,
        "CREATE INDEX chain_of_task ON chain (task, number) WHERE task IS NOT NULL",
        "CREATE INDEX chain_prunings ON chain (number) WHERE kind = 'pruned'",
        # Against mistakes of ours; who edits the file drops them first.
        "CREATE TRIGGER chain_keeps BEFORE UPDATE ON chain BEGIN SELECT RAISE(ABORT, 'the chain is only added to'); END",
        "CREATE TRIGGER chain_holds BEFORE DELETE ON chain BEGIN SELECT RAISE(ABORT, 'the chain is only added to'); END",
        """
        CREATE TABLE checkpoints (
          number INTEGER PRIMARY KEY,
          runtime_id TEXT NOT NULL, seq INTEGER NOT NULL, envelope TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX checkpoints_of_runtime ON checkpoints (runtime_id, seq)",
        """
        CREATE TABLE witnesses (
          name TEXT PRIMARY KEY NOT NULL,
          told_at REAL, runtime_id TEXT, seq INTEGER, failed_at REAL, error TEXT
        ) STRICT, WITHOUT ROWID
        """,
        "ALTER TABLE egress_totals ADD COLUMN digest TEXT",
    ),
    6: (
        """
        CREATE TABLE pins (
          server TEXT NOT NULL, profile TEXT NOT NULL, tool TEXT NOT NULL, capabilities TEXT NOT NULL,
          declared TEXT NOT NULL,
          seen TEXT NOT NULL, seen_text TEXT NOT NULL, seen_at REAL NOT NULL,
          accepted TEXT, accepted_text TEXT, accepted_at REAL, reviewed INTEGER NOT NULL,
          rejected TEXT,
          PRIMARY KEY (server, profile, tool, capabilities),
          CHECK ((accepted IS NULL) = (accepted_text IS NULL) AND (accepted IS NULL) = (accepted_at IS NULL))
        ) STRICT
        """,
    ),
    7: (
        """
        CREATE TABLE nonces (
          key TEXT NOT NULL, nonce TEXT NOT NULL, until REAL NOT NULL,
          PRIMARY KEY (key, nonce)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX nonces_until ON nonces (until)",
        # Counted as they come and go: counting them anew would cost each request a walk over all of its sender's.
        "CREATE TABLE nonce_counts (key TEXT PRIMARY KEY NOT NULL, held INTEGER NOT NULL) STRICT, WITHOUT ROWID",
        "CREATE INDEX nonce_counts_empty ON nonce_counts (held) WHERE held <= 0",
        # One row: the latest expiry of what was forgotten, and how many there are.
        "CREATE TABLE nonces_forgotten (until REAL NOT NULL, held INTEGER NOT NULL) STRICT",
        "INSERT INTO nonces_forgotten (until, held) VALUES (0.0, 0)",
        """
        CREATE TABLE senders (
          kid TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL,
          tenant TEXT NOT NULL, groups TEXT NOT NULL, audiences TEXT NOT NULL,
          added_at REAL NOT NULL, revoked_at REAL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX senders_of_name ON senders (name)",
    ),
    8: (
        "ALTER TABLE records ADD COLUMN repeats TEXT",
        """
        CREATE TABLE keys (
          tenant TEXT NOT NULL, sender TEXT NOT NULL, sender_uid INTEGER NOT NULL, key TEXT NOT NULL,
          task TEXT NOT NULL REFERENCES records (task),
          policy TEXT NOT NULL, until REAL NOT NULL,
          PRIMARY KEY (tenant, sender, sender_uid, key)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX keys_of_task ON keys (task)",
        """
        CREATE TABLE operations (
          number INTEGER PRIMARY KEY, at REAL NOT NULL,
          action TEXT NOT NULL, who TEXT NOT NULL, uid INTEGER NOT NULL, why TEXT NOT NULL, facts TEXT NOT NULL
        ) STRICT
        """,
    ),
    9: (
        # What calls under way are booked as; gone with their ends.
        """
        CREATE TABLE accounts (
          task TEXT PRIMARY KEY NOT NULL REFERENCES records (task),
          sender TEXT NOT NULL, tool TEXT
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE tools_done (
          sender TEXT NOT NULL, tool TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL,
          PRIMARY KEY (sender, tool)
        ) STRICT, WITHOUT ROWID
        """,
        # `place` is a sender, a path or an inode; each row is one call's, and goes if that never ran.
        """
        CREATE TABLE taints (
          place TEXT NOT NULL, label TEXT NOT NULL, task TEXT NOT NULL, at REAL NOT NULL, settled INTEGER NOT NULL,
          PRIMARY KEY (place, label, task)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX taints_of_task ON taints (task)",
        """
        CREATE TABLE charges (
          task TEXT NOT NULL, budget TEXT NOT NULL, key TEXT NOT NULL,
          unit TEXT NOT NULL, amount REAL NOT NULL, per REAL NOT NULL,
          PRIMARY KEY (task, budget, key)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX charges_of_budget ON charges (budget, key)",
        # What ended calls used, in sixtieths of the time that a budget is about.
        """
        CREATE TABLE spent (
          budget TEXT NOT NULL, key TEXT NOT NULL, until REAL NOT NULL, amount REAL NOT NULL,
          PRIMARY KEY (budget, key, until)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    10: (
        """
        CREATE TABLE approvals (
          approval TEXT PRIMARY KEY NOT NULL,
          task TEXT NOT NULL REFERENCES records (task),
          binding TEXT NOT NULL,
          tenant TEXT NOT NULL, sender TEXT NOT NULL, sender_uid INTEGER NOT NULL, sender_key TEXT,
          approvers TEXT, count INTEGER NOT NULL, requester INTEGER NOT NULL,
          question TEXT NOT NULL,
          state TEXT NOT NULL CHECK (state IN ('open', 'approved', 'denied', 'withdrawn', 'expired', 'spent')),
          opened_at REAL NOT NULL, until REAL NOT NULL, decided_at REAL, spent_by TEXT, told TEXT,
          CHECK ((state = 'open') = (decided_at IS NULL) AND (state = 'spent') = (spent_by IS NOT NULL))
        ) STRICT
        """,
        # The few that a request may attach to, or an approver may decide, among all that ever were.
        "CREATE INDEX approvals_live ON approvals (binding) WHERE state IN ('open', 'approved', 'denied')",
        """
        CREATE TABLE approval_votes (
          approval TEXT NOT NULL REFERENCES approvals (approval),
          identity TEXT NOT NULL, approver TEXT NOT NULL, approves INTEGER NOT NULL,
          how TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL, signed TEXT,
          PRIMARY KEY (approval, identity)
        ) STRICT, WITHOUT ROWID
        """,
    ),
}

VERSION = max(MIGRATIONS)


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the database to `VERSION`. Raises LedgerGone with `state_newer`, sqlite3.Error."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        found = int(conn.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            raise LedgerGone(Reason.STATE_NEWER, f"the ledger's schema is {found} and this fumehood knows {VERSION}")
        for number in range(found + 1, VERSION + 1):
            for statement in MIGRATIONS[number]:
                conn.execute(statement)
            conn.execute(f"PRAGMA user_version = {number:d}")
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
