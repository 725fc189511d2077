"""What a server's author holds: a runtime inside their own process, through which calls and functions run in boxes.

Everything that needs the caller's rights happens in `open`, once: profiles and the sources of all functions that are to be handed over
are found, checked and told to the broker; afterwards the process has no root, and neither a profile nor a source can be added.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from fumehood import app, call, given, launch
from fumehood.delegate.embedding import embedded
from fumehood.delegate.function import Function
from fumehood.delegate.source import Source
from fumehood.execution import Work
from fumehood.faults import FumehoodError
from fumehood.model import Kind, Outcome, Profile, Scope, ToolCall, WorkspaceMode
from fumehood.reasons import Reason
from fumehood.screening.judging import Screen

DEFAULT_PROFILE = "function"
_NEEDS_DIRECTORY = {WorkspaceMode.RO, WorkspaceMode.RW, WorkspaceMode.DIRECT}


@dataclass(frozen=True, slots=True)
class Handed:
    """What `open` has to know of a decorated function: what it is called, its source, and its profile if it has one of its own."""

    tool: str
    source: Source
    profile: str | None


@dataclass(frozen=True, slots=True)
class Runtime(app.Runtime):
    """An open runtime. Make it with `async with Runtime.open(...)`; one at a time in a process."""

    default_profile: str
    profiles: Mapping[str, Profile]
    sources: frozenset[Source]
    workspace_fd: int | None
    workspace_path: str | None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, profile: str = DEFAULT_PROFILE, profiles: Iterable[str] = (), workspace: str | os.PathLike[str] | None = None,
        config: str | None = None, engine: str | None = None,
    ) -> AsyncIterator[Self]:  # fmt: skip
        """A runtime for the length of the body; this process becomes its worker and, if it was root, gives that up FOR GOOD.

        `profile` is for calls that name none; `profiles` names more that calls will use. Open it after all boxed functions
        were imported, with everything that only root could read or import already in memory. Raises FumehoodError.
        """
        if _open or _worker:
            detail = "a runtime is open in this process already" if _open else "this process gave up its rights to a runtime before"
            raise FumehoodError(Reason.UNENFORCEABLE, detail, remedy="Open one runtime for the life of the process.")
        if engine not in {None, "docker", "oci"}:
            raise FumehoodError(Reason.BAD_REQUEST, f"engine {engine}: expected docker or oci")
        place = None if workspace is None else Path(workspace)
        chosen = launch.settings(config)
        directory = given.open_workspace(place)
        try:
            sources = frozenset(one.source for one in handed)
            names = {profile, *profiles, *(one.profile for one in handed if one.profile is not None)}
            for source in sources:
                source.check(chosen.caller_uid, place)
            chosen = launch.with_workspace(chosen, directory)
            # The broker is told now what it may ever mount: a worker that was taken over cannot ask for more.
            chosen = replace(chosen, mount_roots=(*chosen.mount_roots, *sorted(source.path for source in sources)))

            def load() -> dict[str, Profile]:
                loaded = {name: given.load_profile(name, chosen, engine, place) for name in sorted(names)}
                _check(loaded, place)
                if profile == DEFAULT_PROFILE:
                    loaded[profile] = _for_the_decorated(loaded[profile])
                return loaded

            async with embedded(chosen, load) as processes:
                _worker.append(os.getpid())
                async with _own_errors() as own, app.open_runtime(processes) as inner:
                    runtime = cls(
                        ports=inner.ports, sender=inner.sender, default_profile=profile, profiles=processes.loaded, sources=sources,
                        workspace_fd=directory, workspace_path=None if place is None else str(place.absolute()),
                    )  # fmt: skip
                    _open.append(runtime)
                    try:
                        yield runtime
                    except BaseException as error:
                        own.append(error)
                        raise
                    finally:
                        _open.remove(runtime)
        finally:
            if directory is not None:
                os.close(directory)

    def call(self, tool: str | None, arguments: Mapping[str, Any] | None = None, *, profile: str | None = None) -> ToolCall:
        """A new call of `tool` under one of the profiles given to `open`. `tool` None is an ad-hoc command of the author's own."""
        name = profile or self.default_profile
        if name not in self.profiles:
            raise FumehoodError(
                Reason.PROFILE_UNKNOWN, f"the profile {name} was not loaded when the runtime was opened",
                remedy="Name it in Runtime.open(profiles=...).",
            )  # fmt: skip
        chosen = self.profiles[name]
        seen = chosen.filesystem.workspace in _NEEDS_DIRECTORY
        return ToolCall(
            task=self.new_task(), tool=tool, arguments=arguments or {}, sender=self.sender, profile=chosen,
            workspace_fd=self.workspace_fd if seen else None, workspace_path=self.workspace_path if seen else None,
            front_door="delegate", kind=Kind.COMMAND if tool is None else Kind.TOOL,
        )  # fmt: skip

    async def run(self, tool_call: ToolCall, work: Work | Function) -> Outcome:
        """Carry a call through `run_call`. A Function's outcome has its result, or the `Raised` of its exception, as its value."""
        if not isinstance(work, Function):
            return await call.run_call(tool_call, work, self.ports)
        if work.source not in self.sources:
            raise FumehoodError(
                Reason.FUNCTION_UNFIT, f"{work.module}.{work.name} was decorated after the runtime was opened",
                remedy="Import its module before Runtime.open(...).",
            )  # fmt: skip
        # What is judged is what is sent, without secrets where the profile has them removed.
        arguments = Screen(replace(tool_call, arguments=work.arguments), self.ports.known).redacted_arguments(work.arguments)
        if arguments is not work.arguments:
            arguments = work.signature.from_json(arguments)
        work, tool_call = replace(work, arguments=arguments), replace(tool_call, arguments=arguments)
        tool_call = work.call_with_source(tool_call)
        return await call.run_call(tool_call, work.exchange(tool_call), self.ports)


def current() -> Runtime:
    """The open runtime of this process. Raises FumehoodError(RUNTIME_CLOSED)."""
    if not _open:
        raise FumehoodError(Reason.RUNTIME_CLOSED)
    return _open[-1]


handed: list[Handed] = []
_open: list[Runtime] = []
_worker: list[int] = []


@asynccontextmanager
async def _own_errors() -> AsyncIterator[list[BaseException]]:
    """An error of the body, noted in the list, as itself: the task groups that read our sockets wrap it into groups of one."""
    own: list[BaseException] = []
    try:
        yield own
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup) and inner not in own and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        if inner not in own:
            raise
        raise inner from inner.__cause__


def _for_the_decorated(profile: Profile) -> Profile:
    """The profile that ships for functions lists none: where nobody chose another, the author's decoration is the choice."""
    from fumehood.profile.resolve import profile_digest

    if profile.tools != frozenset():
        return profile
    decorated = replace(profile, tools=frozenset(one.tool for one in handed if one.profile is None))
    return replace(decorated, digest=profile_digest(decorated))


def _check(profiles: Mapping[str, Profile], place: Path | None) -> None:
    if sessions := [name for name, profile in profiles.items() if profile.scope is Scope.SESSION]:
        raise FumehoodError(
            Reason.UNENFORCEABLE, f"the profile {sessions[0]} keeps sessions, and a function has a box for each call",
            remedy="Use `scope: call`.",
        )  # fmt: skip
    modes = {profile.filesystem.workspace for profile in profiles.values()}
    if place is not None and not modes & _NEEDS_DIRECTORY:
        raise FumehoodError(
            Reason.WORKSPACE_NOT_ALLOWED, f"none of the profiles {', '.join(profiles)} gives its tools a directory",
            remedy="Leave the workspace out, or allow one in a profile.",
        )  # fmt: skip
