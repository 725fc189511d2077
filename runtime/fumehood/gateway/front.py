"""What a client's request becomes: a listing from the pinned catalogue, or one call in a box of its own.

Invariants: a tool that the profile does not allow is neither listed nor called, and asking for it starts nothing; the
arguments that were judged are the arguments that are sent; every call, refused or not, leaves a closed record; a result
tells its task. Knows nothing of the SDK and nothing of boxes: `adapter` is before it, `run_call` behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fumehood.execution import ServerStreams
from fumehood.gateway import catalogue, exchange, results
from fumehood.gateway.catalogue import Catalogue, Shelf, UnreadError
from fumehood.gateway.exchange import ClientFacts, Progress, Said
from fumehood.gateway.protocol import INVALID_PARAMS, TASK_KEY, Era, GatewayError, printable
from fumehood.model import Deny, Outcome, Profile, Result, Sender, ToolCall, WorkspaceMode
from fumehood.reasons import Reason

Converse = Callable[[ServerStreams], Awaitable[Any]]
Run = Callable[[ToolCall, tuple[str, ...], Converse], Awaitable[Outcome]]
Refuse = Callable[[ToolCall, Deny], Awaitable[Outcome]]

# A list may be kept as long as a person waits: the catalogue lives as long as the gateway, not as long as the client.
LIST_TTL_MS = 60_000
_log = logging.getLogger("fumehood")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one gateway serves: one server's command, under one profile, for one sender."""

    profile: Profile
    argv: tuple[str, ...]
    sender: Sender
    workspace_fd: int | None = None
    workspace_path: str | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """The asking side: how it speaks, and the capabilities that it declared, as it declared them."""

    era: Era
    capabilities: Mapping[str, Any]


class Gateway:
    """One server behind one front. `run` and `refuse` are `run_call` with an Exchange, and a record of a refusal."""

    def __init__(self, served: Served, run: Run, refuse: Refuse, new_task: Callable[[], str]) -> None:
        """Serve `served`; nothing is started before the first request needs it."""
        self._served = served
        self._run = run
        self._refuse = refuse
        self._new_task = new_task
        self._shelf = Shelf()

    async def list_tools(self, client: Client, params: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `tools/list`. Raises `GatewayError`."""
        if params.get("cursor") is not None:
            raise GatewayError(INVALID_PARAMS, "Invalid cursor: the list has one page")
        try:
            pinned = await self._catalogue(client)
        except UnreadError as error:
            raise results.error_of(error.outcome) from error
        listed: dict[str, Any] = {"tools": pinned.listed(self._served.profile.tools)}
        if client.era.modern:
            listed |= {"ttlMs": LIST_TTL_MS, "cacheScope": "private"}
        return results.finished(listed, {}, modern=client.era.modern)

    async def call_tool(self, client: Client, params: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        """The result of `tools/call`. Raises `GatewayError`."""
        name, arguments = params.get("name"), params.get("arguments")
        arguments = {} if arguments is None else arguments
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise GatewayError(INVALID_PARAMS, "Invalid params: a name and an object of arguments are needed")
        if params.get("requestState") is not None or params.get("inputResponses") is not None:
            raise GatewayError(INVALID_PARAMS, "Invalid params: nothing was asked that this could answer")
        modern = client.era.modern
        call = self._call(name, arguments)
        try:
            pinned = await self._judge(client, call)
        except UnreadError as error:
            return self._told(error.outcome, modern=modern)
        if isinstance(pinned, Deny):
            outcome = await self._refuse(call, pinned)
            if pinned.reason in (Reason.TOOL_UNKNOWN, Reason.TOOL_NOT_ALLOWED):
                raise GatewayError(INVALID_PARAMS, results.sentence(outcome), results.facts(outcome))
            return self._told(outcome, modern=modern)
        facts = self._facts(client)
        talk = partial(
            exchange.call_tool, client=facts, era=pinned.era, name=name, arguments=arguments, progress=progress
        )
        return self._told(await self._run(call, self._served.argv, talk), modern=modern)

    async def _judge(self, client: Client, call: ToolCall) -> Catalogue | Deny:
        """The catalogue that the call was judged by, or why it is refused. Raises `UnreadError`."""
        allowed, name = self._served.profile.tools, call.tool or ""
        shown = printable(name, 80)
        if allowed is not None and name not in allowed:
            # Before the catalogue: a refused name must not cost a box, nor tell whether the server has such a tool.
            detail = f"the profile does not allow the tool {shown!r}"
            return Deny(reason=Reason.TOOL_NOT_ALLOWED, rule="gateway.allow", detail=detail)
        pinned = await self._catalogue(client)
        tool = pinned.tools.get(name)
        if tool is None:
            return Deny(reason=Reason.TOOL_UNKNOWN, rule="gateway.catalogue", detail=f"there is no tool {shown!r}")
        if tool.schema is None:
            detail = f"the input schema of {shown!r} cannot be judged: {tool.unusable}"
            return Deny(reason=Reason.SCHEMA_UNUSABLE, rule="gateway.schema", detail=detail)
        if (fault := tool.schema.fault(call.arguments)) is not None:
            return Deny(reason=Reason.ARGUMENTS_INVALID, rule="gateway.schema", detail=fault)
        return pinned

    async def _catalogue(self, client: Client) -> Catalogue:
        facts = self._facts(client)

        async def reading(probe: bool) -> Outcome:
            call = self._call(None, {})
            return await self._run(call, self._served.argv, partial(catalogue.read, client=facts, probe=probe))

        return await self._shelf.get(client.capabilities, reading)

    def _facts(self, client: Client) -> ClientFacts:
        mounted = self._served.profile.filesystem.workspace is not WorkspaceMode.NONE
        return ClientFacts(client.capabilities, workspace=mounted)

    def _call(self, tool: str | None, arguments: Mapping[str, Any]) -> ToolCall:
        served = self._served
        return ToolCall(
            task=self._new_task(),
            tool=tool,
            arguments=arguments,
            sender=served.sender,
            profile=served.profile if tool is not None else catalogue.reading_profile(served.profile),
            workspace_fd=served.workspace_fd,
            workspace_path=served.workspace_path,
            front_door="gateway" if tool is not None else "catalogue",
        )

    @staticmethod
    def _told(outcome: Outcome, *, modern: bool) -> dict[str, Any]:
        if outcome.result is not Result.OK or not isinstance(outcome.value, Said):
            _log.warning("task %s: %s", outcome.task, results.sentence(outcome))
            return results.unsuccessful(outcome, modern=modern)
        said = outcome.value
        if said.stray_frames:
            _log.warning("task %s: %d lines of the server's output were no messages", outcome.task, said.stray_frames)
        if outcome.pending:
            _log.warning("task %s: its changes wait: `fumehood commit %s`", outcome.task, outcome.task)
        return results.finished(said.result, {TASK_KEY: outcome.task}, modern=modern)
