"""`fumehood run`: one command in one box."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError
from fumehood.given import load_profile, open_workspace
from fumehood.model import Outcome, Profile, Result, ToolCall
from fumehood.reasons import Reason
from fumehood.settings import Settings

if TYPE_CHECKING:
    from fumehood.execution import Command
    from fumehood.launch import Processes

TIMED_OUT, REFUSED, KILLED = 124, 125, 137


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)


def run(
    command: Annotated[list[str], typer.Argument(help="The command to run, after --.", show_default=False)],
    profile: Annotated[str, typer.Option("--profile", "-p", help="A profile's name, or a path to one.")],
    workspace: Annotated[Path | None, typer.Option(help="A directory the command sees at /workspace.")] = None,
    engine: Annotated[str | None, typer.Option(help="docker or oci; default: the profile's, else what works.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    put: Annotated[list[str] | None, typer.Option(help="SRC:DST, a file copied into the workspace first.")] = None,
    get: Annotated[list[str] | None, typer.Option(help="SRC:DST, a file copied out of the workspace afterwards.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the streams.")] = False,
) -> None:
    """Run a command in a fresh box and remove the box.

    The exit status is the command's own, or 125 refused, 124 timed out, 137 killed.

        fumehood run --profile python -- python3 -c 'print(6 * 7)'
    """
    from fumehood import launch

    try:
        outcome = _run_as_operator(launch.settings(config), profile, command, engine, workspace, put or [], get or [], as_json=as_json)
    except FumehoodError as error:
        if not as_json:
            raise
        outcome = _refused(error)
    _tell(outcome, as_json=as_json)
    raise typer.Exit(exit_status(outcome))


def _run_as_operator(
    settings: Settings, profile: str, argv: list[str], engine: str | None, workspace: Path | None,
    put: list[str], get: list[str], *, as_json: bool,
) -> Outcome:  # fmt: skip
    from fumehood import launch
    from fumehood.execution import Command

    if engine not in {None, "docker", "oci"}:
        raise FumehoodError(Reason.BAD_REQUEST, f"--engine {engine}: expected docker or oci")
    # What the operator names is opened with the operator's own rights; everything after that runs without any.
    directory = open_workspace(workspace)
    puts = [(_open(source, os.O_RDONLY), target) for source, target in map(_pair, put)]
    gets = [(source, _open(target, os.O_WRONLY | os.O_CREAT)) for source, target in map(_pair, get)]
    settings = launch.with_workspace(settings, directory)
    load = partial(load_profile, profile, settings, engine, workspace)
    with launch.started(settings, load) as processes:
        import anyio

        work = Command(
            tuple(argv), stdin=0, on_output=None if as_json else _pass_through, put=tuple(puts), get=tuple(gets),
            requester=_Terminal(),
        )
        return anyio.run(_call, processes, work, directory, None if workspace is None else str(workspace.absolute()))


async def _call(
    processes: Processes[Profile], work: Command, directory: int | None, workspace_path: str | None
) -> Outcome:
    import anyio

    from fumehood.app import open_runtime
    from fumehood.call import run_call

    async with open_runtime(processes) as runtime:
        call = ToolCall(
            task=runtime.new_task(), tool=None, arguments={"argv": list(work.argv)}, sender=runtime.sender,
            profile=processes.loaded, workspace_fd=directory,
            workspace_path=workspace_path, front_door="run",
        )  # fmt: skip
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            outcome: list[Outcome] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_on_signal, signals, tasks.cancel_scope.cancel)
                outcome.append(await run_call(call, work, runtime.ports))
                tasks.cancel_scope.cancel()
        return outcome[0] if outcome else Outcome(task=call.task, result=Result.KILLED, reason=Reason.CANCELLED)


async def _cancel_on_signal(signals: AsyncIterator[signal.Signals], cancel: Callable[[], None]) -> None:
    async for _ in signals:
        cancel()
        return


class _Terminal:
    """The operator who waits for an approval of a command of their own: Ctrl-C takes it back."""

    withdraws = True

    async def pending(self, waiting: Mapping[str, Any]) -> bool | None:
        """Say on stderr what it waits for."""
        sys.stderr.write(f"fumehood: waits for approval: `fumehood approvals show {waiting['id']}`\n")
        return None


def as_object(outcome: Outcome) -> dict[str, Any]:
    """The object that --json prints."""
    return {
        "task": outcome.task,
        "outcome": outcome.result.value,
        "reason": None if outcome.reason is None else outcome.reason.value,
        "detail": outcome.detail,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "stdout": _text(outcome.stdout),
        "stderr": _text(outcome.stderr),
        "truncated": {"stdout": outcome.stdout_truncated, "stderr": outcome.stderr_truncated},
        "engine": outcome.engine,
        "container": outcome.container,
        "usage": asdict(outcome.usage),
        "timings_ms": dict(outcome.timings_ms),
        "files": [asdict(change) for change in outcome.files],
        "pending": outcome.pending,
    }


def exit_status(outcome: Outcome) -> int:
    """The process's exit status: the tool's own, or what says how it was ended."""
    if outcome.result is Result.REFUSED:
        return REFUSED
    if outcome.result is Result.KILLED:
        return TIMED_OUT if outcome.reason in {Reason.WALL, Reason.IDLE} else KILLED
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.exit_code is not None and (outcome.exit_code or outcome.result is Result.OK):
        return outcome.exit_code
    if outcome.reason is Reason.NOT_EXECUTABLE:
        return 127
    return REFUSED


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(as_object(outcome)) + "\n")
    elif outcome.reason not in {None, Reason.EXIT_NONZERO}:
        reason = outcome.reason
        what = outcome.detail or reason.meaning
        sys.stderr.write(f"fumehood: {reason.value}: {what}. {outcome.remedy or reason.remedy}\n")
    elif outcome.pending:
        sys.stderr.write(f"fumehood: {outcome.detail}; see `fumehood diff {outcome.task}`\n")
    sys.stdout.flush()


def _pass_through(stream: str, chunk: bytes) -> None:
    target = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
    with contextlib.suppress(BrokenPipeError):
        target.write(chunk)
        target.flush()


def _refused(error: FumehoodError) -> Outcome:
    return Outcome(
        task="", result=Result.REFUSED, reason=error.reason, detail=error.detail, remedy=error.remedy or error.reason.remedy
    )


def _pair(text: str) -> tuple[str, str]:
    source, colon, target = text.partition(":")
    if not (source and colon and target):
        raise FumehoodError(Reason.BAD_REQUEST, f"{text!r} is not SRC:DST")
    return source, target


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FumehoodError(Reason.BAD_REQUEST, f"{path}: {error.strerror}") from error


def _text(data: bytes) -> str | dict[str, str]:
    """UTF-8 text, or what JSON can carry of anything else."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
