"""`fumehood receipt ID`: the signed statement about one call."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from rich.table import Table

_KEYS_BYTES = 1024 * 1024
NOT_VERIFIED = 1


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("receipt")(receipt)


def receipt(
    name: Annotated[str, typer.Argument(metavar="ID", help="A task id, or its beginning if no other begins so.")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Check the signature, and say by which key.")] = False,
    keys: Annotated[
        Path | None, typer.Option(help="The public keys to believe, from `keys export`. Default: those beside the ledger.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The DSSE envelope, for machines and other tools.")] = False,
) -> None:
    """Show what is attested of one closed call: a signed in-toto statement. With --verify the exit status is 1 if it does not hold."""
    from fumehood.cli import evidence

    trusted = None if keys is None else _read(keys)
    fd = os.memfd_create("receipt", os.MFD_CLOEXEC)
    evidence.answer({"do": "receipt", "task": name.lower()}, [fd])
    with open(fd, encoding="utf-8") as file:
        file.seek(0)
        found = json.load(file)
    held = None
    if verify or keys is not None:
        held = _verified(found["envelope"], trusted or json.dumps(found["keys"]))
    if as_json:
        sys.stdout.write(json.dumps(found["envelope"], indent=2) + "\n")
    else:
        import base64

        from fumehood.cli import records_view

        records_view.draw(table(json.loads(base64.b64decode(found["envelope"]["payload"]))["predicate"], found))
        if held is not None:
            typer.echo(held[1])
    if held is not None and not held[0]:
        if as_json:
            sys.stderr.write(f"fumehood: {held[1]}\n")
        raise typer.Exit(NOT_VERIFIED)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_KEYS_BYTES)
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise FumehoodError(Reason.BAD_REQUEST, f"{path}: {told}", remedy="Name the file of `fumehood keys export`.") from None


def _verified(envelope: Mapping[str, Any], trusted: str) -> tuple[bool, str]:
    from fumehood import dsse, keys

    try:
        _, key = dsse.opened(envelope, dsse.STATEMENT, keys.public_keys(trusted))
    except ValueError as error:
        return False, f"NOT verified: {error}"
    return True, f"verified: signed by {key.kid}"


def table(said: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    """A statement's predicate for people: what it does not say is left out."""
    from rich.table import Table
    from rich.text import Text

    from fumehood.cli.records_view import shown, when

    request, sender, egress, session = said["request"], said["sender"], said["egress"], said["session"]
    files = said["files"]
    proof = sender["proof"]
    rows: list[tuple[str, object]] = [
        ("task", said["task"]),
        ("result", " ".join(filter(None, (said["result"], said["reason"])))),
        ("detail", said["detail"]),
        ("called", request["tool"] or request["command"]),
        ("request", request["digest"]),
        ("pin", request["pin"]),
        ("sender", f"{sender['name']} (uid {sender['uid']}, tenant {sender['tenant']})"),
        ("proof", proof and f"{proof['method']} by {proof['key']}, nonce {proof['nonce']}"),
        ("profile", f"{said['profile']['name']}  {said['profile']['digest']}"),
        ("image", " ".join(filter(None, (said["image"]["name"], said["image"]["digest"])))),
        ("init", said["init"]),
        ("decision", " ".join(filter(None, (said["decision"]["decision"], said["decision"]["rule"])))),
        ("box", " ".join(filter(None, said["box"].values()))),
        ("enforced", said["enforced"] and _pairs(said["enforced"])),
        ("accepted", ", ".join(said["accept_risks"])),
        ("egress", egress and f"{_pairs(egress['counters'])}; {egress['refused']} refused"),
        ("files", f"{files['total']} changed" + (", not committed yet" if files["pending"] else "") if files["total"] else None),
        *(("lease", _lease(each)) for each in said["leases"]),
        ("usage", _pairs(said["usage"])),
        ("teardown", said["teardown"] and _pairs(said["teardown"])),
        ("session", session and f"{session['task']}, after {len(session['earlier'])} calls"),
        ("opened", when(said["times"]["opened"])),
        ("closed", when(said["times"]["closed"])),
        ("chain", f"entry {found['entry']['seq']} of runtime {found['entry']['runtime']}, {found['entry']['hash']}"),
        ("checkpoint", "made after it" if found["checkpoint"] else "none covers it yet"),
    ]
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in rows:
        if value:
            drawn.add_row(name, Text(shown(value)))
    return drawn


def _lease(lease: Mapping[str, Any]) -> str:
    from fumehood.cli.records_view import when

    issued = "never issued" if lease["issued"] is None else f"issued {when(lease['issued'])}"
    proof = lease["proof"]
    ended = f"not revoked: {lease['error'] or 'open'}"
    if proof is not None:
        ended = f"revoked {when(lease['closed'])}: {proof['asked']}: {proof['answer']}"
    return f"{lease['credential']} ({lease['provider']}) {lease['lease']}, {issued}, {ended}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None)
