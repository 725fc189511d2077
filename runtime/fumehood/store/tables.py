"""The tables as the queries see them.

Invariants: what the kernel did not say is NULL, never 0; times are seconds since the epoch; `state` and `result`
hold values of `lifecycle.State` and `model.Result`. The DDL itself is in `migrations.py` and never follows an edit
made here: a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, Integer, MetaData, String, Table, literal_column

from fumehood.lifecycle import State

METADATA = MetaData()

USAGE = (
    "cpu_user_s",
    "cpu_system_s",
    "memory_peak_bytes",
    "pids_peak",
    "oom_kills",
    "pids_limit_hits",
    "cpu_throttled_s",
    "io_read_bytes",
    "io_write_bytes",
)

RECORDS = Table(
    "records",
    METADATA,
    Column("task", String, primary_key=True),
    # Whose call it is. One tenant today; the column is there so that no migration ever has to guess.
    Column("tenant", String, nullable=False),
    Column("sender", String, nullable=False),
    Column("sender_uid", Integer, nullable=False),
    # Which process owes the call its end: the sweeper's key, with the lock of that runtime.
    Column("runtime_id", String, nullable=False),
    Column("boot_id", String, nullable=False),
    # What was asked.
    Column("front_door", String, nullable=False),
    Column("tool", String),
    Column("command", String),
    Column("profile", String, nullable=False),
    Column("profile_digest", String, nullable=False),
    # What it ran in.
    Column("image", String, nullable=False),
    Column("image_digest", String),
    Column("init_digest", String),
    Column("engine", String),
    Column("container", String),
    # How it went.
    Column("state", String, nullable=False),
    Column("result", String),
    Column("reason", String),
    Column("detail", String, nullable=False),
    Column("rule", String),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    # What it used.
    Column("cpu_user_s", Float),
    Column("cpu_system_s", Float),
    Column("memory_peak_bytes", Integer),
    Column("pids_peak", Integer),
    Column("oom_kills", Integer),
    Column("pids_limit_hits", Integer),
    Column("cpu_throttled_s", Float),
    Column("io_read_bytes", Integer),
    Column("io_write_bytes", Integer),
    Column("stdout_bytes", Integer),
    Column("stderr_bytes", Integer),
    Column("stdout_truncated", Boolean),
    Column("stderr_truncated", Boolean),
    # What it left. `files` is bounded; `files_total` counts them all.
    Column("files", JSON(none_as_null=True)),
    Column("files_total", Integer),
    Column("pending", Boolean),
    Column("timings", JSON(none_as_null=True)),
    Column("readback", JSON(none_as_null=True)),
    Column("teardown", JSON(none_as_null=True)),
    # The task of the session whose box the call ran in.
    Column("session", String),
    # What was called, by digest, and how its sender showed that it is theirs.
    Column("request_digest", String),
    Column("pin", String),
    Column("proof", JSON(none_as_null=True)),
    Column("idempotency_key", String),
    # The task of the earlier call whose answer this one's is.
    Column("repeats", String),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("task", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("state", String, nullable=False),
    Column("facts", JSON, nullable=False),
)

# Written out, not bound: SQLite uses a partial index only for a condition that it can read when it plans.
IS_OPEN = RECORDS.c.state != literal_column(f"'{State.CLOSED.value}'")
