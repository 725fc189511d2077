"""`fumehood leases [revoke]`: the credentials that calls had, which of them live, and ending those.

What is listed comes from the ledger alone. Revoking asks the providers of fumehood.yaml, with the operator's secrets, so it is done as
a call's end does it: by a process without rights, that claims the leases first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.launch import Processes

Row = Mapping[str, Any]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    group.callback()(leases)
    group.command("revoke")(revoke)
    app.add_typer(group, name="leases")


def leases(
    ctx: typer.Context,
    *,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are not revoked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An array, for machines.")] = False,
) -> None:
    """List the credentials that calls had, oldest first, and how they ended."""
    if ctx.invoked_subcommand is not None:
        return
    from fumehood.cli.tasks import asking_ledger, fetch_leases

    with asking_ledger() as ask:
        found = fetch_leases(ask, {"state": "open" if only_open else None})
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        from fumehood.cli import leases_view, records_view

        records_view.draw(leases_view.leases_table(found))


def revoke(
    name: Annotated[str | None, typer.Argument(metavar="LEASE", help="A lease's id, or its beginning.")] = None,
    *,
    task: Annotated[str | None, typer.Option(help="All open leases of this task.")] = None,
    all_open: Annotated[bool, typer.Option("--all-open", help="All open leases there are, those of living calls too.")] = False,
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An array, for machines.")] = False,
) -> None:
    """Revoke credentials now, whether their calls live or not. The exit status is 1 when one is left."""
    if (name is not None) + (task is not None) + all_open != 1:
        raise FumehoodError(Reason.BAD_REQUEST, "name one lease, or --task TASK, or --all-open")
    from fumehood import launch

    # Not `serving`: the providers' secrets are read, with the caller's own rights, before these are given up.
    with launch.started(launch.settings(config), lambda: None, broker=False) as processes:
        import anyio

        told = anyio.run(_revoke, processes, _wanted(processes, name, task))
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        for row in told:
            ended = "revoked" if row["proof"] and row["proof"]["gone"] else row["problem"] or row["proof"]["answer"]
            typer.echo(f"{row['lease']}  {row['credential']}: {ended}")
        if not told:
            typer.echo("nothing to revoke")
    raise typer.Exit(1 if any(row["problem"] for row in told) else 0)


def _wanted(processes: Processes[Any], name: str | None, task: str | None) -> dict[str, str]:
    """Which leases to claim."""
    from fumehood.cli.tasks import fetch_leases, fetch_task, ledger_asker

    ask = ledger_asker(processes)
    if task is not None:
        return {"task": fetch_task(ask, task.lower())["task"]}
    if name is None:
        return {}
    found = [row["lease"] for row in fetch_leases(ask, {"state": "open"}) if row["lease"].startswith(name.lower())]
    if not found:
        raise FumehoodError(Reason.LEASE_UNKNOWN, f"no open lease is named {name}", remedy="`fumehood leases --open` lists them.")
    if len(found) > 1:
        raise FumehoodError(Reason.BAD_REQUEST, f"{name} begins the names of several leases")
    return {"lease": found[0]}


async def _revoke(processes: Processes[Any], wanted: Mapping[str, str]) -> list[Row]:
    """Claim and revoke until there is nothing left to claim."""
    from fumehood.app import SystemClock, outward_of
    from fumehood.asking import asking
    from fumehood.credentials import revoke_claimed
    from fumehood.evidence.client import LedgerClient

    providers = outward_of(processes.outward).providers
    told: list[Row] = []
    async with asking(processes.ledger) as asker:
        ledger = LedgerClient(asker, SystemClock())
        after: str | None = None
        while claimed := await ledger.leases_claim(**wanted, after=after, orphaned=False):
            for one in claimed:
                ending = await revoke_claimed(one, providers, ledger)
                row = {"lease": one.lease, "task": one.task, "credential": one.credential, "problem": None, "proof": None}
                told.append({**row, **({"problem": ending} if isinstance(ending, str) else {"proof": asdict(ending)})})
            after = claimed[-1].lease
    return told
