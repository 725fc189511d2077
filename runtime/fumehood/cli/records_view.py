"""Records as people read them: a table of calls, one call's facts, and a timeline of its stages.

Attack: names and details in a record were chosen by tools and servers. What is not printable (ANSI sequences, bidi
overrides) is shown as an escape, and nothing of a record is ever read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fumehood.evidence import stage
from fumehood.lifecycle import State

Record = Mapping[str, Any]
BAR_COLUMNS = 48
FILES_SHOWN = 20
_COLOURS = {
    "ok": "green", "failed": "red", "killed": "yellow", "refused": "magenta", "lost": "red", "repeated": "blue", "open": "cyan",
}  # fmt: skip


def draw(*drawn: Table | Text) -> None:
    """Print on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width, and 80 columns would cut the task ids that people pass on
    for one in drawn:
        console.print(one)


def tasks_table(records: Iterable[Record]) -> Table:
    """The list for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "when", "tool"):
        table.add_column(name, no_wrap=name != "tool")
    for name in ("profile", "engine", "result"):
        table.add_column(name)
    for name in ("ms", "cpu ms", "peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        usage = record["usage"]
        table.add_row(
            record["task"],
            when(record["opened_at"]),
            _plain(record["tool"] or record["command"]),
            _plain(record["profile"]),
            _plain(record["engine"]),
            _ending(record),
            number((record["timings_ms"] or {}).get("total")),
            number(cpu_ms(usage)),
            size(usage["memory_peak_bytes"]),
        )
    return table


def sessions_table(sessions: Iterable[Record]) -> Table:
    """Sessions for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("session", "since", "profile", "sender", "engine", "state"):
        table.add_column(name, no_wrap=name in {"session", "since"})
    table.add_column("calls", justify="right")
    for record in sessions:
        state = "open" if record["state"] != State.CLOSED else _ending(record)
        cells = (when(record["opened_at"]), _plain(record["profile"]), _plain(record["sender"]), _plain(record["engine"]))
        table.add_row(record["task"], *cells, state, str(record["calls"]))
    return table


def facts_table(record: Record) -> Table:
    """One record's facts for people: what is not known is left out."""
    usage, files = record["usage"], record["files"] or []
    rows: list[tuple[str, Any]] = [
        ("task", record["task"]),
        ("result", _ending(record)),
        ("detail", record["detail"]),
        ("rule", record["rule"]),
        ("repeats", record["repeats"]),
        ("key", record["idempotency_key"]),
        ("tool", record["tool"]),
        ("pin", record["pin"]),
        ("session", record["session"]),
        ("command", record["command"]),
        ("exit", record["exit_code"]),
        ("signal", record["signal"]),
        ("opened", when(record["opened_at"])),
        ("closed", record["closed_at"] and when(record["closed_at"])),
        ("sender", f"{record['sender']} (uid {record['sender_uid']}, tenant {record['tenant']})"),
        ("front door", record["front_door"]),
        ("profile", f"{record['profile']}  {record['profile_digest']}"),
        ("image", f"{record['image']}  {record['image_digest'] or ''}".rstrip()),
        ("init", record["init_digest"]),
        ("engine", record["engine"]),
        ("container", record["container"]),
        ("runtime", record["runtime_id"]),
        ("cpu", _known(user=number(_ms(usage["cpu_user_s"]), "ms"), system=number(_ms(usage["cpu_system_s"]), "ms"))),
        ("peak", _known(memory=size(usage["memory_peak_bytes"]), processes=number(usage["pids_peak"]))),
        ("limits hit", _known(oom_kills=number(usage["oom_kills"]), pids=number(usage["pids_limit_hits"]))),
        ("throttled", _known(cpu=number(_ms(usage["cpu_throttled_s"]), "ms"))),
        ("io", _known(read=size(usage["io_read_bytes"]), written=size(usage["io_write_bytes"]))),
        ("output", _known(stdout=_stream(record, "stdout"), stderr=_stream(record, "stderr"))),
        ("changes", "wait for `fumehood commit` or `fumehood discard`" if record["pending"] else None),
    ]
    rows += _teardown(record)
    rows += [("file", f"{file['kind']} {size(file['size_bytes'])}  {file['path']}") for file in files[:FILES_SHOWN]]
    if (unshown := (record["files_total"] or 0) - len(files[:FILES_SHOWN])) > 0:
        rows.append(("", f"and {unshown} more"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None and value != "":
            table.add_row(name, _plain(value) if isinstance(value, str | int) else value)
    return table


def _teardown(record: Record) -> list[tuple[str, str]]:
    """What became of the box, by what was looked at when it had been taken away; of a lost call, by whom it was swept."""
    rows: list[tuple[str, str]] = []
    for event in record["events"]:
        facts = event["facts"]
        if isinstance(taken := facts.get("taken"), dict):
            gone = [f"{name} {number(each['ms'])}" for name, each in taken.items() if each["gone"]]
            left = [name for name, each in taken.items() if not each["gone"]]
            if gone:
                rows.append(("removed", f"{when(event['at'])}, each looked for afterwards (ms): {', '.join(gone)}"))
            if left:
                rows.append(("not removed", f"{', '.join(left)}: it is tried again every minute, and by the next start"))
        if by := facts.get("swept_by"):
            named = {"cgroup_removed": "cgroup", "container_removed": "container"}
            swept = [what for name, what in named.items() if facts.get(name)]
            rows.append(("swept", f"{when(event['at'])} by runtime {by}: {', '.join(swept) or 'nothing was left'}"))
    return rows


def stages(record: Record) -> list[tuple[str, float, float]]:
    """Where a call's time went: (stage, start, end) in milliseconds since it was opened, in order."""
    opened = (record["timings_ms"] or {}).get("open")
    spans: list[tuple[str, float, float]] = [] if opened is None else [("open", 0.0, opened)]
    before = State.OPEN
    for event in record["events"]:
        after = State(event["state"])
        name, end = stage(before, after), event["facts"].get("ms")
        before = after
        if name is None or not isinstance(end, int | float):
            continue
        start = spans[-1][2] if spans else 0.0
        if spans and spans[-1][0] == name:
            start = spans.pop()[1]
        spans.append((name, start, float(end)))
    return spans


def timeline(record: Record) -> Text:
    """The stages as bars under one another."""
    spans = stages(record)
    total = max([(record["timings_ms"] or {}).get("total") or 0.0, *(end for _, _, end in spans)])
    drawn = Text("\n")
    for name, start, end in spans:
        before, length = bar(start, end, total)
        drawn.append(f"{name:<8} ").append(" " * before).append("█" * length, style="cyan")
        drawn.append(f"{' ' * (BAR_COLUMNS - before - length)} {number(end - start):>9} ms\n")
    if total:
        drawn.append(f"{'total':<8} {' ' * BAR_COLUMNS} {number(total):>9} ms\n", style="bold")
    return drawn


def bar(start: float, end: float, total: float) -> tuple[int, int]:
    """Blanks before a bar, and its length: at least one, so that no stage is invisible."""
    if total <= 0:
        return 0, 1
    before = min(int(start / total * BAR_COLUMNS), BAR_COLUMNS - 1)
    return before, max(1, min(round(end / total * BAR_COLUMNS), BAR_COLUMNS) - before)


def shown(value: object) -> str:
    """A text that cannot drive a terminal: what is not printable (ANSI, bidi) is written as an escape."""
    text = str(value)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def when(at_s: float) -> str:
    """A local date and time."""
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def number(value: float | None, unit: str = "") -> str:
    """A number with one decimal if it needs one; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:,.1f}".removesuffix(".0") + (f" {unit}" if unit else "")


def size(value: float | None) -> str:
    """Bytes in binary units; a dash for what is not known."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return number(value, unit)
        value /= 1024
    return number(value, "GiB")


def cpu_ms(usage: Mapping[str, Any]) -> float | None:
    """User and system time together; None when the kernel says neither."""
    known = [value for value in (usage["cpu_user_s"], usage["cpu_system_s"]) if value is not None]
    return sum(known) * 1000 if known else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _known(**parts: str) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in parts.items() if value != "-")


def _stream(record: Record, name: str) -> str:
    total = size(record[f"{name}_bytes"])
    return f"{total} (truncated)" if record[f"{name}_truncated"] else total


def _plain(value: object) -> Text:

    return Text("-" if value is None else shown(value))


def _ending(record: Record) -> Text:

    result = record["result"] or State.OPEN.value
    text = Text(result, style=_COLOURS[result])
    more = record["reason"] if record["result"] else record["state"]
    return text if more in {None, result} else text.append(f" {more}", style="default")
