"""`fumehood tasks` and `fumehood task ID`: what ran, under what, and what it cost; `fumehood tasks prune`.

The ledger process reads its database; this one asks, and `records_view` draws.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.launch import Processes

Record = Mapping[str, Any]
Ask = Callable[[str, Mapping[str, Any]], Any]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Ending(StrEnum):
    """What `--result` takes: a result, or `open` for what is not closed."""

    OK = "ok"
    FAILED = "failed"
    KILLED = "killed"
    REFUSED = "refused"
    LOST = "lost"
    REPEATED = "repeated"
    OPEN = "open"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    group.callback()(tasks)
    group.command("prune")(prune)
    app.add_typer(group, name="tasks")
    app.command("task")(task)


def tasks(
    ctx: typer.Context,
    tool: Annotated[str | None, typer.Option(help="Only calls of this tool, or of this ad-hoc command.")] = None,
    result: Annotated[Ending | None, typer.Option(help="Only calls that ended so.")] = None,
    profile: Annotated[str | None, typer.Option(help="Only calls under this profile.")] = None,
    session: Annotated[str | None, typer.Option(help="Only calls in the box of this session.")] = None,
    front_door: Annotated[
        str | None, typer.Option(help="Only those that came by it: run, gateway, delegate, session, pool, catalogue.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Not older than: 90s, 30m, 1h, 7d, or an ISO date and time.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Older than, written like --since.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="An array, for machines.")] = False,
) -> None:
    """List calls, newest first."""
    if ctx.invoked_subcommand is not None:
        return
    now_s = time.time()
    wanted = {
        "tool": tool,
        "result": result and result.value,
        "profile": profile,
        "session": session and session.lower(),
        "front_door": front_door,
        "since": since and instant(since, now_s, "--since"),
        "until": until and instant(until, now_s, "--until"),
    }
    tell_if_stopped()
    with asking_ledger() as ask:
        records = fetch_tasks(ask, wanted, limit)
    if as_json:
        _write_json(records)
    else:
        from fumehood.cli import records_view

        records_view.draw(records_view.tasks_table(records))


def prune(
    older_than: Annotated[
        str | None, typer.Option(help="Only what is older than: 30m, 12h, 7d. Default: what is kept for too long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """Remove kept results, so that they can no longer be fetched; with an age also closed leases and egress logs. Records stay."""
    age_s = None
    if older_than is not None:
        now_s = time.time()
        age_s = max(0.0, now_s - instant(older_than, now_s, "--older-than"))
    with asking_ledger() as ask:
        removed = ask("prune", {"older_than_s": age_s})
    if as_json:
        _write_json(removed)
    else:
        told = f"removed {removed['removed']} kept results, {removed['bytes']} bytes"
        more = f"; {removed['leases']} closed leases, the egress logs of {removed['egress']} tasks" if older_than else ""
        sys.stdout.write(f"{told}{more}\n")


def task(
    name: Annotated[str, typer.Argument(metavar="ID", help="A task id, or its beginning if no other begins so.")],
    *,
    egress: Annotated[bool, typer.Option("--egress", help="What it asked for of the network, and what became of that.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """Show one call: what it was, what it used, which credentials it had, and where the time went."""
    from fumehood.cli import leases_view, records_view

    with asking_ledger() as ask:
        record = fetch_task(ask, name.lower())
        shown = fetch_egress(ask, record["task"]) if egress else {**record, "leases": fetch_leases(ask, {"task": record["task"]})}
    if as_json:
        _write_json(shown)
    elif egress:
        records_view.draw(leases_view.egress_table(shown), leases_view.egress_totals(shown))
    else:
        drawn = [records_view.facts_table(record)]
        if shown["leases"]:
            drawn.append(leases_view.leases_of_task(shown["leases"]))
        records_view.draw(*drawn, records_view.timeline(record))


def fetch_tasks(ask: Ask, wanted: Mapping[str, Any], limit: int) -> list[Record]:
    """Up to `limit` records, page by page."""
    records: list[Record] = []
    before: str | None = None
    while len(records) < limit:
        page = ask("tasks", {**wanted, "limit": limit - len(records), "before_task": before})
        records += page["tasks"]
        if not page["more"]:
            break
        before = records[-1]["task"]
    return records


def fetch_task(ask: Ask, name: str) -> Record:
    """One record with all its `events`."""
    page = ask("task", {"task": name})
    record, events = page["record"], list(page["events"])
    while page["more"]:
        page = ask("task", {"task": record["task"], "after_seq": events[-1]["seq"] if events else 0})
        events += page["events"]
    return {**record, "events": events}


def fetch_leases(ask: Ask, wanted: Mapping[str, Any]) -> list[Record]:
    """All leases of a task, or all that are `open` or `closed`, oldest first."""
    leases: list[Record] = []
    while True:
        page = ask("leases", {**wanted, "after": leases[-1]["lease"] if leases else None})
        leases += page["leases"]
        if not page["more"]:
            return leases


def fetch_egress(ask: Ask, task: str) -> Record:
    """A task's whole egress log: `task`, `entries`, `counters`, and how many entries were `dropped`."""
    page = ask("egress_of", {"task": task})
    entries = list(page["entries"])
    while page["more"]:
        page = ask("egress_of", {"task": task, "after_seq": entries[-1]["seq"]})
        entries += page["entries"]
    return {"task": task, "entries": entries, "counters": page["counters"], "dropped": page["dropped"]}


def instant(text: str, now_s: float, option: str) -> float:
    """Seconds since the epoch of `1h` (ago) or an ISO date and time (local without a zone). Raises FumehoodError."""
    amount, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS_S and amount.replace(".", "", 1).isdecimal():
            return now_s - timedelta(seconds=float(amount) * _UNITS_S[unit]).total_seconds()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        detail = f"{option}: {text!r} is neither like 90s, 30m, 1h, 7d nor an ISO date and time"
        raise FumehoodError(Reason.BAD_REQUEST, detail) from error


def tell_if_stopped() -> None:
    """Say on stderr that an operator has stopped everything, if so. With the caller's own rights, so before the ledger is asked."""
    from fumehood import launch, stopping

    if (stop := stopping.read(launch.settings().state)) is not None:
        sys.stderr.write(f"fumehood: {stop.line()}. Nothing begins until `fumehood start`.\n")


@contextmanager
def asking_ledger() -> Iterator[Ask]:
    """Ask a ledger process started for the length of the body. What is asked raises FumehoodError."""
    from fumehood import launch

    with launch.serving(launch.settings(), broker=False) as processes:
        yield ledger_asker(processes)


def ledger_asker(processes: Processes[Any]) -> Ask:
    """Ask the ledger of a running runtime."""
    from fumehood import wire

    def ask(verb: str, args: Mapping[str, Any]) -> Any:
        try:
            return wire.request(processes.ledger, verb, args)[0]
        except wire.WireError as error:
            raise FumehoodError(Reason.STATE_UNAVAILABLE, f"the ledger: {error}") from error

    return ask


def _write_json(value: Record | Sequence[Record]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
