"""`fumehood keys list|rotate|export`: the keys that sign checkpoints and receipts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

app = typer.Typer(help="The ledger's signing keys: list them, put another in place, export what verifies.", no_args_is_help=True)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 366 * 86400.0


class Form(StrEnum):
    """How public keys are written."""

    JWKS = "jwks"
    PEM = "pem"


def register(tree: typer.Typer) -> None:
    """Add the commands."""
    tree.add_typer(app, name="keys")


@app.command("list")
def list_keys(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="A JWKS, for machines.")] = False,
) -> None:
    """List the public keys, the oldest first, and from when to when each signs."""
    from fumehood.cli import evidence

    found = evidence.answer({"do": "keys"})
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    from rich import box
    from rich.table import Table

    from fumehood.cli import records_view

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("key", "signs from", "until"):
        table.add_column(name, no_wrap=True)
    for key in found["keys"]:
        table.add_row(key["kid"], records_view.when(key["nbf"]), records_view.when(key["exp"]) if "exp" in key else "in use")
    records_view.draw(table)


@app.command()
def rotate(
    *,
    overlap: Annotated[
        str, typer.Option(help="How long running runtimes may still sign with the key before: 90s, 30m, 1h, 1d; 0s: not at all.")
    ] = "1h",
    as_json: Annotated[bool, typer.Option("--json", help="The new key as a JWK, for machines.")] = False,
) -> None:
    """Make a new key the one that signs. What earlier keys signed stays valid."""
    from fumehood.cli import evidence

    made = evidence.answer({"do": "rotate", "overlap_s": span(overlap)})
    if as_json:
        sys.stdout.write(json.dumps(made, indent=2) + "\n")
    else:
        typer.echo(f"{made['kid']} signs from now on. Export the keys again: `fumehood keys export`")


@app.command()
def export(
    *,
    form: Annotated[Form, typer.Option("--format", help="A JWKS, or PEM blocks.")] = Form.JWKS,
    as_json: Annotated[bool, typer.Option("--json", help="The JWKS, whatever --format says.")] = False,
) -> None:
    """Write all public keys to stdout, for whoever verifies elsewhere. No private key ever leaves the ledger's folder."""
    from fumehood.cli import evidence
    from fumehood.keys import public_keys

    found: Mapping[str, Any] = evidence.answer({"do": "keys"})
    if form is Form.JWKS or as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for key in public_keys(json.dumps(found)).values():
        sys.stdout.write(f"# {key.kid}\n{key.pem()}")


def span(text: str) -> float:
    """Seconds of `90s`, `30m`, `1h`, `1d`. Raises FumehoodError."""
    amount, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not amount.isdecimal() or int(amount) * _UNITS_S[unit] > _LONGEST_S:
        raise FumehoodError(Reason.BAD_REQUEST, f"--overlap: {text!r} is not like 0s, 90s, 30m, 1h, 1d, of at most a year")
    return float(int(amount) * _UNITS_S[unit])
