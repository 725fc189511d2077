"""One MCP server behind the gateway: its catalogue, and every request to it as a call in a box, or through a gate (rule 8).

Invariants: what the profile does not allow is neither listed nor called, and asking for it starts nothing; the
arguments that were judged are the arguments that are sent; every request that runs the server's code is a call with a
record, whatever its method is. Knows nothing of the SDK and nothing of boxes: `front` is before it, `run_call` behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fumehood.admission.policy import WORKSPACE_FILES, permits
from fumehood.execution import Call, Command, Exchange, Streams, Visit, Work
from fumehood.gateway import catalogue, envelope, exchange, files, fitting, repeating
from fumehood.gateway.bounds import excess
from fumehood.gateway.catalogue import Catalogue, Shelf, UnreadError
from fumehood.gateway.events import ListKind
from fumehood.gateway.exchange import ClientFacts, Relay, Said, Spill
from fumehood.gateway.kept import KeptResults
from fumehood.gateway.patience import Patience
from fumehood.gateway.peer import Client
from fumehood.gateway.pinning import Pinning, stamped
from fumehood.gateway.pool import Order, Pool
from fumehood.gateway.protocol import MODERN_VERSIONS, TASKS_EXTENSION, Era, printable
from fumehood.gateway.renewal import Renewal
from fumehood.gateway.served import Served
from fumehood.gateway.sessions import Sessions
from fumehood.gateway.streamable import Manner, speak
from fumehood.memory import Memory
from fumehood.model import Ask, Deny, Kind, Outcome, Oversize, Profile, Result, Scope, Sender, ToolCall, WorkspaceMode
from fumehood.ports import Requester
from fumehood.reasons import Reason
from fumehood.screening.judging import Screen
from fumehood.screening.known import KnownSecrets

SPILL_FACTOR = 16
SPILL_BYTES = 2**30
Run = Callable[[ToolCall, Work], Awaitable[Outcome]]
Refuse = Callable[[ToolCall, Deny], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request to a server. `name` is what the profile judges: a tool's or prompt's name, a URI; `params` go upstream.

    `key` is the client's idempotency key for the request whose digest is `digest`.
    """

    kind: Kind
    method: str
    name: str
    params: Mapping[str, Any]
    arguments: Mapping[str, Any]
    session: str | None = None
    log_level: str | None = None
    key: str | None = None
    digest: str | None = None


class Upstream:
    """One server. `run` is `run_call`; `refuse` makes the record of what the gateway itself refuses."""

    def __init__(
        self, served: Served, run: Run, refuse: Refuse, new_task: Callable[[], str], sessions: Sessions, kept: KeptResults,
        pool: Pool, pinning: Pinning, known: KnownSecrets,
    ) -> None:  # fmt: skip
        """Start nothing before the first request needs it."""
        self.served = served
        self._run = run
        self._refuse = refuse
        self._new_task = new_task
        self._sessions = sessions
        self._kept = kept
        self._pool = pool
        self._pinning = pinning
        self._known = known
        self._patience = Patience()
        self._shelf = Shelf(pinning.pinned, lambda: pinning.image)
        self.renewal: Renewal | None = None

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self.served.name

    @property
    def profile(self) -> Profile:
        """What the operator allows it."""
        return self.served.profile

    async def catalogue(self, client: Client) -> Catalogue:
        """What the server has, as it says to a client that declares this. Raises `UnreadError` or `GatewayError`."""
        facts = self._facts(client)
        reading = partial(self._read, client, facts.capabilities)
        return await self._shelf.get(facts.capabilities, modern=client.era.modern, reading=reading)

    def expect_call(self, client: Client, pinned: Catalogue) -> None:
        """A client has seen the lists, so a call may follow: have servers stand by."""
        self._pool.fill(self._order(client, pinned.greeting.era))

    def retire(self) -> None:
        """It is served no more: nothing of it stands by."""
        self._pool.retire()

    async def close(self) -> None:
        """Retire it, and return when what stood by is gone."""
        await self._pool.close()

    async def offered(self, client: Client) -> Catalogue:
        """The catalogue with those tools only that may be called now. Raises as `catalogue`."""
        return await self._pinning.offered(await self.catalogue(client))

    async def decided(self) -> bool:
        """Whether the operator has decided since on tools that were blocked. Raises `GatewayError`."""
        return await self._pinning.decided(self._shelf.catalogues)

    def relisted(self, client: Client) -> None:
        """The server said in this client's call that a list of its has changed."""
        if self.renewal is not None:
            self.renewal.hint(client)

    async def renew(self, client: Client) -> frozenset[ListKind]:
        """Read its lists again, for this client's sender; which have changed."""
        changed = await self._shelf.renew(partial(self._read, client))
        if changed:
            self._pool.drain()  # they were started as another server than it is now
        return changed

    async def _read(self, client: Client, capabilities: Mapping[str, Any], image: str | None, probe: bool) -> Outcome:
        profile = catalogue.reading_profile(self.profile)
        call = replace(
            self._call(client.sender, Kind.COMMAND, None, {}), profile=profile, front_door="catalogue", image_digest=image
        )
        facts = replace(self._facts(client), capabilities=capabilities)
        converse = partial(catalogue.read, client=facts, profile=profile, probe=probe)
        if not probe:
            return await self._run(call, self._work(converse))
        # Of 2026-07-28 one that stands by for calls will do: what a client declares is told it with each question.
        return await self._fresh(call, self._order(client, Era(MODERN_VERSIONS[-1])), self._work(converse), Visit(converse))

    async def _fresh(self, call: ToolCall, order: Order, work: Work, visit: Visit) -> Outcome:
        """Run a call in a box that no other call has: one whose server stood by as ordered, or a new one."""
        standby = self._pool.take(order.key)
        if standby is None:
            return await self._run(call, work)
        try:
            return await self._run(replace(call, standby=standby.task), visit)
        finally:
            standby.end()

    def call_of(self, client: Client, wanted: Wanted) -> ToolCall:
        """The call that a request becomes."""
        call = self._call(client.sender, wanted.kind, wanted.name, wanted.arguments)
        # A repeat must equal it. A signature covers most of `_meta` too; else that may differ: it tells the repeat's own era.
        signed = client.proof is not None and client.proof.method == envelope.METHOD
        digest = client.request_digest if signed else wanted.digest or client.request_digest
        return replace(call, request_digest=digest, proof=client.proof, idempotency_key=wanted.key)

    async def carry(
        self, client: Client, wanted: Wanted, call: ToolCall, relay: Relay, requester: Requester
    ) -> tuple[Outcome, str | None]:
        """Judge a call and run it: its outcome, and the handle of a session that began with it.

        Raises `GatewayError` for a handle of no session.
        """
        wanted, call = self._without_secrets(wanted, call)
        if wanted.kind is Kind.RESOURCE and wanted.name.startswith(WORKSPACE_FILES):
            return await self._file(wanted, call, requester), None
        try:
            pinned = await self._judge(client, wanted, call)
            if isinstance(pinned, Deny):
                return await self._refuse(call, pinned), None
            call = stamped(call, pinned)
            facts = replace(self._facts(client), log_level=wanted.log_level)
            tool = pinned.tools.get(wanted.name) if wanted.kind is Kind.TOOL else None
            converse = partial(
                fitting.request, tool=tool, client=facts, greeting=pinned.greeting, method=wanted.method, params=wanted.params,
                relay=relay, spill=self._spill(wanted, call),
            )  # fmt: skip
            if self.profile.scope is Scope.CALL:
                ask = self.profile.ask
                schema = None if tool is None else tool.definition.get("inputSchema")
                work = self._work(converse, schema, may_ask=ask.anything, requester=requester)
                order = self._order(client, pinned.greeting.era)
                try:
                    visit = Visit(partial(converse, greeted=True), repeating.RECALL, requester)
                    outcome = await self._fresh(call, order, work, visit)
                finally:
                    self._pool.fill(order)  # not earlier: what starts now would take this call's processor time
                return self._told(client, _honest(outcome, wanted, pinned)), None
            hosting = replace(
                self._call(client.sender, Kind.SESSION, None, {}), front_door="session", image_digest=pinned.image
            )
            session, handle = await self._sessions.of(
                hosting, self.name, connection=client.connection, handle=wanted.session, argv=self.served.argv,
                greeting=pinned.greeting, facts=facts,
            )  # fmt: skip
        except UnreadError as error:
            return error.outcome, None
        if session.outcome is not None and session.residence.is_over:
            return session.outcome, None
        visit = Visit(partial(converse, greeted=True), repeating.RECALL, requester)
        outcome = await self._run(replace(call, session=session.task), visit)
        return self._told(client, _honest(outcome, wanted, pinned)), handle

    def _without_secrets(self, wanted: Wanted, call: ToolCall) -> tuple[Wanted, ToolCall]:
        """The request without the secrets in its arguments, if the profile has them removed: what is judged is what is sent."""
        arguments = Screen(call, self._known).redacted_arguments(call.arguments)
        if arguments is call.arguments:
            return wanted, call
        params = {**wanted.params, "arguments": arguments} if "arguments" in wanted.params else arguments
        return replace(wanted, arguments=arguments, params=params), replace(call, arguments=arguments)

    def _told(self, client: Client, outcome: Outcome) -> Outcome:
        """What was refused for its pin may have been judged by a list that is out of date: then it is read again."""
        if outcome.reason is Reason.TOOL_CHANGED:
            self.relisted(client)
        return outcome

    def _order(self, client: Client, era: Era) -> Order:
        """How a server is started before its call: told nothing of it, but in the older eras what the client declares."""
        facts = self._facts(client)
        if era.modern:
            facts = replace(facts, capabilities={})  # each request says them anew
        key = json.dumps([era.version, facts.capabilities], sort_keys=True)
        return Order(key=key, argv=self.served.argv, greet=partial(exchange.awaken, client=facts, era=era))

    def _work(
        self, converse: Callable[[Streams], Awaitable[Any]], schema: Mapping[str, Any] | None = None, *, may_ask: bool = False,
        requester: Requester | None = None,
    ) -> Work:  # fmt: skip
        """A conversation with the server: started in a box, or remote; `schema` is that of the tool that is called."""
        if self.profile.upstream is None:
            return Exchange(self.served.argv, converse, repeating.RECALL, requester)
        used = next((use.source for use in self.profile.credentials), None)
        manner = Manner(result_bytes=self.profile.limits.result_bytes, credential=used, schema=schema, listens=may_ask)
        return Call(partial(speak, manner=manner), converse, repeating.RECALL, requester)

    def _spill(self, wanted: Wanted, call: ToolCall) -> Spill | None:
        """Where a long result goes: only a tool's has a place for a link."""
        if wanted.kind is not Kind.TOOL or self.profile.results is not Oversize.SPILL:
            return None
        most = min(SPILL_FACTOR * self.profile.limits.result_bytes, SPILL_BYTES)
        return Spill(most, partial(self._kept.keep_result, call.task))

    async def _file(self, wanted: Wanted, call: ToolCall, requester: Requester) -> Outcome:
        """A file of the workspace, read in a box that runs nothing of the server's."""
        path = files.path_of(wanted.name)
        shown = printable(wanted.name, 80)
        if not permits(self.profile, Kind.RESOURCE, wanted.name):
            detail = f"the profile does not allow the resource {shown!r}"
            return await self._refuse(call, Deny(reason=Reason.NOT_ALLOWED, rule="gateway.allow", detail=detail))
        if path is None or not files.offered(self.profile) or self.served.workspace_fd is None:
            detail = f"there is no file {shown!r}"
            return await self._refuse(call, Deny(reason=Reason.NOT_KNOWN, rule="gateway.files", detail=detail))
        with Memory() as memory:
            work = Command(("true",), get=((path, memory.fd),), get_bytes=self.profile.limits.result_bytes, requester=requester)
            # Without its key: reading changes nothing, so it may be done as often as it is asked for.
            reading = replace(call, profile=files.reading_profile(self.profile), idempotency_key=None)
            outcome = await self._run(reading, work)
            if outcome.result is Result.OK:
                found = Said(files.contents(wanted.name, path, memory), 0)
                return Screen(reading, self._known).outcome(replace(outcome, value=found), from_server=True)
        return replace(outcome, reason=Reason.NOT_KNOWN) if outcome.reason is Reason.BAD_REQUEST else outcome

    async def _judge(self, client: Client, wanted: Wanted, call: ToolCall) -> Catalogue | Deny:
        """The catalogue that the call was judged by, or why it is refused. Raises `UnreadError`."""
        shown = printable(wanted.name, 80)
        if not permits(self.profile, wanted.kind, wanted.name):
            # Before the catalogue: a refused name must not cost a box, nor tell whether the server has such a thing.
            kind = wanted.kind.value
            reason = Reason.TOOL_NOT_ALLOWED if wanted.kind is Kind.TOOL else Reason.NOT_ALLOWED
            return Deny(reason=reason, rule="gateway.allow", detail=f"the profile does not allow the {kind} {shown!r}")
        if (fault := excess(call.arguments, self.profile.arguments)) is not None:
            return Deny(reason=Reason.ARGUMENTS_INVALID, rule="profile.arguments", detail=fault)
        pinned = await self.catalogue(client)
        match wanted.kind:
            case Kind.TOOL:
                return self._judge_tool(pinned, client.sender, wanted.name, call.arguments) or pinned
            case Kind.PROMPT if wanted.name not in pinned.prompts:
                return Deny(reason=Reason.NOT_KNOWN, rule="gateway.catalogue", detail=f"there is no prompt {shown!r}")
        return pinned

    def _judge_tool(self, pinned: Catalogue, sender: Sender, name: str, arguments: Mapping[str, Any]) -> Deny | None:
        shown = printable(name, 80)
        tool = pinned.tools.get(name)
        if tool is None:
            return Deny(reason=Reason.TOOL_UNKNOWN, rule="gateway.catalogue", detail=f"there is no tool {shown!r}")
        if tool.schema is None:
            return Deny(reason=Reason.SCHEMA_UNUSABLE, rule="gateway.schema", detail=f"the tool {shown!r}: {tool.unusable}")
        if self._patience.is_spent(sender):
            detail = "judging the arguments of this sender's calls has taken too long lately"
            return Deny(reason=Reason.BUSY, rule="gateway.patience", detail=detail, remedy="Try again in some seconds.")
        began_s = time.thread_time()
        fault = tool.schema.fault(arguments)
        self._patience.charge(sender, time.thread_time() - began_s)
        if fault is None:
            return None
        remedy = None
        if fault.undescribed:
            remedy = f"Leave it out; if `{shown}` is to have it, name the place in `arguments.open` of the profile."
        return Deny(reason=Reason.ARGUMENTS_INVALID, rule="gateway.schema", detail=fault.detail, remedy=remedy)

    def _facts(self, client: Client) -> ClientFacts:
        mounted = self.profile.filesystem.workspace is not WorkspaceMode.NONE
        return ClientFacts(presented(client.capabilities, self.profile.ask), workspace=mounted)

    def _call(self, sender: Sender, kind: Kind, name: str | None, arguments: Mapping[str, Any]) -> ToolCall:
        served = self.served
        return ToolCall(
            task=self._new_task(),
            tool=name,
            kind=kind,
            arguments=arguments,
            sender=sender,
            profile=served.profile,
            workspace_fd=served.workspace_fd,
            workspace_path=served.workspace_path,
            front_door="gateway",
            server=served.name,
        )


def _honest(outcome: Outcome, wanted: Wanted, pinned: Catalogue) -> Outcome:
    """Where a tool has an output schema, a link in place of the result is an error: clients hold success against it."""
    if outcome.repeats is not None:
        return replace(outcome, repeats=_honest(outcome.repeats, wanted, pinned))
    said = outcome.value
    if isinstance(said, Said) and said.long is not None and "outputSchema" in pinned.tools[wanted.name].definition:
        return replace(outcome, value=replace(said, long=replace(said.long, is_error=True)))
    return outcome


def presented(declared: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
    """What a server is told that its client can: as declared, less what the profile forbids and what is ours to do.

    A server's lists can vary with it, so it is what the catalogue is pinned by.
    """
    dropped = {kind for kind in ("elicitation", "sampling") if not getattr(ask, kind)} | {"tasks"}
    shown = {name: value for name, value in declared.items() if name not in dropped}
    extensions = shown.get("extensions")
    if isinstance(extensions, dict) and TASKS_EXTENSION in extensions:
        shown["extensions"] = {name: value for name, value in extensions.items() if name != TASKS_EXTENSION}
    return shown


def failed(outcome: Outcome) -> bool:
    """Whether there is nothing of the server's to pass on."""
    return outcome.result is not Result.OK or not isinstance(outcome.value, exchange.Said)
