"""`fumehood why TASK`: why a call did not go through, what would let it through, and what that would risk.

Profiles are read with the operator's rights before any of the record is: names in a record were chosen by strangers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError, Refused
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from rich.table import Table

    from fumehood.denial import Denial, Way
    from fumehood.model import Profile


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("why")(why)


def why(
    name: Annotated[str, typer.Argument(metavar="ID", help="A task id, or its beginning if no other begins so.")],
    *,
    profile: Annotated[
        str | None, typer.Option(help="The profile's name, or its file. Default: what is found by the name in the record.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """Say why a call was refused, killed or failed; which line would let it through; and what that line would risk."""
    from fumehood import denial, launch
    from fumehood.cli.tasks import fetch_egress, fetch_task, ledger_asker
    from fumehood.outward_config import OutwardConfig
    from fumehood.policies.allowing import policy_ways
    from fumehood.profile.allowing import egress_ways, ways

    chosen = replace(launch.settings(), outward=OutwardConfig())  # nobody is called, so no secret is read
    with launch.started(chosen, partial(_profiles, profile), broker=False) as processes:
        ask = ledger_asker(processes)
        record = fetch_task(ask, name.lower())
        log = fetch_egress(ask, record["task"])
    known = processes.loaded.get(profile or record["profile"])
    denied = denial.of_record(record)
    refused = [entry["facts"] for entry in log["entries"] if entry["kind"] == "refused"]
    if denied is None and not refused:
        state = "is not over yet" if record["result"] is None else "went through, and its gate refused nothing"
        raise FumehoodError(Reason.BAD_REQUEST, f"task {record['task']} {state}", remedy="`fumehood task ID` shows its record.")
    found = [] if denied is None else [*ways(denied, known), *policy_ways(denied, record)]
    if known is not None:
        found += egress_ways(log["entries"], known)
    changed = known is not None and known.digest != record["profile_digest"]
    if as_json:
        told = {
            "task": record["task"],
            "denial": None if denied is None else denied.fields(),
            "egress_refused": refused,
            "profile": {"name": record["profile"], "found": known is not None, "changed_since": changed},
            "ways": [asdict(way) for way in found],
        }
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    from fumehood.cli.records_view import draw

    draw(_told(denied, refused, known, record, changed=changed))
    if found:
        draw(_table(found))


def _profiles(named: str | None) -> Mapping[str, Profile]:
    """The profile of this name or file, or every one that loads: one that does not is another command's to complain of."""
    from fumehood import config
    from fumehood.profile.loader import load_fully, names_in, search_folders
    from fumehood.profile.problems import Problems

    found: dict[str, Profile] = {}
    uid = os.getuid()
    folders = search_folders(config.load(None, os.environ, uid).profile_folders, os.environ)
    if named is not None:
        try:
            return {named: load_fully(named, folders, uid).profile}
        except Problems as problems:
            raise problems.refused() from None
    for name, _ in names_in(folders, uid):
        try:
            found[name] = load_fully(name, folders, uid).profile
        except (Problems, Refused, FumehoodError):
            continue
    return found


def _told(
    denied: Denial | None, refused: list[Mapping[str, Any]], profile: Profile | None, record: Mapping[str, Any], *, changed: bool
) -> Table:
    from rich.table import Table
    from rich.text import Text

    from fumehood.cli.records_view import shown
    from fumehood.denial import Again, again

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, str]] = [("task", record["task"])]
    if denied is not None:
        asked = " ".join(filter(None, (denied.asked.kind, denied.asked.name)))
        helps = {
            Again.NEVER: "will not help until a person has allowed it",
            Again.CHANGED: "helps when something of the request, or of what it works on, is another",
            Again.LATER: "may help later",
        }[again(denied.reason)]
        rows += [
            ("asked", f"{asked}, under the profile {record['profile']}"),
            (denied.result, f"{denied.reason.value}: {denied.reason.meaning}"),
            ("detail", denied.detail),
            ("rule", denied.rule or ""),
            ("remedy", denied.remedy),
            ("asking again", helps),
        ]
    for facts in refused[:20]:
        said = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "remedy")
        rows.append(("its gate refused", f"{said}. {facts.get('remedy', '')}"))
    if len(refused) > 20:
        rows.append(("", f"and {len(refused) - 20} more: `fumehood task {record['task']} --egress`"))
    if profile is None:
        rows.append(("profile", f"{record['profile']} is not found by that name now, so only what needs no profile is shown"))
    elif changed:
        rows.append(("profile", f"{record['profile']} was changed since this call"))
    for label, value in rows:
        if value:
            table.add_row(label, Text(shown(value)))
    return table


def _table(found: list[Way]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fumehood.cli.records_view import shown

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name in ("where", "this would allow it", "and risk"):
        table.add_column(name, overflow="fold")
    for way in found:
        table.add_row(*(Text(shown(cell)) for cell in (way.where, way.line, way.risk)))
    return table
