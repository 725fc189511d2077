"""`fumehood gateway check` and `token`: what operators ask about a gateway's files. They start nothing and need no root.

`check` judges with the code that starts and reloads, and goes on where those stop: it tells of every server.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.model import REMOTE
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.gateway.reading import Reader
    from fumehood.gateway.served import HttpFront, Served
    from fumehood.gateway_config import PinMode, ServerConfig

PROBLEMS_EXIT = 125

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Config = Annotated[str | None, typer.Option(help="The configuration file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("check")(check)
    app.command("token")(token)


@dataclass(slots=True)
class _Row:
    """One server, as it was found or as it is only named."""

    asked: ServerConfig
    served: Served | None = None
    problems: list[FumehoodError] = field(default_factory=list)


def check(config: Config = None, *, as_json: AsJson = False) -> None:
    """Say what `fumehood gateway` would serve, and everything that is wrong with it. Exit 125 when something is."""
    from fumehood.config import load
    from fumehood.gateway.reading import Fronts, Reader
    from fumehood.state import state_folder

    uid = os.getuid()
    found = load(config, os.environ, uid)
    reader = Reader(found, os.environ, uid, state_folder(os.environ, uid, found.state))
    rows = [_row(reader, asked) for asked in reader.gateway.servers]
    common: list[FumehoodError] = []
    http = None
    if not rows:
        common.append(FumehoodError(Reason.CONFIG_INVALID, "no servers are named below `gateway.servers`"))
    try:
        http = reader.http(Fronts())
    except FumehoodError as error:
        common.append(error)
    try:
        reader.policy()
    except FumehoodError as error:
        common.append(error)
    try:
        reader.keep_apart([row.served for row in rows if row.served], reader.unix(Fronts()))
    except FumehoodError as error:
        common.append(error)
    listens = {"http": None if http is None else _http_facts(http)}
    local = {
        "unix": reader.gateway.unix, "unix_users": dict(reader.gateway.unix_users),
        "unix_envelope": asdict(reader.gateway.unix_envelope),
    }  # fmt: skip
    said = {"file": found.file, "servers": [_facts(row, reader.gateway.pins) for row in rows], **listens, **local}
    if as_json:
        typer.echo(json.dumps({**said, "problems": [_problem(each) for each in common]}, indent=2))
    else:
        _print(found.file, rows, said, common)
    if common or any(row.problems for row in rows):
        raise typer.Exit(PROBLEMS_EXIT)


def token(
    name: Annotated[str, typer.Argument(help="The sender, as records will call it.")],
    tokens_file: Annotated[
        Path | None, typer.Option(help="Default: the configuration's `gateway.http.tokens_file`.")
    ] = None,
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a bearer token for a sender over HTTP, add its digest to the tokens file, and print the token this once."""
    from fumehood.config import load
    from fumehood.gateway.senders import add_sender

    uid = os.getuid()
    if tokens_file is None:
        found = load(config, os.environ, uid)
        if found.gateway is None or found.gateway.http is None or found.gateway.http.tokens_file is None:
            remedy = "Name one there, or with --tokens-file."
            raise FumehoodError(
                Reason.CONFIG_INVALID, "fumehood.yaml names no `gateway.http.tokens_file`", remedy=remedy
            )
        tokens_file = Path(found.gateway.http.tokens_file)
    path = tokens_file.absolute()
    made = add_sender(path, name, uid)
    if as_json:
        typer.echo(json.dumps({"sender": name, "token": made, "tokens_file": str(path)}))
        return
    typer.echo(made)
    typer.echo(f"{path} keeps its digest alone. A running gateway takes it when it is sent SIGHUP.", err=True)


def _row(reader: Reader, asked: ServerConfig) -> _Row:
    row = _Row(asked)
    try:
        row.served = reader.server(asked)
    except FumehoodError as error:
        row.problems.append(error)
    else:
        if (deny := reader.judge(row.served)) is not None:
            row.problems.append(
                FumehoodError(deny.reason, f"gateway.servers.{asked.name}: {deny.detail}", remedy=deny.remedy)
            )
    return row


def _facts(row: _Row, pins: PinMode) -> dict[str, Any]:
    served, asked = row.served, row.asked
    profile = None if served is None else served.profile
    return {
        "name": asked.name,
        "profile": asked.profile,
        "digest": None if profile is None else profile.digest,
        "engine": REMOTE if asked.upstream is not None else asked.engine if profile is None else profile.engine,
        "upstream": None if asked.upstream is None else asked.upstream.url,
        "command": list(asked.command if served is None else served.argv),
        "pins": (asked.pins or pins).value,
        "workspace": asked.workspace,
        "workspace_mode": None if profile is None else profile.filesystem.workspace.value,
        "tools": None if profile is None else "*" if profile.tools is None else sorted(profile.tools),
        "problems": [_problem(each) for each in row.problems],
    }


def _http_facts(http: HttpFront) -> dict[str, Any]:
    oauth = None
    if http.oauth is not None:
        config = http.oauth.config
        oauth = {
            "resource": config.resource,
            "binding": config.binding.value,
            "scopes": list(config.scopes),
            "issuers": [each.issuer for each in config.issuers],
            "senders": [issuer.sender_name(each.name) for issuer in config.issuers for each in issuer.senders],
        }
    facts = {"listen": str(http.listen), "tls": http.tls is not None, "senders": http.senders.names(), "oauth": oauth}
    return {**facts, "envelope": asdict(http.envelope)}


def _problem(error: FumehoodError) -> dict[str, str]:
    return {
        "reason": error.reason.value,
        "detail": error.detail or error.reason.meaning,
        "remedy": error.remedy or error.reason.remedy,
    }


def _print(file: str | None, rows: list[_Row], said: dict[str, Any], common: list[FumehoodError]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("server", "profile", "tools", "pins", "workspace", "engine", "ok", box=None, pad_edge=False)
    for row, facts in zip(rows, said["servers"], strict=True):
        tools = facts["tools"]
        table.add_row(
            facts["name"],
            facts["profile"],
            "" if tools is None else "all" if tools == "*" else str(len(tools)),
            facts["pins"],
            f"{facts['workspace'] or ''} {facts['workspace_mode'] or ''}".strip(),
            facts["engine"] or "what works",
            "no" if row.problems else "yes",
        )
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{file or 'no configuration'}")
    if rows:
        console.print(table)
    if (http := said["http"]) is not None:
        scheme = "https" if http["tls"] else "http"
        oauth = http["oauth"]
        senders = (*http["senders"], *(oauth["senders"] if oauth else ()))
        console.print(f"{scheme}://{http['listen']} for {', '.join(senders)}; envelopes {http['envelope']['mode']}")
        if oauth and oauth["binding"] == "none":
            console.print("access tokens are bound to nobody: whoever gets hold of one can use it (`binding: none`)")
        elif oauth:
            console.print(f"access tokens for {oauth['resource']}, bound by {oauth['binding']}")
    if said["unix"] is not None:
        users = ", ".join(["its owner", *said["unix_users"]])
        console.print(f"unix socket {said['unix']} for {users}; envelopes {said['unix_envelope']['mode']}")
    for error in (*(each for row in rows for each in row.problems), *common):
        console.print(str(error))
