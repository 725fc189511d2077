"""`fumehood senders [list|add|revoke|keygen]`: whose signatures are accepted.

Keys are in the ledger, which takes them from these commands alone: a revocation is on disk when the command ends, and every gateway
on this state folder refuses the key's next request. A private key is made here and stays where it was made.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

Row = Mapping[str, Any]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Configured = Annotated[str | None, typer.Option(help="The configuration file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Whose signatures are accepted (docs/senders.md).")
    group.command("add")(add)
    group.command("list")(list_)
    group.command("revoke", context_settings={"ignore_unknown_options": True})(revoke)  # a kid may begin with `-`
    group.command("keygen")(keygen)
    app.add_typer(group, name="senders")


def add(
    name: Annotated[str, typer.Argument(help="The sender, as its requests and records call it: a-z, 0-9, `.`, `_`, `-`.")],
    key: Annotated[str, typer.Option(metavar="FILE|-", help="Its Ed25519 public key: a JWK, PEM, or OpenSSH's line.")],
    *,
    audience: Annotated[list[str] | None, typer.Option(help="Only for front doors of this audience. Default: any.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group that the sender is in, for policy.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose sender it is, for policy.")] = "local",
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Accept a sender's signatures from now on. A sender may have several keys, so that one can be replaced by another."""
    from fumehood import launch
    from fumehood.gateway.senders import NAME
    from fumehood.outward_config import OutwardConfig

    for each in (name, tenant):
        if not NAME.fullmatch(each):
            raise FumehoodError(Reason.BAD_REQUEST, f"{each!r} is no sender's or tenant's name", remedy="Use a-z, 0-9, `.`, `_`, `-`.")
    settings = replace(launch.settings(config), takes_senders=True, outward=OutwardConfig(), policy=None)
    with launch.started(settings, lambda: _read(key), broker=False) as processes:
        from fumehood.cli.tasks import ledger_asker
        from fumehood.gateway.sender_keys import public_key

        found = public_key(processes.loaded, "standard input" if key == "-" else key)
        lists = {"groups": sorted(set(group or ())), "audiences": sorted(set(audience or ()))}
        kid = ledger_asker(processes)("sender_add", {"name": name, "key": found, "tenant": tenant, **lists})
    typer.echo(json.dumps({"sender": name, "kid": kid}) if as_json else kid)


def list_(*, config: Configured = None, as_json: AsJson = False) -> None:
    """List the keys of all senders, those that were revoked too."""
    from fumehood import launch
    from fumehood.cli.tasks import ledger_asker

    with launch.serving(launch.settings(config), broker=False) as processes:
        ask = ledger_asker(processes)
        found: list[Row] = []
        while True:
            page = ask("senders", {"after": found[-1]["kid"] if found else None})
            found += page["senders"]
            if not page["more"]:
                break
    found.sort(key=lambda row: (row["name"], row["added_at"]))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    from rich import box
    from rich.table import Table

    from fumehood.cli.records_view import draw, shown, when

    table = Table("sender", "kid", "added", "audiences", "tenant", "groups", "state", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in found:
        state = "accepted" if row["revoked_at"] is None else f"revoked {when(row['revoked_at'])}"
        audiences, groups = (shown(", ".join(row[name])) for name in ("audiences", "groups"))
        table.add_row(row["name"], row["kid"], when(row["added_at"]), audiences or "any", row["tenant"], groups or "-", state)
    draw(table)


def revoke(
    named: Annotated[str, typer.Argument(metavar="NAME|KID", help="A sender, with every key of its, or one key.")],
    *,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Accept no more of a sender's signatures, at once and for good. Calls under way go on."""
    from fumehood import launch
    from fumehood.cli.tasks import ledger_asker

    settings = replace(launch.settings(config), takes_senders=True)
    with launch.serving(settings, broker=False) as processes:
        gone = ledger_asker(processes)("sender_revoke", {"named": named})
    if not gone:
        raise FumehoodError(Reason.SENDER_UNKNOWN, f"no accepted key is of a sender or has a kid {named!r}")
    typer.echo(json.dumps({"revoked": gone}) if as_json else "\n".join(gone))


def keygen(
    file: Annotated[Path, typer.Argument(help="A new file for the private key, mode 0600, in a folder of yours.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a key to sign with, and print its public half for `fumehood senders add`."""
    from fumehood.gateway.sender_keys import make_private_key

    made = make_private_key(file, os.getuid())
    if as_json:
        typer.echo(json.dumps({"file": str(file.absolute()), "kid": made.kid, "public": json.loads(made.public)}))
        return
    typer.echo(made.public)
    typer.echo(f"{file} holds the private key. Register the line above: `fumehood senders add NAME --key -`.", err=True)


def _read(key: str) -> str:
    """The text of a public key, with the operator's rights: who could write it could make themselves a sender."""
    from fumehood.gateway.sender_keys import KEY_BYTES
    from fumehood.safe_files import read_trusted

    if key == "-":
        return sys.stdin.read(KEY_BYTES)
    try:
        return read_trusted(Path(key).absolute(), os.getuid(), limit_bytes=KEY_BYTES)
    except FileNotFoundError:
        raise FumehoodError(Reason.BAD_REQUEST, f"there is no key file {key}") from None
