"""`fumehood pins`: which definitions of which servers' tools may be called, what has changed in them, and the operator's word on it.

Attack: a definition is a stranger's text. So what shows definitions cannot decide, and what decides (`accept`, `reject`, `forget`)
reads none: it names pins to a ledger that was started for this one command, and each decision holds for exactly the pin that was
named, also when the server shows another definition in the same moment. All of it runs without the operator's rights, and nothing
of a definition reaches a terminal but as `disguises` reveals it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.model import PinState
from fumehood.reasons import Reason

Row = dict[str, Any]
PIN_CHARS = 12
_KEY = ("server", "profile", "tool", "capabilities")

Tool = Annotated[str | None, typer.Argument(metavar="[TOOL]", help="A tool's name, or SERVER__TOOL as clients see it.")]
Server = Annotated[str | None, typer.Option(help="Only tools of the server of this name.")]
Profile = Annotated[str | None, typer.Option(help="Only under this profile, where servers of several have one name.")]
Pin = Annotated[str | None, typer.Option(help="Only this very definition: a pin, or its beginning, as `diff` prints it.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Review the definitions of servers' tools.")
    group.command("list")(list_pins)
    group.command("diff")(diff)
    group.command("accept")(accept)
    group.command("reject")(reject)
    group.command("forget")(forget)
    app.add_typer(group, name="pins")


def list_pins(
    server: Server = None,
    *,
    blocked: Annotated[bool, typer.Option("--blocked", help="Only those that may not be called.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the tools that servers have shown, whether they may be called, and what a reviewer should know of them."""
    from fumehood.cli import pins_view
    from fumehood.cli.tasks import asking_ledger

    with asking_ledger() as ask:
        known = _all(ask)
        texts = {(row["server"], row["seen"]): ask("pin_text", {"server": row["server"], "pin": row["seen"]}) for row in known}
    flags = pins_view.flags(known, texts)
    rows = [
        {**row, "flags": flags[row["server"], row["tool"], row["seen"]]}
        for row in known
        if server in {None, row["server"]} and not (blocked and row["state"] == PinState.ACCEPTED)
    ]
    if as_json:
        _write_json(rows)
    else:
        from fumehood.cli import records_view

        records_view.draw(pins_view.pins_table(rows))


def diff(tool: Tool = None, *, server: Server = None, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show what is not accepted beside what was, field by field, with everything hidden made visible. Exit 1 if there is something."""
    from fumehood.cli import pins_view
    from fumehood.cli.tasks import asking_ledger

    with asking_ledger() as ask:
        known = _all(ask)
        wanted = _chosen(known, tool, server, profile)
        if tool is None:
            wanted = [row for row in wanted if row["state"] not in {PinState.ACCEPTED, PinState.REJECTED}]
        reviews = []
        for row in _distinct(wanted):
            base = _accepted(row) or next((_accepted(one) for one in known if _same_tool(one, row) and _accepted(one)), None)
            texts = [None if pin is None else ask("pin_text", {"server": row["server"], "pin": pin}) for pin in (base, row["seen"])]
            reviews.append(pins_view.review(row, *texts))
    flags = pins_view.flags(known, {(each["server"], each["pin"]): each["text"] for each in reviews})
    for each in reviews:
        each["flags"] = flags.get((each["server"], each["tool"], each["pin"]), [])
    if as_json:
        _write_json([{name: value for name, value in each.items() if name != "text"} for each in reviews])
    elif not reviews:
        typer.echo("nothing waits for a review")
    else:
        from fumehood.cli import records_view

        records_view.draw(*(pins_view.drawn(each) for each in reviews))
    raise typer.Exit(1 if any(each["state"] != PinState.ACCEPTED for each in reviews) else 0)


def accept(
    tool: Tool = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every tool that is not rejected.")] = False,
    server: Server = None,
    profile: Profile = None,
    pin: Pin = None,
    as_json: AsJson = False,
) -> None:
    """Allow tools to be called as they are defined now. A running gateway goes by it at its next call."""
    _decide("pin_accept", _asked(tool, server, profile, pin, everything=everything), as_json=as_json)


def reject(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="A tool's name, or SERVER__TOOL as clients see it.")],
    *,
    server: Server = None,
    profile: Profile = None,
    pin: Pin = None,
    as_json: AsJson = False,
) -> None:
    """Block a tool as it is defined now, until it is accepted or is what was accepted before."""
    _decide("pin_reject", _asked(tool, server, profile, pin), as_json=as_json)


def forget(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="The server's name, as `list` shows it.")],
    *,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Forget a server's pins: the next time its tools are seen is the first."""
    with _deciding() as ask:
        places = sorted({(row["server"], row["profile"]) for row in _chosen(_all(ask), None, server, profile)})
        count = sum(ask("pins_forget", {"server": name, "profile": under})["forgotten"] for name, under in places)
    if not places:
        raise FumehoodError(Reason.PIN_UNKNOWN, f"no server is named {server}")
    if as_json:
        _write_json({"server": server, "forgotten": count})
    else:
        typer.echo(f"forgot {count} pins")


def _asked(
    tool: str | None, server: str | None, profile: str | None, pin: str | None, *, everything: bool = False
) -> tuple[str | None, str | None, str | None, str | None]:
    if everything != (tool is None):
        raise FumehoodError(Reason.BAD_REQUEST, "name one tool, or --all")
    return tool, server, profile, pin


def _decide(verb: str, asked: tuple[str | None, str | None, str | None, str | None], *, as_json: bool) -> None:
    from fumehood.cli.records_view import shown

    tool, server, profile, pin = asked
    with _deciding() as ask:
        rows = _distinct(_chosen(_all(ask), tool, server, profile))
        if tool is None:
            rows = [row for row in rows if row["state"] != PinState.REJECTED]
        elif len(places := sorted({(row["server"], row["profile"]) for row in rows})) > 1:
            told = ", ".join(shown(f"{name} ({under})") for name, under in places)
            raise FumehoodError(Reason.BAD_REQUEST, f"several servers have it: {told}", remedy="Add --server, or --profile.")
        if pin is not None:
            rows = [row for row in rows if row["seen"].removeprefix("sha256:").startswith(pin.removeprefix("sha256:"))]
            if not rows:
                detail = f"the definition now is not {shown(pin)}"
                raise FumehoodError(Reason.PIN_UNKNOWN, detail, remedy="Look at it again: `fumehood pins diff`.")
        for row in rows:
            ask(verb, {"server": row["server"], "profile": row["profile"], "tool": row["tool"], "pin": row["seen"]})
    done = "accepted" if verb == "pin_accept" else "rejected"
    if as_json:
        decided = [{name: row[name] for name in ("server", "profile", "tool")} | {"pin": row["seen"], "state": done} for row in rows]
        _write_json(decided)
        return
    for row in rows:
        typer.echo(f"{done} {shown(row['tool'])} of {shown(row['server'])}: {short(row['seen'])}")
    if not rows:
        typer.echo(f"nothing to be {done}")


def short(pin: str) -> str:
    """A pin as people pass it on."""
    return pin.removeprefix("sha256:")[:PIN_CHARS]


@contextmanager
def _deciding() -> Iterator[Any]:
    """Ask a ledger that takes decisions, started with the operator's rights for the length of the body."""
    from fumehood import launch
    from fumehood.cli.tasks import ledger_asker

    with launch.serving(replace(launch.settings(), decides=True), broker=False) as processes:
        yield ledger_asker(processes)


def _all(ask: Any) -> list[Row]:
    """Every row there is, its state by the mode that is configured for its server."""
    rows: list[Row] = []
    after = None
    while True:
        page = ask("pins", {"after": after})
        for row in page["pins"]:
            reviewed_only = page["review"] != (row["server"] in page["otherwise"])
            unreviewed = reviewed_only and row["state"] == PinState.ACCEPTED and not row["reviewed"]
            rows.append({**row, "state": PinState.NEW.value if unreviewed else row["state"]})
        if not page["more"]:
            return rows
        after = {name: rows[-1][name] for name in _KEY}


def _chosen(rows: Iterable[Row], tool: str | None, server: str | None, profile: str | None) -> list[Row]:
    """The rows that were named. Raises FumehoodError where a name is of nothing."""
    found = [row for row in rows if server in {None, row["server"]} and profile in {None, row["profile"]}]
    if tool is not None:
        exact = [row for row in found if row["tool"] == tool]
        found = exact or [row for row in found if f"{row['server']}__{row['tool']}" == tool]
    if not found and (tool or server or profile) is not None:
        from fumehood.cli.records_view import shown

        raise FumehoodError(Reason.PIN_UNKNOWN, f"no tool is pinned as {shown(tool or server or profile)}")
    return found


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """One row for each definition: several kinds of clients may see the same."""
    return list({(row["server"], row["profile"], row["tool"], row["seen"]): row for row in rows}.values())


def _accepted(row: Mapping[str, Any]) -> str | None:
    """What a definition is compared with: what was accepted of it, as far as that counts.

    Where it was never accepted, that is what was accepted of the same tool as other clients see it.
    """
    return None if row["state"] == PinState.NEW else row["accepted"]


def _same_tool(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("server", "profile", "tool"))


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
