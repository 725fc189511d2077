"""`fumehood sessions list|end`: which servers are kept for which clients, and letting one go.

A session is a task like any other: its record is open as long as its box is kept. Ending one commits what it changed,
as its own end would have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

app = typer.Typer(help="List the sessions of stateful servers, and end them.", no_args_is_help=True)


def register(tree: typer.Typer) -> None:
    """Add the commands."""
    tree.add_typer(app, name="sessions")


@app.command("list")
def list_sessions(
    *,
    ended: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An array, for machines.")] = False,
) -> None:
    """List open sessions, newest first, with the calls that each has served."""
    from fumehood.cli.tasks import asking_ledger, fetch_tasks

    with asking_ledger() as ask:
        wanted = {"front_door": "session", "result": None if ended else "open"}
        sessions = [
            {**record, "calls": len(fetch_tasks(ask, {"session": record["task"]}, _MOST))}
            for record in fetch_tasks(ask, wanted, _MOST)
        ]
    if as_json:
        sys.stdout.write(json.dumps(sessions, indent=2) + "\n")
    else:
        from fumehood.cli import records_view

        records_view.draw(records_view.sessions_table(sessions))


@app.command()
def end(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The session's task id, or its beginning.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """End one session: its box is removed, and what it changed in its workspace is settled as its profile says."""
    from fumehood import launch, wire
    from fumehood.cli.tasks import fetch_task, ledger_asker

    with launch.serving(launch.settings()) as processes:
        record: Mapping[str, Any] = fetch_task(ledger_asker(processes), task.lower())
        if record["front_door"] != "session":
            raise FumehoodError(Reason.TASK_UNKNOWN, f"{record['task']} is no session", remedy="`fumehood sessions list` names them.")
        if record["state"] == "closed":
            raise FumehoodError(Reason.SESSION_ENDED, f"{record['task']} is over already", remedy="Nothing to do.")
        wire.request(processes.privileged, "end", {"task": record["task"], "runtime_id": record["runtime_id"]})
    if as_json:
        sys.stdout.write(json.dumps({"task": record["task"], "ended": True}) + "\n")
    else:
        typer.echo(f"{record['task']} is ended")


_MOST = 1000
