"""Records as people and machines read them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fumehood.cli import records_view
from fumehood.cli.tasks import fetch_task, fetch_tasks, instant
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason
from fumehood.store.tables import RECORDS, USAGE

NOW_S = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()


def record(**given: Any) -> dict[str, Any]:
    blank: dict[str, Any] = {column.name: None for column in RECORDS.c if column.name not in (*USAGE, "timings")}
    usage = {**dict.fromkeys(USAGE), **given.pop("usage", {})}
    known = {
        "task": "0" * 26,
        "tenant": "local",
        "sender": "root",
        "sender_uid": 0,
        "front_door": "gateway",
        "tool": "git_log",
        "profile": "git",
        "profile_digest": "sha256:11",
        "image": "python",
        "runtime_id": "r1",
        "state": "closed",
        "result": "ok",
        "detail": "",
        "opened_at": NOW_S,
    }
    return {**blank, **known, "usage": usage, "timings_ms": None, "events": [], **given}


def printed(drawn: Table | Text) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False).print(drawn)
    return out.getvalue()


def test_a_row_says_what_ran_where_it_ended_and_what_it_cost() -> None:
    text = printed(
        records_view.tasks_table(
            [
                record(
                    engine="oci",
                    result="killed",
                    reason="wall",
                    timings_ms={"total": 60012.25},
                    usage={"cpu_user_s": 0.5, "cpu_system_s": 0.125, "memory_peak_bytes": 3 * 2**20},
                )
            ]
        )
    )
    for part in ("0" * 26, "git_log", "oci", "killed wall", "60,012.2", "625", "3 MiB"):
        assert part in text


def test_an_open_record_shows_its_state_and_dashes_for_what_is_not_known() -> None:
    row = printed(records_view.tasks_table([record(state="running", result=None, tool=None, command="python3")]))
    assert "open running" in row
    assert "python3" in row
    assert row.splitlines()[-2].split()[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b]0;owned\x07", "\u202eexe.txt", "a\nb", "\x9b31m"])
def test_a_name_from_a_server_cannot_drive_the_terminal(hostile: str) -> None:
    one = record(tool=hostile, detail=hostile, files=[{"kind": "added", "size_bytes": 1, "path": hostile}])
    for text in (printed(records_view.tasks_table([one])), printed(records_view.facts_table(one))):
        assert hostile not in text
        assert not {letter for letter in text if not letter.isprintable()} - {"\n"}


def test_a_name_from_a_server_is_no_markup() -> None:
    assert "[red]x[/red]" in printed(records_view.tasks_table([record(tool="[red]x[/red]")]))


def test_facts_leave_out_what_the_kernel_did_not_say() -> None:
    text = printed(records_view.facts_table(record(usage={"oom_kills": 0, "io_read_bytes": 2048})))
    assert "oom kills 0" in text
    assert "read 2 KiB" in text
    assert "written" not in text
    assert "throttled" not in text


def test_many_files_are_counted_not_scrolled() -> None:
    files = [{"kind": "added", "size_bytes": 1, "path": f"f{number}"} for number in range(30)]
    text = printed(records_view.facts_table(record(files=files, files_total=500)))
    assert "f19" in text
    assert "f20" not in text
    assert "and 480 more" in text


def test_what_was_taken_away_is_told_with_what_is_left() -> None:
    taken = {"init": {"gone": True, "ms": 0.4}, "container": {"gone": False, "ms": 5001.0}}
    told = printed(records_view.facts_table(record(events=[{"seq": 1, "at": 1.0, "state": "removed", "facts": {"taken": taken, "clean": False}}])))
    assert "each looked for afterwards (ms): init 0.4" in told
    assert "container: it is tried again" in told
    told = printed(records_view.facts_table(record(events=[{"seq": 1, "at": 1.0, "state": "closed", "facts": {"swept_by": "r2", "cgroup_removed": True}}])))
    assert "by runtime r2: cgroup" in told


def events(**ends_ms: float) -> list[dict[str, Any]]:
    return [
        {"seq": number, "at": NOW_S, "state": state, "facts": {"ms": end_ms}}
        for number, (state, end_ms) in enumerate(ends_ms.items(), 1)
    ]


def test_stages_follow_one_another_and_admission_is_one_of_them() -> None:
    steps = events(
        verified=3.0, decided=3.5, granted=4.0, planned=5.0, made=45.0, bound=50.0, running=60.0, exited=960.0
    )
    one = record(events=steps, timings_ms={"open": 2.0, "total": 1000.0})
    assert records_view.stages(one) == [
        ("open", 0.0, 2.0),
        ("verify", 2.0, 5.0),
        ("make", 5.0, 45.0),
        ("bind", 45.0, 50.0),
        ("start", 50.0, 60.0),
        ("run", 60.0, 960.0),
    ]
    lines = printed(records_view.timeline(one)).strip().splitlines()
    assert [line.split()[0] for line in lines] == ["open", "verify", "make", "bind", "start", "run", "total"]
    assert all("█" in line for line in lines[:-1])
    assert len({len(line.rstrip()) for line in lines}) == 1
    assert lines[5].count("█") > 40
    assert lines[-1].split()[1:] == ["1,000", "ms"]


def test_the_timeline_of_a_lost_call_draws_what_is_known() -> None:
    lost = record(result="lost", events=[*events(verified=3.0), {"seq": 2, "at": 1, "state": "closed", "facts": {}}])
    assert records_view.stages(lost) == [("verify", 0.0, 3.0)]
    assert records_view.stages(record()) == []
    assert printed(records_view.timeline(record())).strip() == ""


@pytest.mark.parametrize(("start", "end", "total"), [(0, 0, 0), (0, 0, 10), (10, 10, 10), (0, 10, 10), (9.99, 12, 10)])
def test_a_bar_stays_in_its_columns_and_is_never_invisible(start: float, end: float, total: float) -> None:
    before, length = records_view.bar(start, end, total)
    assert before >= 0
    assert length >= 1
    assert before + length <= records_view.BAR_COLUMNS


@pytest.mark.parametrize(
    ("text", "seconds_ago"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("1h", 3600),
        ("1.5h", 5400),
        ("7d", 604800),
        ("2w", 1209600),
        ("2026-11-22T11:59:00+00:00", 60),
    ],
)
def test_since_is_an_age_or_a_date(text: str, seconds_ago: float) -> None:
    assert instant(text, NOW_S, "--since") == NOW_S - seconds_ago


@pytest.mark.parametrize("text", ["", "h", "yesterday", "-1h", "1y", "9" * 400 + "w", "2026-13-01"])
def test_any_other_since_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(FumehoodError) as refused:
        instant(text, NOW_S, "--since")
    assert refused.value.reason is Reason.BAD_REQUEST
    assert "--since" in refused.value.detail


def test_pages_are_joined_until_the_limit_or_the_end() -> None:
    names = [f"{number:026d}" for number in range(9, 0, -1)]
    asked: list[Mapping[str, Any]] = []

    def ask(verb: str, args: Mapping[str, Any]) -> Any:
        assert verb == "tasks"
        asked.append(args)
        rest = [name for name in names if args["before_task"] is None or name < args["before_task"]]
        return {"tasks": [{"task": name} for name in rest[: min(4, args["limit"])]], "more": len(rest) > 4}

    assert [row["task"] for row in fetch_tasks(ask, {"result": "ok"}, 100)] == names
    assert [row["task"] for row in fetch_tasks(ask, {"result": "ok"}, 6)] == names[:6]
    assert all(args["result"] == "ok" for args in asked)


def test_the_events_of_one_task_are_joined() -> None:
    def ask(verb: str, args: Mapping[str, Any]) -> Any:
        assert verb == "task"
        if "after_seq" not in args:
            return {"record": {"task": "t" * 26}, "events": [], "more": True}
        assert args["task"] == "t" * 26
        seq = args["after_seq"]
        return {"record": None, "events": [{"seq": seq + 1}], "more": seq < 2}

    assert fetch_task(ask, "tttttt") == {"task": "t" * 26, "events": [{"seq": 1}, {"seq": 2}, {"seq": 3}]}
