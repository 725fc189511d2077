"""`fumehood gateway`: an MCP server on stdio whose every tool call runs in a fresh box.

The workspace is opened and the profile is read with the operator's rights; the protocol is spoken, and the SDK even
imported, only when they are given up. Exit status 0 when the client hangs up or a signal asks for the end, 125 refused.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fumehood.faults import FumehoodError
from fumehood.model import Deny, Outcome, Profile, ToolCall
from fumehood.ports import Ports
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from fumehood.execution import Work
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
) -> None:
    """Serve an MCP server's tools on stdio, each call in a box of its own.

    Put this where an MCP client wants a server's command:

        fumehood gateway --profile mcp-server-git --workspace /path/to/repository
    """
    from fumehood import launch
    from fumehood.cli.run import load_profile, open_workspace

    if engine not in {None, "docker", "oci"}:
        raise FumehoodError(Reason.BAD_REQUEST, f"--engine {engine}: expected docker or oci")
    settings = launch.settings(config)
    directory = open_workspace(workspace)
    settings = launch.with_workspace(settings, directory)
    path = None if workspace is None else str(workspace.absolute())
    with launch.started(settings, partial(load_profile, profile, settings, engine, workspace)) as processes:
        import anyio

        argv = tuple(command or ()) or processes.loaded.command
        if not argv:
            raise FumehoodError(
                Reason.BAD_REQUEST,
                f"the profile {processes.loaded.name} has no `command`",
                remedy="Name the server's command after --.",
            )
        anyio.run(_serve, processes, argv, directory, path)


async def _serve(processes: Processes[Profile], argv: tuple[str, ...], directory: int | None, path: str | None) -> None:
    import anyio

    from fumehood.app import open_runtime
    from fumehood.gateway import adapter, stdio
    from fumehood.gateway.front import open_gateway
    from fumehood.gateway.upstream import Served

    source, sink = stdio.claim()
    async with open_runtime(processes) as runtime:
        profile = processes.loaded
        served = Served(
            name=profile.name, profile=profile, argv=argv, workspace_fd=directory, workspace_path=path
        )
        run, refuse = partial(_run, runtime.ports), partial(_refuse, runtime.ports)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as tasks:

                async def until_signalled() -> None:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()

                tasks.start_soon(until_signalled)
                async with open_gateway([served], run, refuse, runtime.new_task, runtime.ports.residences) as gateway:
                    await adapter.serve(gateway, runtime.sender, source, sink)
                tasks.cancel_scope.cancel()
    for fd in (source, sink):
        os.close(fd)


async def _run(ports: Ports, call: ToolCall, work: Work) -> Outcome:
    from fumehood.call import run_call

    return await run_call(call, work, ports)


async def _refuse(ports: Ports, call: ToolCall, deny: Deny) -> Outcome:
    """The record of a call that the gateway itself refuses: opened and closed like every other."""
    from fumehood import evidence

    async with evidence.record(call, ports) as log:
        await log.note(deny)
    return log.outcome
