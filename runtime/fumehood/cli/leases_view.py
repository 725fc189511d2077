"""Leases and egress logs as people read them.

Attack: names in a log were chosen by what ran in the box. As in `records_view`, what is not printable is shown as an escape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fumehood.cli.records_view import number, shown, when

Row = Mapping[str, Any]
_COLOURS = {"refused": "magenta", "alarm": "red", "close": "default"}


def leases_table(leases: Iterable[Row]) -> Table:
    """The list for people."""
    table = _table("lease", "task", "when", "credential", "state", "until", "tries", "proof or problem")
    for each in leases:
        table.add_row(
            each["lease"], each["task"], when(each["opened_at"]), _plain(f"{each['credential']} ({each['provider']})"),
            _state(each), _until(each), str(each["tries"]), _plain(_ending(each)),
        )  # fmt: skip
    return table


def leases_of_task(leases: Iterable[Row]) -> Table:
    """A task's leases, below its facts."""
    table = _table("credential", "lease", "issued", "state", "until", "proof or problem")
    for each in leases:
        issued = when(each["issued_at"]) if each["issued_at"] is not None else "-"
        table.add_row(_plain(each["credential"]), each["lease"], issued, _state(each), _until(each), _plain(_ending(each)))
    return table


def egress_table(log: Row) -> Table:
    """A task's egress log, a line an entry."""
    table = _table("time", "kind", "what")
    began = log["entries"][0]["at"] if log["entries"] else 0.0
    for entry in log["entries"]:
        facts = ", ".join(f"{name} {_value(value)}" for name, value in entry["facts"].items())
        kind = Text(shown(entry["kind"]), style=_COLOURS.get(entry["kind"], "cyan"))
        table.add_row(f"+{number((entry['at'] - began) * 1000)} ms", kind, _plain(facts))
    return table


def egress_totals(log: Row) -> Text:
    """The gate's counters, and how much is only in them."""
    counters = ", ".join(f"{name.replace('_', ' ')} {number(count)}" for name, count in sorted(log["counters"].items()))
    lines = [counters] if counters else ["no gate" if not log["entries"] else ""]
    if log["dropped"]:
        lines.append(f"{log['dropped']} more entries were counted and not kept: the log is full")
    return _plain("\n".join(filter(None, lines)))


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=name in {"lease", "task", "when", "time", "issued"})
    return table


def _state(lease: Row) -> Text:
    if lease["state"] == "closed":
        gone = lease["proof"]["gone"]
        return Text("revoked" if gone else "not revocable", style="green" if gone else "yellow")
    return Text("open", style="red" if lease["error"] else "cyan")


def _until(lease: Row) -> str:
    return "-" if lease["until"] is None else when(lease["until"])


def _ending(lease: Row) -> str:
    if (proof := lease["proof"]) is not None:
        return f"{proof['asked']}: {proof['answer']}, {when(proof['at'])}"
    return lease["error"] or ""


def _value(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _plain(text: str) -> Text:
    return Text("\n".join(shown(line) for line in text.split("\n")))
