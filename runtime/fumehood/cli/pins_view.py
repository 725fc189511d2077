"""Pins as people read them: the list, and what is another in a definition, field by field.

Attack: whoever writes a definition writes it for two readers, the model and the reviewer, and would have them read different things.
So every character that a terminal does not show as itself is written as an escape, and a difference in such a character alone is a
difference that is seen.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fumehood.cli.pins import short
from fumehood.cli.records_view import shown, when
from fumehood.disguises import hidden, look_alikes, revealed
from fumehood.model import PinState

Row = Mapping[str, Any]
_COLOURS = {"accepted": "green", "new": "cyan", "changed": "red", "rejected": "magenta"}
_LINES = {"-": "red", "+": "green", "!": "yellow", "#": "bold"}
_WHAT = {"image": "the image is another", "argv": "the command is another", "url": "the URL is another"}
_WAITING = {
    "new": "nobody has accepted it", "changed": "it has changed since it was accepted", "rejected": "it was rejected",
    "accepted": "it is accepted",
}  # fmt: skip


def flags(rows: Iterable[Row], texts: Mapping[tuple[str, str], str | None]) -> dict[tuple[str, str, str], list[str]]:
    """By server, tool and pin, what a reviewer should know: hidden characters, and names that other tools could be taken for."""
    names = {(row["server"], row["tool"]): row["tool"] for row in rows}
    alike = look_alikes({f"{server}\0{tool}": name for (server, tool), name in names.items()})
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        server, tool, pin = row["server"], row["tool"], row["seen"]
        text = texts.get((server, pin))
        told = [] if text is None else [f"hidden character in {place}" for place in hidden(json.loads(text)["tool"])]
        others = alike.get(f"{server}\0{tool}", [])
        told += [f"looks like {revealed(name)} of {revealed(of)}" for of, _, name in (other.partition("\0") for other in others)]
        if not tool.isascii():
            told.append("its name has letters beyond ASCII: " + ascii(tool)[1:-1])
        found[server, tool, pin] = told
    return found


def pins_table(rows: Iterable[Row]) -> Table:
    """The list for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("server", "tool", "state", "by", "pin", "seen", "clients", "look at"):
        table.add_column(name, no_wrap=name in {"state", "pin", "seen"}, overflow="fold")
    for row in rows:
        by = "-" if row["accepted"] is None else "operator" if row["reviewed"] else "first sight"
        table.add_row(
            Text(shown(row["server"])), Text(shown(row["tool"])), Text(row["state"], style=_COLOURS[row["state"]]), by,
            short(row["seen"]), when(row["seen_at"]), Text(clients(row)), Text("; ".join(map(shown, row["flags"])), style="yellow"),
        )  # fmt: skip
    return table


def clients(row: Row) -> str:
    """Which clients see it so: their era, and what they declare."""
    try:
        modern, declared = json.loads(row["declared"])
        return f"{'2026' if modern else 'older'}: {shown(', '.join(sorted(declared)) or 'nothing declared')}"
    except (ValueError, TypeError):
        return shown(row["declared"])  # cut, because it was long


def review(row: Row, accepted: str | None, seen: str | None) -> dict[str, Any]:
    """One definition to be looked at: which fields are others than accepted, and the lines that differ."""
    before = {} if accepted is None else _fields(json.loads(accepted))
    after = {} if seen is None else _fields(json.loads(seen))
    fields = [
        {"field": name, "what": _WHAT.get(name, ""), "lines": list(_differing(before.get(name), after.get(name)))}
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    told = {name: row[name] for name in ("server", "profile", "tool", "state", "declared", "accepted")}
    return {**told, "pin": row["seen"], "fields": fields, "text": seen}


def drawn(each: Row) -> Text:
    """A review for people, and how to decide."""
    server, tool = shown(each["server"]), shown(each["tool"])
    lines = [f"# {tool} of {server}: {_WAITING[each['state']]} ({clients(each)})"]
    lines += [f"! {shown(flag)}" for flag in each["flags"]]
    for field in each["fields"]:
        lines.append(f"# {shown(field['field'])}" + (f": {field['what']}" if field["what"] and each["accepted"] else ""))
        lines += field["lines"]
    if each["state"] != PinState.ACCEPTED:
        lines.append(f"# accept exactly this: fumehood pins accept --server {_quoted(each['server'])} {_quoted(each['tool'])}"
                     f" --pin {short(each['pin'])}")  # fmt: skip
    made = Text()
    for line in lines:
        made.append(f"{line}\n", style=_LINES.get(line[:1], ""))
    return made


def _fields(whole: Row) -> dict[str, Any]:
    """What a pin covers, flat: what answers for the tool, then the tool's members by name."""
    around = {name: whole[name] for name in ("image", "argv", "url") if whole[name] is not None}
    return {**around, **{f"tool.{revealed(name)}": member for name, member in whole["tool"].items()}}


def _differing(before: Any, after: Any) -> Iterator[str]:
    old, new = (_lines(value) for value in (before, after))
    found = difflib.unified_diff(old, new, lineterm="", n=2)
    # Without the two lines that name files; a line of a definition itself never begins with `@`.
    return (line for line in itertools.islice(found, 2, None) if not line.startswith("@@"))


def _lines(value: Any) -> list[str]:
    """A field as lines that can be shown: of a text its own, of anything else those of its JSON."""
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    return [revealed(line) for line in text.split("\n")]


def _quoted(text: str) -> str:
    import shlex

    return shown(shlex.quote(text))
