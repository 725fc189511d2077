"""A record moves along the lifecycle and no other way, and what is closed stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import call, new_task
from fumehood import wire
from fumehood.evidence.client import closing, opening
from fumehood.lifecycle import State
from fumehood.model import FileChange, Outcome, Result, Usage
from fumehood.reasons import Reason
from fumehood.store import lookups, queries, records
from fumehood.store.database import Transaction, opened
from fumehood.store.queries import Wanted
from fumehood.store.records import EVENTS_OF_A_TASK, Step

PATH = [state for state in State if state not in {State.OPEN, State.WAITING, State.PARKED, State.CLOSED}]


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Transaction]:
    with opened(tmp_path / "ledger") as database, database.write(durable=False) as found:
        yield found


def open_one(conn: Transaction, *, runtime: str = "r1", at_s: float = 1.0, **given: Any) -> str:
    one = call(**given)
    assert records.open_record(conn, opening(one), runtime_id=runtime, boot_id="b1", at_s=at_s)
    return one.task


def step(conn: Transaction, task: str, state: State, runtime: str = "r1", **facts: Any) -> bool:
    return records.add_event(conn, task, Step(state, 2.0, facts), runtime_id=runtime)


def close(conn: Transaction, task: str, runtime: str = "r1", **outcome: Any) -> bool:
    fields = closing(Outcome(task=task, **{"result": Result.OK, **outcome}))
    del fields["task"]
    return records.close_record(conn, task, fields, runtime_id=runtime, at_s=9.0)


def found(conn: Transaction, task: str) -> dict[str, Any]:
    record = queries.task(conn, task, after_seq=None)["record"]
    assert isinstance(record, dict)
    return record


def test_a_whole_path_is_a_timeline_and_fills_the_columns(conn: Transaction) -> None:
    task = open_one(conn)
    facts: dict[State, dict[str, Any]] = {
        State.VERIFIED: {"image_digest": "sha256:aa"},
        State.MADE: {"engine": "oci", "container": "c1", "init": "sha256:bb", "ms": 12.5},
        State.RUNNING: {"readback": {"seccomp": "equal"}, "ms": 20.0},
        State.REMOVED: {"cgroup": "gone", "ms": 30.0},
    }
    for state in PATH:
        assert step(conn, task, state, **facts.get(state, {}))
    usage = Usage(cpu_user_s=0.25, memory_peak_bytes=2**20, oom_kills=0)
    files = (FileChange(path="a", kind="added", size_bytes=3, sha256="c" * 64),)
    assert close(conn, task, exit_code=0, usage=usage, files=files, timings_ms={"total": 8.0}, stdout_total_bytes=5)
    answer = queries.task(conn, task, after_seq=None)
    assert [event["state"] for event in answer["events"]] == ["open", *(state.value for state in PATH), "closed"]
    assert [event["seq"] for event in answer["events"]] == list(range(1, 14))
    assert not answer["more"]
    record = answer["record"]
    assert (record["image_digest"], record["init_digest"]) == ("sha256:aa", "sha256:bb")
    assert (record["engine"], record["container"]) == ("oci", "c1")
    assert record["readback"] == {"seccomp": "equal"}
    assert record["teardown"] == {"cgroup": "gone"}
    assert (record["state"], record["result"], record["exit_code"]) == ("closed", "ok", 0)
    assert (record["opened_at"], record["closed_at"]) == (1.0, 9.0)
    assert record["files"] == [{"path": "a", "kind": "added", "size_bytes": 3, "sha256": "c" * 64}]
    assert record["timings_ms"] == {"total": 8.0}
    assert (record["tenant"], record["sender"], record["sender_uid"]) == ("local", "root", 0)


def test_what_the_kernel_did_not_say_is_null_and_zero_is_zero(conn: Transaction) -> None:
    task = open_one(conn)
    assert close(conn, task, usage=Usage(oom_kills=0))
    usage = found(conn, task)["usage"]
    assert usage["oom_kills"] == 0
    assert usage["cpu_user_s"] is None
    assert usage["io_read_bytes"] is None


@pytest.mark.parametrize(
    ("walked", "then"),
    [
        ([], State.MADE),
        ([], State.RUNNING),
        ([State.VERIFIED], State.VERIFIED),
        (PATH[:6], State.DECIDED),
        (PATH[:6], State.EXITED),
        (PATH, State.SETTLED),
        (PATH, State.OPEN),
    ],
)
def test_a_step_that_cannot_follow_changes_nothing(conn: Transaction, walked: list[State], then: State) -> None:
    task = open_one(conn)
    assert all(step(conn, task, state) for state in walked)
    assert not step(conn, task, then, engine="forged")
    assert found(conn, task)["state"] == (walked[-1] if walked else State.OPEN).value
    assert found(conn, task)["engine"] is None


def test_a_closed_record_never_changes(conn: Transaction) -> None:
    task = open_one(conn)
    assert close(conn, task, result=Result.FAILED, reason=Reason.EXIT_NONZERO, exit_code=3)
    before = queries.task(conn, task, after_seq=None)
    assert not close(conn, task, result=Result.OK, exit_code=0)
    assert not step(conn, task, State.REMOVED)
    assert not records.close_lost(conn, task, {}, at_s=99.0)
    assert queries.task(conn, task, after_seq=None) == before


def test_a_task_is_opened_once(conn: Transaction) -> None:
    one = call()
    assert records.open_record(conn, opening(one), runtime_id="r1", boot_id="b", at_s=1.0)
    assert not records.open_record(conn, opening(one), runtime_id="r2", boot_id="b", at_s=2.0)
    assert found(conn, one.task)["runtime_id"] == "r1"


def test_one_runtime_does_not_touch_the_records_of_another(conn: Transaction) -> None:
    task = open_one(conn, runtime="r1")
    assert not step(conn, task, State.VERIFIED, runtime="r2")
    assert not close(conn, task, runtime="r2")
    assert found(conn, task)["state"] == "open"


def test_a_dead_runtimes_record_is_closed_as_lost_once_with_what_was_found(conn: Transaction) -> None:
    task = open_one(conn)
    step(conn, task, State.VERIFIED)
    assert records.close_lost(conn, task, {"killed": ["c1"]}, at_s=5.0)
    assert not records.close_lost(conn, task, {}, at_s=6.0)
    record = found(conn, task)
    assert (record["state"], record["result"], record["reason"]) == ("closed", "lost", "runtime_died")
    assert queries.task(conn, task, after_seq=None)["events"][-1]["facts"] == {"killed": ["c1"]}


def test_one_task_cannot_fill_the_ledger_with_events(conn: Transaction) -> None:
    task = open_one(conn)
    done = [step(conn, task, State.REMOVED) for _ in range(EVENTS_OF_A_TASK + 10)]
    assert done.count(True) == EVENTS_OF_A_TASK - 1
    assert close(conn, task)


def test_a_made_up_long_container_name_does_not_become_a_column(conn: Transaction) -> None:
    task = open_one(conn)
    for state in PATH[:4]:
        step(conn, task, state)
    assert step(conn, task, State.MADE, engine="oci", container="x" * 10_000)
    assert (found(conn, task)["engine"], found(conn, task)["container"]) == ("oci", None)


def test_open_tasks_are_those_of_the_runtime_asked_for(conn: Transaction) -> None:
    mine, other, done = open_one(conn), open_one(conn, runtime="r2"), open_one(conn)
    close(conn, done)
    assert [row["task"] for row in lookups.open_tasks(conn, runtime_id="r1", after_task=None)] == [mine]
    assert [row["task"] for row in lookups.open_tasks(conn, runtime_id=None, after_task=None)] == [mine, other]
    assert [row["task"] for row in lookups.open_tasks(conn, runtime_id=None, after_task=mine)] == [other]
    assert lookups.open_tasks(conn, runtime_id="r2", after_task=None)[0] == {
        "task": other,
        "runtime_id": "r2",
        "boot_id": "b1",
        "engine": None,
        "container": None,
    }
    assert lookups.runtimes_open(conn) == ["r1", "r2"]


def test_the_sweepers_questions_do_not_read_every_record_there_ever_was(
    conn: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []
    run = conn.run
    monkeypatch.setattr(conn, "run", lambda sql, values=(): asked.append((sql, values)) or run(sql, values))
    lookups.open_tasks(conn, runtime_id="r1", after_task=None)
    lookups.open_tasks(conn, runtime_id=None, after_task=None)
    lookups.runtimes_open(conn)
    for query, parameters in tuple(asked):
        plan = run(f"EXPLAIN QUERY PLAN {query}", parameters).fetchall()
        assert "records_open" in str(plan)


def test_filters_choose_by_tool_command_result_profile_and_time(conn: Transaction) -> None:
    log = open_one(conn, at_s=10.0)
    run = open_one(conn, tool=None, profile="python", at_s=20.0)
    bad = open_one(conn, tool="git_diff", at_s=30.0)
    close(conn, run)
    close(conn, bad, result=Result.KILLED, reason=Reason.WALL)

    def names(**wanted: Any) -> list[str]:
        return [row["task"] for row in queries.tasks(conn, Wanted(limit=10, **wanted))["tasks"]]

    assert names() == [bad, run, log]
    assert names(tool="git_log") == [log]
    assert names(tool="python3") == [run]
    assert names(result="open") == [log]
    assert names(result="killed") == [bad]
    assert names(result="lost") == []
    assert names(profile="python") == [run]
    assert names(since=20.0) == [bad, run]
    assert names(until=20.0) == [log]
    assert names(before_task=run) == [log]


def test_ten_thousand_records_come_in_pages_that_fit_a_message(conn: Transaction) -> None:
    expected = [open_one(conn, tool="t" * 300) for _ in range(10_000)]
    got: list[str] = []
    before: str | None = None
    while True:
        page = queries.tasks(conn, Wanted(limit=10_000, before_task=before))
        wire.encode({"id": 1, "ok": page})
        got += [row["task"] for row in page["tasks"]]
        if not page["more"]:
            break
        before = got[-1]
    assert got == expected[::-1]
    plan = conn.run("EXPLAIN QUERY PLAN SELECT task FROM records ORDER BY task DESC LIMIT 5").fetchall()
    assert "SCAN" in str(plan)
    assert "TEMP B-TREE" not in str(plan)
    wire.encode({"id": 1, "ok": lookups.open_tasks(conn, runtime_id=None, after_task=None)})


def test_the_largest_record_comes_in_pages_that_fit_a_message(conn: Transaction) -> None:
    task = open_one(conn)
    large = {"text": "\N{GRINNING FACE}" * 8000}
    for state in PATH:
        assert step(conn, task, state, **large)
    files = tuple(FileChange(path="\N{GRINNING FACE}" * 200, kind="added") for _ in range(1000))
    assert close(conn, task, files=files, detail="\N{GRINNING FACE}" * 4000)
    answer = queries.task(conn, task, after_seq=None)
    seen = list(answer["events"])
    wire.encode({"id": 1, "ok": answer})
    while answer["more"]:
        answer = queries.task(conn, task, after_seq=seen[-1]["seq"] if seen else 0)
        assert answer["events"]
        wire.encode({"id": 1, "ok": answer})
        seen += answer["events"]
    assert [event["state"] for event in seen] == ["open", *(state.value for state in PATH), "closed"]


def test_a_prefix_names_a_task_when_only_one_begins_with_it(conn: Transaction) -> None:
    one, other = open_one(conn), open_one(conn)
    assert queries.tasks_named(conn, one) == [one]
    assert queries.tasks_named(conn, one[:8]) == [one, other]
    assert queries.tasks_named(conn, new_task()) == []
