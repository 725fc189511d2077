"""`fumehood gateway`: an MCP server on stdio, HTTP or a unix socket whose every tool call runs in a fresh box.

Sockets, certificate, token, workspace and profile are opened and read with the operator's rights; the protocol is
spoken, and the SDK even imported, only when they are given up. Exit status 0 when the client hangs up or a signal asks
for the end, 125 refused.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fumehood.faults import FumehoodError
from fumehood.model import Deny, Outcome, Profile, Sender, ToolCall
from fumehood.ports import Ports
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.execution import Work
    from fumehood.gateway.answering import Answering
    from fumehood.gateway.listen import Listening
    from fumehood.gateway_config import HttpConfig
    from fumehood.launch import Processes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gateway", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(gateway)


def gateway(
    profile: Annotated[str, typer.Option("--profile", "-p", help="A profile's name, or a path to one.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The server's command, after --; default: the profile's.", show_default=False),
    ] = None,
    workspace: Annotated[Path | None, typer.Option(help="A directory the server sees at /workspace.")] = None,
    engine: Annotated[str | None, typer.Option(help="docker or oci; default: the profile's, else what works.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    http: Annotated[str | None, typer.Option(help="Serve HTTP on this address and port, 0 for a free one.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Lines NAME:SHA256 of HTTP clients' tokens; mode 0600.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="A PEM certificate chain, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key; mode 0600.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name that HTTP clients may use for us.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="An Origin that HTTP clients may send.")] = None,
    unix: Annotated[Path | None, typer.Option(help="Serve a unix socket at this path.")] = None,
) -> None:
    """Serve an MCP server's tools, each call in a box of its own: on stdio, or on HTTP and a unix socket.

    Put this where an MCP client wants a server's command:

        fumehood gateway --profile mcp-server-git --workspace /path/to/repository
    """
    from fumehood import launch
    from fumehood.gateway.listen import opened
    from fumehood.given import load_profile, open_workspace

    if engine not in {None, "docker", "oci"}:
        raise FumehoodError(Reason.BAD_REQUEST, f"--engine {engine}: expected docker or oci")
    settings = launch.settings(config)
    directory = open_workspace(workspace)
    settings = launch.with_workspace(settings, directory)
    path = None if workspace is None else str(workspace.absolute())
    for guard in (token_file, tls_certificate, tls_key, unix):
        _keep_apart(guard, workspace)
    served = _http(http, token_file, (tls_certificate, tls_key), tuple(allow_host or ()), tuple(allow_origin or ()))
    listening = opened(served, unix, settings.caller_uid)
    with launch.started(settings, partial(load_profile, profile, settings, engine, workspace)) as processes:
        import anyio

        argv = tuple(command or ()) or processes.loaded.command
        if not argv:
            raise FumehoodError(
                Reason.BAD_REQUEST,
                f"the profile {processes.loaded.name} has no `command`",
                remedy="Name the server's command after --.",
            )
        anyio.run(_serve, processes, argv, directory, path, listening)


def _keep_apart(guard: Path | None, workspace: Path | None) -> None:
    """Refuse what guards the door where a box could write it. Raises FumehoodError."""
    from fumehood.safe_files import inside

    for way in (os.path.abspath, os.path.realpath):
        if workspace is not None and guard is not None and inside(way(guard), way(workspace)):
            raise FumehoodError(
                Reason.CONFIG_UNSAFE,
                f"{guard} lies inside the workspace, where a box could have written it",
                remedy="Keep it outside the directories that boxes write to.",
            )


def _http(
    address: str | None,
    tokens: Path | None,
    tls: tuple[Path | None, Path | None],
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
) -> HttpConfig | None:
    """What the options ask of HTTP. Raises FumehoodError."""
    from fumehood import gateway_config as values

    chain, key = tls
    if address is None:
        if tokens or chain or key or hosts or origins:
            raise FumehoodError(Reason.BAD_REQUEST, "this is for HTTP only", remedy="Add --http 127.0.0.1:PORT.")
        return None
    if tokens is None:
        remedy = "Add --token-file FILE; `fumehood gateway token NAME` makes a token and its line."
        raise FumehoodError(Reason.BAD_REQUEST, "HTTP wants a file of bearer tokens", remedy=remedy)
    if (chain is None) != (key is None):
        raise FumehoodError(Reason.BAD_REQUEST, "HTTPS wants a certificate and its key", remedy="Give both.")
    try:
        return values.HttpConfig(
            tokens_file=str(tokens.absolute()),
            listen=values.listen_of(address),
            tls=None if chain is None or key is None else values.TlsConfig(certificate=str(chain), key=str(key)),
            allowed_hosts=tuple(map(values.host_of, hosts)),
            allowed_origins=tuple(map(values.origin_of, origins)),
        )
    except ValueError as error:
        raise FumehoodError(Reason.BAD_REQUEST, str(error)) from error


async def _serve(
    processes: Processes[Profile],
    argv: tuple[str, ...],
    directory: int | None,
    path: str | None,
    listening: Listening | None,
) -> None:
    import anyio

    from fumehood.app import open_runtime
    from fumehood.gateway import stdio
    from fumehood.gateway.front import open_gateway
    from fumehood.gateway.upstream import Served

    streams = None if listening else stdio.claim()
    async with open_runtime(processes) as runtime:
        profile = processes.loaded
        served = Served(name=profile.name, profile=profile, argv=argv, workspace_fd=directory, workspace_path=path)
        run, refuse = partial(_run, runtime.ports), partial(_refuse, runtime.ports)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as tasks:

                async def until_signalled() -> None:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()

                tasks.start_soon(until_signalled)
                async with open_gateway([served], run, refuse, runtime.new_task, runtime.ports.residences) as front:
                    await _transports(front, runtime.sender, listening, streams)
                tasks.cancel_scope.cancel()
    for fd in streams or ():
        os.close(fd)


async def _transports(
    front: Answering, owner: Sender, listening: Listening | None, streams: tuple[int, int] | None
) -> None:
    """Serve until the client on the standard streams leaves, or, where we listen, until cancelled."""
    import anyio

    if listening is None:
        from fumehood.gateway import adapter

        assert streams is not None  # noqa: S101 - claimed where nothing listens
        await adapter.serve(front, *streams, owner)
        return
    async with anyio.create_task_group() as tasks:
        if listening.http is not None:
            from fumehood.gateway import http_server

            found = listening.http
            tasks.start_soon(http_server.serve, front, found.socket, found.rules, found.tls)
            print(f"listening on {found.url}", file=sys.stderr, flush=True)  # noqa: T201 - what a starter waits for
        if listening.unix is not None:
            from fumehood.gateway import unix

            tasks.start_soon(unix.serve, front, listening.unix, {owner.uid: owner}.get)
            print(f"listening on unix:{listening.path}", file=sys.stderr, flush=True)  # noqa: T201


async def _run(ports: Ports, call: ToolCall, work: Work) -> Outcome:
    from fumehood.call import run_call

    return await run_call(call, work, ports)


async def _refuse(ports: Ports, call: ToolCall, deny: Deny) -> Outcome:
    """The record of a call that the gateway itself refuses: opened and closed like every other."""
    from fumehood import evidence

    async with evidence.record(call, ports) as log:
        await log.note(deny)
    return log.outcome
