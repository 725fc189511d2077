"""`fumehood gateway`: MCP servers behind one front, on stdio, HTTP or a unix socket; every call runs in a fresh box.

One server by --profile, or those of the configuration, which is read again on SIGHUP. Sockets, certificates, tokens,
workspaces and profiles are opened and read with the operator's rights; the protocol is spoken, and the SDK even
imported, only when they are given up. Exit status 0 when the client hangs up or a signal asks for the end, 125 refused.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fumehood.cli import gateway_files
from fumehood.faults import FumehoodError
from fumehood.gateway_config import PinMode
from fumehood.model import Deny, Outcome, ToolCall
from fumehood.ports import Ports
from fumehood.reasons import Reason

if TYPE_CHECKING:
    import click

    from fumehood.app import Runtime
    from fumehood.execution import Work
    from fumehood.gateway.answering import Answering
    from fumehood.gateway.listen import Listening
    from fumehood.gateway.served import Served
    from fumehood.gateway_config import EnvelopeConfig, HttpConfig
    from fumehood.launch import Processes

# As many objects as a dozen requests leave: looking through 700 at a time cost a long answer more often than it freed anything.
_YOUNG_OBJECTS = 10_000
_LINE_CHARS = 200


class _Gateway(TyperGroup):
    """`fumehood gateway` serves; only its first word can make it another command, never a server's argv."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command in that was left out."""
        return super().parse_args(ctx, args if args[:1] and args[0] in self.commands else ["serve", *args])


def register(app: typer.Typer) -> None:
    """Add `gateway` and the commands below it."""
    sub = typer.Typer(cls=_Gateway, help="Serve MCP servers, each call in a box of its own.")
    sub.command(
        "serve",
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        epilog="Also: `fumehood gateway check` and `fumehood gateway token NAME`.",
    )(gateway)
    gateway_files.register(sub)
    app.add_typer(sub, name="gateway")


def gateway(
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            help="Serve one server under this profile, a name or a path; default: those of the configuration.",
        ),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The server's command, after --; default: the profile's.", show_default=False),
    ] = None,
    workspace: Annotated[Path | None, typer.Option(help="A directory the server sees at /workspace.")] = None,
    engine: Annotated[str | None, typer.Option(help="docker or oci; default: the profile's, else what works.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve HTTP here, port 0 for a free one, to senders with a token."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Lines NAME:SHA256 of HTTP clients' tokens; mode 0600."),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="A PEM certificate chain, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key; mode 0600.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name that HTTP clients may use for us.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="An Origin that HTTP clients may send.")] = None,
    unix: Annotated[Path | None, typer.Option(metavar="PATH", help="Serve on a unix socket here.")] = None,
    envelope: Annotated[
        str | None, typer.Option(help="Whether requests are signed: required, accepted (the default) or off.")
    ] = None,
    audience: Annotated[str | None, typer.Option(help="What signed requests must be made out to; default: fumehood.")] = None,
    pins: Annotated[
        PinMode | None, typer.Option(help="May a tool be called when it is first seen, or once it was accepted? Default: trust-first.")
    ] = None,
) -> None:
    """Serve MCP servers' tools, each call in a box of its own: on stdio, or on HTTP or a unix socket.

    Put this where an MCP client wants a server's command:

        fumehood gateway --profile mcp-server-git --workspace /path/to/repository

    Without --profile the `gateway:` section of fumehood.yaml says what is served; SIGHUP reads it again without
    dropping a call.
    """
    from fumehood import launch
    from fumehood.gateway.listen import opened
    from fumehood.gateway.served import Served
    from fumehood.given import load_profile, open_workspace

    if http is not None and unix is not None:
        raise FumehoodError(Reason.BAD_REQUEST, "--http and --unix are two ways to serve", remedy="Use one of them.")
    if profile is None:
        others = (command, workspace, engine, token_file, tls_certificate, tls_key, allow_host, allow_origin, envelope, audience, pins)
        if any(others):
            detail = "a command, --workspace, --engine, --pins, --envelope and the options of HTTP but --http go with --profile"
            raise FumehoodError(Reason.BAD_REQUEST, detail, remedy="Write it below `gateway:`, or name a --profile.")
        _serve_configured(config, http, unix)
        return
    if engine not in {None, "docker", "oci"}:
        raise FumehoodError(Reason.BAD_REQUEST, f"--engine {engine}: expected docker or oci")
    settings = launch.settings(config)
    directory = open_workspace(workspace)
    settings = launch.with_workspace(settings, directory)
    if pins is not None:
        settings = replace(settings, review=pins is PinMode.REVIEW, review_otherwise=())
    path = None if workspace is None else str(workspace.absolute())
    for guard in (token_file, tls_certificate, tls_key, unix):
        _keep_apart(guard, workspace)
    asked = _envelope(envelope, audience)
    served = _http(http, token_file, (tls_certificate, tls_key), tuple(allow_host or ()), tuple(allow_origin or ()))
    served = None if served is None else replace(served, envelope=asked)
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
        server = Served(
            name=processes.loaded.name, profile=processes.loaded, argv=argv, workspace_fd=directory, workspace_path=path,
            pinned=_named_by_command(command),
        )  # fmt: skip
        anyio.run(_serve, processes, (server,), listening, asked)


def _envelope(mode: str | None, audience: str | None) -> EnvelopeConfig:
    """What the options ask of envelopes. Raises FumehoodError."""
    from fumehood import gateway_config as values

    if mode not in {None, *values.EnvelopeMode}:
        raise FumehoodError(Reason.BAD_REQUEST, f"--envelope {mode}: expected required, accepted or off")
    if audience is not None and not values.is_audience(audience):
        raise FumehoodError(Reason.BAD_REQUEST, f"--audience {audience!r}: expected a name or URL without spaces")
    default = values.EnvelopeConfig()
    return values.EnvelopeConfig(mode=values.EnvelopeMode(mode or default.mode), audience=audience or default.audience)


def _named_by_command(command: Sequence[str] | None) -> str | None:
    """What an operator who gives a command names the server by: two commands under one profile are two servers, each with its pins."""
    import hashlib
    import shlex

    if not command:
        return None
    line = shlex.join(command)
    return line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]}… {hashlib.sha256(line.encode()).hexdigest()[:12]}"


def _serve_configured(config: str | None, http: str | None, unix: Path | None) -> None:
    """Serve what the `gateway:` section says, until the client hangs up or a signal asks for the end."""
    from fumehood import launch
    from fumehood.config import load
    from fumehood.gateway.listen import opened
    from fumehood.gateway.reading import Fronts, Reader
    from fumehood.gateway.reloading import reread
    from fumehood.gateway_config import listen_of

    try:
        listen = None if http is None else listen_of(http)
    except ValueError as error:
        raise FumehoodError(Reason.BAD_REQUEST, f"--http: {error}") from error
    fronts = Fronts(listen, None if unix is None else str(unix.absolute()))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it means to read again: an eager operator must not end us
    found = load(config, os.environ, os.getuid())
    settings = launch.settings(found=found)
    reader = Reader(found, os.environ, settings.caller_uid, settings.state)
    served = reader.read(fronts)
    settings = launch.with_workspace(settings, *(server.workspace_fd for server in served.servers))
    path = None if served.unix is None else Path(served.unix)
    listening = opened(reader.listens(fronts), path, settings.caller_uid, served.unix_users)
    again = partial(reread, settings, fronts, served)
    with launch.started(settings, lambda: served, reread=again) as processes:
        import anyio

        anyio.run(_serve, processes, served.servers, listening, served.unix_envelope)


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
    processes: Processes[Any], servers: Sequence[Served], listening: Listening | None, local: EnvelopeConfig
) -> None:
    """Serve, and what each reload says from then on. Without an operator process SIGHUP ends, as a terminal means it.

    `local` is what is asked of envelopes on the unix socket and on the standard streams.
    """
    import anyio

    from fumehood.app import open_runtime
    from fumehood.gateway import changes, stdio
    from fumehood.gateway.front import Gateway, open_gateway

    async def on_signals(operator: changes.Operator | None, serving: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                if number is signal.SIGHUP and operator is not None:
                    operator.reload()
                else:
                    serving.cancel()

    async def on_changes(operator: changes.Operator, gateway: Gateway) -> None:
        async with aclosing(operator.changes()) as taken:
            async for served in taken:
                if served.http is not None and listening is not None and listening.http is not None:
                    listening.http.adopt(served.http)
                runtime.ports.policies.adopt(served.policy)
                gateway.serve([_taken(server) for server in served.servers])
                gc.collect()  # what nobody uses any more lets go of its directories now, and not at the next of a rare few

    import fumehood.call
    import fumehood.gateway.bridge  # noqa: F401 - the SDK, which is most of the heap

    # What has been imported stays for good. Looked through with the rest it stopped every client, for 85 ms and more on a
    # slow machine, every few hundred calls.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    streams = None if listening else stdio.claim()
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(open_runtime(processes))
        operator = None
        if processes.operator is not None:
            operator = await stack.enter_async_context(changes.operator(processes.operator))
        run, refuse = partial(_run, runtime.ports), partial(_refuse, runtime.ports)
        began = [_taken(server) for server in servers]
        async with anyio.create_task_group() as tasks:
            async with open_gateway(began, run, refuse, runtime.new_task, runtime.ports) as gateway:
                began.clear()
                # Only the serving is cancelled: sessions end in order, and what they changed is committed.
                with anyio.CancelScope() as serving:
                    tasks.start_soon(on_signals, operator, serving)
                    if operator is not None:
                        tasks.start_soon(on_changes, operator, gateway)
                    await _transports(gateway, runtime, listening, streams, local)
            tasks.cancel_scope.cancel()
    for fd in streams or ():
        os.close(fd)


def _taken(server: Served) -> Served:
    """The server for the gateway, which lets go of its directory with it: when no call under way is its any more."""
    import weakref

    taken = replace(server)  # whoever told us of it may keep what they have
    if taken.workspace_fd is not None:
        weakref.finalize(taken, os.close, taken.workspace_fd)
    return taken


async def _transports(
    front: Answering, runtime: Runtime, listening: Listening | None, streams: tuple[int, int] | None, local: EnvelopeConfig
) -> None:
    """Serve until the client on the standard streams leaves, or, where we listen, until cancelled."""
    import anyio

    from fumehood.gateway.proofs import Proofs

    owner, ledger, clock = runtime.sender, runtime.ports.ledger, runtime.ports.clock
    if listening is None:
        from fumehood.gateway import adapter

        assert streams is not None  # noqa: S101 - claimed where nothing listens
        await adapter.serve(front, *streams, owner, Proofs(lambda: local, ledger, clock))
        return
    async with anyio.create_task_group() as tasks:
        if listening.http is not None:
            from fumehood.gateway import http_server

            found = listening.http
            rules = found.rules
            proofs = Proofs(lambda: rules.envelope, ledger, clock)
            tasks.start_soon(http_server.serve, front, found.socket, rules, proofs, found.tls, runtime.ports)
            print(f"listening on {found.url}", file=sys.stderr, flush=True)  # noqa: T201 - what a starter waits for
        if listening.unix is not None:
            from fumehood.gateway import unix

            proofs = Proofs(lambda: local, ledger, clock)
            tasks.start_soon(unix.serve, front, listening.unix, unix.senders(owner, listening.users).get, proofs)
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
