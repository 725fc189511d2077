"""`fumehood audit verify|export|heads`: whether the ledger still says what was written to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import LedgerGone
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Verify the ledger's chain, export it, and see how far it is signed.", no_args_is_help=True)
FAULTY = 1
FAULTS_SHOWN = 200


def register(tree: typer.Typer) -> None:
    """Add the commands."""
    tree.add_typer(app, name="audit")


@app.command()
def verify(
    *,
    witness: Annotated[
        Path | None, typer.Option(help="Checkpoints that were kept elsewhere, one a line: the copy decides.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="The public keys to believe, from `keys export`. Default: those beside the ledger.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """Check every record against the chain, and say where it was edited, cut or put in. The exit status is 1 when it was."""
    from fumehood.cli import evidence

    with evidence.given({"witness": witness, "keys": keys}) as files, evidence.keeper() as sock:
        faults: list[Mapping[str, Any]] = []
        try:
            for value, is_last in evidence.answers(sock, {"do": "verify", "files": list(files)}, list(files.values())):
                if is_last:
                    summary = value
                elif len(faults) < FAULTS_SHOWN:
                    faults.append(value)
        except LedgerGone as error:
            if error.reason is not Reason.LEDGER_UNAVAILABLE:
                raise
            # A page that SQLite cannot read is an edit too, and no reason for a traceback.
            faults.append({"group": "file", "detail": error.detail, "runtime": None, "seq": None, "task": None})
            summary = {"faults": len(faults)}
    if as_json:
        found = {**summary, "ok": not faults, "count": summary["faults"], "faults": faults}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        from fumehood.cli import records_view

        if faults:
            records_view.draw(_faults_table(faults))
        for line in told(summary, len(faults), outside=witness is not None):
            typer.echo(line)
    raise typer.Exit(FAULTY if faults else 0)


@app.command()
def export() -> None:
    """Write the whole chain to stdout as JSON lines: each entry with its text, hash and statement, then the checkpoints."""
    from fumehood.cli import evidence

    evidence.answer({"do": "export"}, [sys.stdout.fileno()])


@app.command()
def heads(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="An object, for machines.")] = False,
) -> None:
    """List each runtime's chain: its newest entry, how far it is signed, and what the witnesses have."""
    from fumehood.cli import evidence

    with evidence.keeper() as sock:
        chains: list[Mapping[str, Any]] = []
        for value, is_last in evidence.answers(sock, {"do": "heads"}):
            if is_last:
                witnesses = value
            else:
                chains.append(value)
    if as_json:
        sys.stdout.write(json.dumps({"chains": chains, "witnesses": witnesses}, indent=2) + "\n")
        return
    from fumehood.cli import records_view

    records_view.draw(_heads_table(chains))
    for line in witness_lines(witnesses):
        typer.echo(line)


def told(summary: Mapping[str, Any], faults: int, *, outside: bool) -> list[str]:
    """What a pass came to, for people."""
    if "entries" not in summary:
        return ["the ledger's file is damaged: nothing after the fault was read"]
    lines = [
        f"{summary['entries']} entries in {summary['chains']} chains, {summary['calls']} closed calls,"
        f" {summary['checkpoints']} checkpoints: " + (f"{summary['faults']} faults" if faults else "nothing was changed")
    ]
    if summary["faults"] > faults:
        lines.append(f"the first {faults} faults are shown")
    if count := len(summary["unfinished"]):
        lines.append(f"{count} chains have no closing entry: their runtimes live, or were killed ({_some(summary['unfinished'])})")
    if summary["unsigned"]:
        lines.append(f"the newest {summary['unsigned']} entries are signed by no checkpoint yet")
    if summary["uncovered"]:
        lines.append(f"{summary['uncovered']} records are not covered: they are from before there was a chain")
    if outside:
        lines.append(f"{summary['witnessed']} checkpoints of the witness were compared")
    else:
        lines.append("without --witness an older copy of the whole ledger cannot be told from the newest one")
    return [*lines, *witness_lines(summary["witnesses"])]


def witness_lines(witnesses: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is known of each witness."""
    from fumehood.cli.records_view import shown, when

    lines = []
    for each in witnesses:
        has = "was told nothing yet"
        if each["told_at"] is not None:
            has = f"has entry {each['seq']} of {each['runtime_id']}, told {when(each['told_at'])}"
        failing = "" if each["failed_at"] is None else f"; FAILS since {when(each['failed_at'])}: {shown(each['error'])}"
        lines.append(f"witness {shown(each['name'])} {has}{failing}")
    return lines


def _faults_table(faults: Sequence[Mapping[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fumehood.cli.records_view import shown

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "runtime", "entry", "task", "fault"):
        table.add_column(name, no_wrap=name in {"runtime", "task"})
    for each in faults:
        cells = (each["group"], each["runtime"], each["seq"], each["task"], each["detail"])
        table.add_row(*(Text("-" if cell is None else shown(cell)) for cell in cells))
    return table


def _heads_table(chains: Sequence[Mapping[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fumehood.cli.records_view import shown

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("runtime", "entries", "signed to", "state", "head"):
        table.add_column(name, no_wrap=True)
    for each in chains:
        state = "ended" if each["ended"] else "no closing entry"
        table.add_row(*(Text(shown(cell)) for cell in (each["runtime_id"], each["seq"], each["signed"], state, each["hash"])))
    return table


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


