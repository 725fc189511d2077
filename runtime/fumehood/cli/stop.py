"""`fumehood stop --all` and `fumehood start`: nothing runs and nothing begins, until somebody says so (rule 25).

In order: the file is written that every ledger and broker of the state folder reads before anything begins; every running broker is
told, kills its boxes and sees to it that its worker ends its calls; what leases are left open then are revoked by a process of ours,
as `fumehood leases revoke` does it. All of that within `LIMIT_S`; what was not done in that time is said, and the exit status is 1.

Whoever may write to the state folder may do both: its owner.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.asking import Asker
    from fumehood.launch import Processes
    from fumehood.state import StateFolder
    from fumehood.stopping import Stop

LIMIT_S = 5.0
# Of these, what the runtimes have to end their calls; the rest is for leases that are left.
RUNTIMES_S = 3.5
_LEAST_S = 0.5
Row = Mapping[str, Any]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("stop")(stop)
    app.command("start")(start)


def stop(
    *,
    everything: Annotated[bool, typer.Option("--all", help="End every call of every runtime on this state folder.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for whoever is refused meanwhile.")] = "",
    log: Annotated[bool, typer.Option("--log", help="Only list who stopped and started, and when; newest first.")] = False,
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """End every call now, and refuse new ones until `fumehood start`. The exit status is 1 when something is left."""
    if log:
        _list_operations(as_json=as_json)
        return
    if not everything:
        raise FumehoodError(
            Reason.BAD_REQUEST, "say --all: it ends every call of every runtime",
            remedy="`fumehood sessions end` ends one session, `fumehood leases revoke` one credential.",
        )  # fmt: skip
    from fumehood import knocking, launch, stopping

    began_s = time.monotonic()
    chosen = launch.settings(config)
    launch.prepare(chosen)
    why = reason.encode("utf-8", "replace").decode()[: stopping.WHY_CHARS]  # a terminal may send what is no text
    word = stopping.Stop(who=chosen.caller_name, uid=chosen.caller_uid, at_s=time.time(), why=why)
    try:
        stopping.write(chosen.state, word)
    except OSError as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{chosen.state.stopped}: {error.strerror}") from error
    said = knocking.ask_all(_living(chosen.state), "stop", RUNTIMES_S)
    # One that was just ending need not have answered.
    answers = {name: told for name, told in said.items() if told is not None or _is_held(chosen.state.run / name / "lock")}
    left_s = max(_LEAST_S, LIMIT_S - (time.monotonic() - began_s))
    summary = _summed(answers)
    try:
        # Not `serving`: the providers' secrets are read, with the caller's own rights, before these are given up.
        with launch.started(chosen, lambda: None, broker=False) as processes:
            import anyio

            summary |= anyio.run(_revoke_and_note, processes, left_s, word, summary)
    except FumehoodError as error:
        summary["problem"] = f"leases, and the note of this stop: {error}"
    summary |= {"stopped": word.line(), "seconds": round(time.monotonic() - began_s, 2)}
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    else:
        _draw(summary)
    raise typer.Exit(1 if summary["unanswered"] or summary["leases_left"] or summary["problem"] else 0)


def start(
    *,
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """Let calls begin again after `fumehood stop --all`."""
    from fumehood import launch, stopping
    from fumehood.cli.tasks import ledger_asker

    chosen = launch.settings(config)
    launch.prepare(chosen)
    was = stopping.read(chosen.state)
    try:
        stopping.remove(chosen.state)
    except OSError as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{chosen.state.stopped}: {error.strerror}") from error
    if was is not None:
        # Afterwards, because nothing of the caller's rights is left then. A ledger that cannot note this opens no record either.
        with launch.serving(chosen, broker=False) as processes:
            ledger_asker(processes)("operated", _operation("start", chosen.caller_name, chosen.caller_uid, "", {}))
    if as_json:
        sys.stdout.write(json.dumps({"was_stopped": was is not None, "by": None if was is None else was.line()}) + "\n")
    else:
        typer.echo("nothing was stopped" if was is None else f"calls may begin again; {was.line()}")


def _living(state: StateFolder) -> list[Path]:
    """The folders of runtimes that hold their lock."""
    return [folder for folder in sorted(state.run.iterdir()) if _is_held(folder / "lock")]


def _is_held(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _summed(answers: Mapping[str, Any]) -> dict[str, Any]:
    """What all runtimes answered, in one."""
    answered = [answer for answer in answers.values() if answer is not None]
    return {
        "runtimes": len(answers),
        "unanswered": [name for name, answer in answers.items() if answer is None or answer["removing"]],
        "boxes_killed": sum(answer["boxes"] for answer in answered),
        "calls_ended": sum(answer["calls"] for answer in answered),
        "calls_lost": sum(answer["lost"] for answer in answered),
        "workers_killed": sum(answer["worker_killed"] for answer in answered),
        "leases_revoked": 0,
        "leases_left": [],
        "problem": None,
    }


async def _revoke_and_note(processes: Processes[Any], seconds: float, stop: Stop, summary: Row) -> dict[str, Any]:
    """Revoke what leases are open, for so long at most, and have the ledger write down what was done; which leases are left.

    A ledger that does not answer is a `problem`, not an end: what was ended is ended, and must be said.
    """
    from fumehood.asking import asking
    from fumehood.wire import WireError

    done: dict[str, Any] = {}
    async with asking(processes.ledger) as asker:
        try:
            done |= await _revoke(asker, processes, seconds)
            facts = {name: len(value) if isinstance(value, list) else value for name, value in {**summary, **done}.items()}
            await asker.ask("operated", _operation("stop", stop.who, stop.uid, stop.why, facts))
        except* (FumehoodError, WireError) as error:
            done["problem"] = f"leases, and the note of this stop: {error.exceptions[0]}"
    return done


async def _revoke(asker: Asker, processes: Processes[Any], seconds: float) -> dict[str, Any]:
    import anyio

    from fumehood.app import SystemClock, outward_of
    from fumehood.credentials import revoke_claimed
    from fumehood.evidence.client import LedgerClient

    providers, ledger = outward_of(processes.outward).providers, LedgerClient(asker, SystemClock())
    before, _ = await asker.ask("leases", {"state": "open"})
    after: str | None = None
    with anyio.move_on_after(seconds):
        while claimed := await ledger.leases_claim(after=after, orphaned=False):
            async with anyio.create_task_group() as tasks:
                for one in claimed:
                    tasks.start_soon(revoke_claimed, one, providers, ledger)
            after = claimed[-1].lease
    left, _ = await asker.ask("leases", {"state": "open"})
    shown = [{name: row[name] for name in ("lease", "task", "credential", "until", "error")} for row in left["leases"]]
    return {"leases_revoked": max(0, len(before["leases"]) - len(shown)), "leases_left": shown}


def _operation(action: str, who: str, uid: int, why: str, facts: Row) -> dict[str, Any]:
    return {"action": action, "who": who[:256], "uid": uid, "why": why, "facts": dict(facts)}


def _draw(summary: Row) -> None:
    """What was done, and what is left, for people."""
    from fumehood.cli.records_view import when

    lost = f", {summary['calls_lost']} of them lost with their worker" if summary["calls_lost"] else ""
    typer.echo(
        f"{summary['runtimes']} runtimes: {summary['boxes_killed']} boxes killed, {summary['calls_ended']} calls ended{lost}; "
        f"{summary['leases_revoked']} leases revoked; {summary['seconds']:g} s"
    )
    for name in summary["unanswered"]:
        typer.echo(f"the runtime {name} is not done: if it does not end, end its processes, and the next start sweeps it")
    for row in summary["leases_left"]:
        until = "nobody knows when" if row["until"] is None else when(row["until"])
        typer.echo(f"the lease {row['lease']} of {row['credential']} is left, until {until}: {row['error'] or 'not tried yet'}")
    if summary["problem"] is not None:
        typer.echo(summary["problem"])
    typer.echo(f"{summary['stopped']}. Nothing begins until `fumehood start`.")


def _list_operations(*, as_json: bool) -> None:
    from fumehood.cli.tasks import asking_ledger

    with asking_ledger() as ask:
        found: Sequence[Row] = ask("operations", {})["operations"]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    from fumehood.cli import records_view

    table = Table("when", "what", "who", "why", "calls ended", "boxes killed")
    for row in found:
        said = [Text(records_view.shown(row[name])) for name in ("action", "who", "why")]
        counts = [str(row["facts"].get(name, "-")) for name in ("calls_ended", "boxes_killed")]
        table.add_row(records_view.when(row["at"]), *said, *counts)
    records_view.draw(table)
