"""What a client's request becomes: a page of a pinned list, or one call in a box.

`Gateway.answer` is the one door, for every transport and every era. Invariants: names of one server are bare, those of
several carry `server__`, so that no two can meet; a result tells its task; what a client may be asked in mid-call
goes through `relay`; a call whose client must come back for it is kept in `ongoing`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.abc

from fumehood.denial import Asked
from fumehood.gateway import files, kept, lists, repeating, results
from fumehood.gateway.catalogue import Catalogue, UnreadError
from fumehood.gateway.events import LIST_KINDS, Event, Events, ListKind
from fumehood.gateway.exchange import Said
from fumehood.gateway.kept import KeptResults
from fumehood.gateway.ongoing import Calls, Ongoing, described
from fumehood.gateway.peer import Channel, Client
from fumehood.gateway.pending import Telling, takes_forms
from fumehood.gateway.pinning import Pinning
from fumehood.gateway.pool import Pool
from fumehood.gateway.protocol import (
    INVALID_PARAMS,
    LOG_LEVEL_KEY,
    LOG_LEVELS,
    METHOD_NOT_FOUND,
    REPEATS_KEY,
    SESSION_KEY,
    TASK_KEY,
    TASKS_EXTENSION,
    GatewayError,
    printable,
    takes_tasks,
)
from fumehood.gateway.relay import ClientRelay
from fumehood.gateway.renewal import Renewal
from fumehood.gateway.routes import Routes
from fumehood.gateway.served import Served
from fumehood.gateway.sessions import Sessions
from fumehood.gateway.upstream import Refuse, Run, Upstream, Wanted, failed
from fumehood.model import Kind, Outcome, Oversize
from fumehood.policies.known import UNTRUSTED
from fumehood.policies.labels import labels_in
from fumehood.ports import Ports
from fumehood.reasons import Reason

TASK_PATIENCE_S = 10.0
PINS_WATCH_S = 2.0
MAX_SUBSCRIPTIONS = 256
LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
CALLS = {
    "tools/call": Kind.TOOL,
    "prompts/get": Kind.PROMPT,
    "resources/read": Kind.RESOURCE,
    "completion/complete": Kind.COMPLETION,
}
METHODS = frozenset(
    {
        *LISTS, *CALLS, "resources/subscribe", "resources/unsubscribe", "logging/setLevel",
        "tasks/get", "tasks/update", "tasks/cancel",
    }
)  # fmt: skip
_NEEDS = {"prompts": "prompts", "resources": "resources", "completion": "completions"}
_log = logging.getLogger("fumehood")


class Gateway:
    """Servers behind one front, for any number of clients. Make it with `open_gateway`."""

    def __init__(
        self, servers: Sequence[Served], run: Run, refuse: Refuse, new_task: Callable[[], str],
        tasks: anyio.abc.TaskGroup, ports: Ports,
    ) -> None:  # fmt: skip
        """Serve `servers`; nothing is started before the first request needs it."""
        self.events = Events()
        self._run = run
        self._refuse = refuse
        self._new_task = new_task
        self._ports = ports
        self._sessions = Sessions(tasks, run, ports.residences)
        self._kept = KeptResults(ports.ledger)
        self._pinning = partial(Pinning, ledger=ports.ledger, images=ports.images)
        self._tasks = tasks
        self._calls = Calls(tasks, self._kept, self._changed)
        self._levels: dict[str, str] = {}
        self._subscribed: dict[str, set[str]] = {}
        self._routes = Routes([self._upstream(served) for served in servers])

    def _upstream(self, served: Served) -> Upstream:
        pool = Pool(served.name, served.profile, tasks=self._tasks, run=self._run, new_task=self._new_task, ports=self._ports)
        pinning = self._pinning(served)
        known = self._ports.known
        upstream = Upstream(served, self._run, self._refuse, self._new_task, self._sessions, self._kept, pool, pinning, known)
        upstream.renewal = Renewal(self._tasks, upstream.renew, partial(self._relisted, upstream))
        return upstream

    def serve(self, servers: Sequence[Served]) -> None:
        """Serve these from now on. Calls under way end under what they began with; what did not change keeps its pins."""
        before = self._routes.upstreams
        known = {upstream.served.identity: upstream for upstream in before}
        self._routes = Routes([known.get(served.identity) or self._upstream(served) for served in servers])
        for upstream in set(before) - set(self._routes.upstreams):
            upstream.retire()
        for kind in LIST_KINDS:
            self.events.publish(Event(kind))

    async def answer(self, client: Client, method: str, params: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
        """The result of one request. Raises `GatewayError`."""
        if _NEEDS.get(method.partition("/")[0], "tools") not in self.capabilities(client):
            # Whatever runs server code is off unless a profile allows some of it.
            raise GatewayError(METHOD_NOT_FOUND, f"Method not found: no profile allows {printable(method, 80)}")
        if method in LISTS:
            return await self._list(client, method, params)
        if method in CALLS:
            return await self._call(client, method, params, channel)
        if method.startswith("tasks/") and method in METHODS:
            return await self._task(client, method, params)
        if method in METHODS:
            return results.finished(self._of_connection(client, method, params), {}, modern=client.era.modern)
        raise GatewayError(METHOD_NOT_FOUND, f"Method not found: {printable(method, 80)}")

    @property
    def methods(self) -> frozenset[str]:
        """The methods that `answer` knows."""
        return METHODS

    def capabilities(self, client: Client) -> dict[str, Any]:
        """What the gateway declares, by what the profiles allow: no server is started for it."""
        profiles = [upstream.profile for upstream in self._routes.upstreams]
        shown: dict[str, Any] = {"tools": {"listChanged": True}}
        for kind in ("prompts", "resources"):
            if any(getattr(profile, kind) != frozenset() for profile in profiles):
                shown[kind] = {"listChanged": True}
        if any(profile.results is Oversize.SPILL for profile in profiles):
            shown.setdefault("resources", {})  # there may be results to read
        if "resources" in shown:
            shown["resources"]["subscribe"] = True
        if any(profile.completion for profile in profiles):
            shown["completions"] = {}
        shown["logging"] = {}
        if client.era.modern:
            shown["extensions"] = {TASKS_EXTENSION: {}}
        return shown

    async def input_schema(self, client: Client, name: str) -> Mapping[str, Any] | None:
        """A tool's input schema, or None where the call itself will say what is wrong: not allowed, not there, unread."""
        try:
            return await self._routes.input_schema(name, client)
        except (GatewayError, UnreadError):
            return None

    async def ended(self, connection: str) -> None:
        """Forget a connection that is over, and end its sessions."""
        self._levels.pop(connection, None)
        self._subscribed.pop(connection, None)
        await self._sessions.ended(connection)

    async def watch_pins(self) -> None:
        """Tell clients when the operator has accepted a tool that was blocked. Where nothing is, nobody is asked."""
        while True:
            await anyio.sleep(PINS_WATCH_S)
            for upstream in self._routes.upstreams:
                with suppress(GatewayError):  # told to whoever calls
                    if await upstream.decided():
                        self._relisted(upstream, "tools")

    async def close(self) -> None:
        """End every session, in order, and whatever stands by."""
        async with anyio.create_task_group() as tasks:
            for upstream in self._routes.upstreams:
                tasks.start_soon(upstream.close)
            await self._sessions.end_all()

    async def _list(self, client: Client, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[Upstream, Catalogue] = {}
        failures: list[GatewayError] = []

        async def read(upstream: Upstream) -> None:
            try:
                found[upstream] = await (upstream.offered if method == "tools/list" else upstream.catalogue)(client)
                upstream.expect_call(client, found[upstream])
            except UnreadError as error:
                failures.append(results.error_of(error.outcome, _listing(upstream)))
            except GatewayError as error:
                failures.append(error)
            else:
                return
            _log.warning("the server %s is not listed: %s", upstream.name, failures[-1].message)

        routes = self._routes
        async with anyio.create_task_group() as tasks:
            for upstream in routes.upstreams:
                tasks.start_soon(read, upstream)
        if failures and not found:
            raise failures[0]
        member = LISTS[method]
        entries = routes.listed(member, found)
        page = lists.page(member, entries, params.get("cursor"), modern=client.era.modern)
        return results.finished(page, {}, modern=client.era.modern)

    async def _call(
        self, client: Client, method: str, params: Mapping[str, Any], channel: Channel
    ) -> dict[str, Any]:
        if method == "resources/read" and isinstance(uri := params.get("uri"), str) and uri.startswith(kept.SCHEME):
            read = await self._kept.read(client.sender, uri) | {"ttlMs": 0, "cacheScope": "private"}
            return results.finished(read, {}, modern=client.era.modern)
        given = params.get("_meta")
        meta: Mapping[str, Any] = given if isinstance(given, dict) else {}
        bound = _bound(method, params)
        if (state := params.get("requestState")) is not None:
            answers = params.get("inputResponses")
            if not isinstance(state, str) or not isinstance(answers, dict):
                raise GatewayError(INVALID_PARAMS, "Invalid params: inputResponses is needed with requestState")
            return await self._calls.go_on(client.sender, bound, state, answers)
        try:
            route = await self._routes.of(CALLS[method], params, client)
        except UnreadError as error:
            raise results.error_of(error.outcome, Asked(kind=CALLS[method].value)) from error
        level = self._level(client, meta)
        session = meta.get(SESSION_KEY)
        key = repeating.key_of(meta)
        wanted = replace(
            route.wanted, method=method, log_level=level, session=session if isinstance(session, str) else None,
            key=key, digest=None if key is None else repeating.digest_of(method, params),
        )  # fmt: skip
        if (unasked := params.get("inputResponses")) is not None:
            # A server of 2026-07-28 need not keep a state; then the answers are arguments like any other.
            ask = route.upstream.profile.ask
            if not isinstance(unasked, dict) or not ask.anything:
                raise GatewayError(INVALID_PARAMS, "Invalid params: nothing was asked that this could answer")
            wanted = replace(wanted, params={**wanted.params, "inputResponses": unasked})
        return await self._carried(client, route.upstream, wanted, bound, channel, _token(meta))

    async def _carried(
        self, client: Client, upstream: Upstream, wanted: Wanted, bound: str, channel: Channel, token: str | int | None
    ) -> dict[str, Any]:
        """Run a call in its request, or apart from it when its client may have to come back for it."""
        ask = upstream.profile.ask
        may_ask = client.era.modern and ask.anything and wanted.kind is not Kind.COMPLETION
        may_tell = client.era.modern and takes_forms(client.capabilities)
        as_task = client.era.modern and wanted.kind is Kind.TOOL and takes_tasks(client.capabilities)
        call = upstream.call_of(client, wanted)

        async def carry(ongoing: Ongoing | None) -> dict[str, Any]:
            relay = ClientRelay(
                client, channel, server=upstream.name, ask=ask, progress_token=token, log_level=wanted.log_level,
                round_trip=ongoing.ask if ongoing is not None and may_ask else None,
                on_updated=lambda uri: self._updated(client, uri), on_relisted=lambda: upstream.relisted(client),
            )  # fmt: skip
            requester = Telling(
                client, channel, relay, round_trip=ongoing.ask if ongoing is not None and may_tell else None,
                waits=(lambda _: None) if ongoing is None else ongoing.wait_for,
                withdrawn=lambda: ongoing is not None and ongoing.withdrawn,
            )  # fmt: skip
            outcome, handle = await upstream.carry(client, wanted, call, relay, requester)
            return _told(outcome, wanted, upstream, handle, modern=client.era.modern)

        if not (may_ask or may_tell or as_task) and wanted.key is None:
            return await carry(None)
        ongoing = Ongoing(client.sender, bound, call.task)
        if wanted.key is not None:
            ongoing.goes_on = client.has_left  # a stream that ends may only have been lost, and its client comes back
        return await self._calls.begin(ongoing, carry, patience_s=TASK_PATIENCE_S if as_task else None)

    async def _task(self, client: Client, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        task = params.get("taskId")
        call = self._calls.task(client.sender, task)
        shown = None if call is None else described(call)
        if shown is None and isinstance(task, str):
            shown = await self._kept.task(client.sender, task)
        if shown is None:
            raise GatewayError(INVALID_PARAMS, "Invalid params: there is no such task")
        if method == "tasks/get":
            return results.finished(shown, {}, modern=True)
        if method == "tasks/update" and not isinstance(params.get("inputResponses"), dict):
            raise GatewayError(INVALID_PARAMS, "Invalid params: inputResponses is needed")
        if call is not None and method == "tasks/cancel":
            call.withdrawn = True
            call.scope.cancel()
        elif call is not None:
            call.answer(params["inputResponses"])
        return results.finished({}, {}, modern=True)

    def _of_connection(self, client: Client, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """What only concerns the client's own connection, and runs no server's code."""
        connection = client.connection
        if connection is None:
            raise GatewayError(METHOD_NOT_FOUND, f"{method} needs a connection that lasts")
        if method == "logging/setLevel":
            level = params.get("level")
            if level not in LOG_LEVELS:
                raise GatewayError(INVALID_PARAMS, f"Invalid params: a level is one of {', '.join(LOG_LEVELS)}")
            self._levels[connection] = level
            return {}
        uri = params.get("uri")
        if not isinstance(uri, str):
            raise GatewayError(INVALID_PARAMS, "Invalid params: a uri is needed")
        mine = self._subscribed.setdefault(connection, set())
        if method == "resources/unsubscribe":
            mine.discard(uri)
        elif not self._routes.may_read(uri):
            raise GatewayError(INVALID_PARAMS, f"no profile allows the resource {printable(uri, 200)!r}")
        elif len(mine) >= MAX_SUBSCRIPTIONS:
            raise GatewayError(INVALID_PARAMS, f"at most {MAX_SUBSCRIPTIONS} resources can be subscribed to")
        else:
            mine.add(uri)
        return {}

    def _level(self, client: Client, meta: Mapping[str, Any]) -> str | None:
        if client.era.modern:
            level = meta.get(LOG_LEVEL_KEY)
            return level if level in LOG_LEVELS else None
        return self._levels.get(client.connection or "")

    def _updated(self, client: Client, uri: str) -> None:
        if self._routes.may_read(uri):
            connections = frozenset(name for name, uris in self._subscribed.items() if uri in uris)
            self.events.publish(Event("resource", uri, client.sender, connections))

    def _changed(self, task: Ongoing) -> None:
        self.events.publish(Event("task", task.task, task.sender))

    def _relisted(self, upstream: Upstream, kind: ListKind) -> None:
        _log.warning("the %s of the server %s are others now than they were", kind, upstream.name)
        self.events.publish(Event(kind))


@asynccontextmanager
async def open_gateway(
    servers: Sequence[Served], run: Run, refuse: Refuse, new_task: Callable[[], str], ports: Ports
) -> AsyncIterator[Gateway]:
    """A gateway for the length of the body; its sessions are ended, and its calls cancelled, with it."""
    async with anyio.create_task_group() as tasks:
        gateway = Gateway(servers, run, refuse, new_task, tasks, ports)
        tasks.start_soon(gateway.watch_pins)
        try:
            yield gateway
        finally:
            with anyio.CancelScope(shield=True):
                await gateway.close()
            tasks.cancel_scope.cancel()


def _told(outcome: Outcome, wanted: Wanted, upstream: Upstream, handle: str | None, *, modern: bool) -> dict[str, Any]:
    """What the client gets of an outcome: of a tool a result in any case, of anything else an error when it failed."""
    if outcome.repeats is not None:
        told = _told(outcome.repeats, wanted, upstream, handle, modern=modern)
        return {**told, "_meta": {**told["_meta"], TASK_KEY: outcome.task, REPEATS_KEY: outcome.repeats.task}}
    profile = upstream.profile
    if failed(outcome):
        asked = Asked(kind=wanted.kind.value, name=printable(wanted.name, 200), server=upstream.name, profile=profile.name)
        denial = results.denial(outcome, asked)
        _log.warning("task %s: %s %s", outcome.task, denial.sentence(), json.dumps(denial.fields()))
        named = outcome.reason in (Reason.TOOL_UNKNOWN, Reason.TOOL_NOT_ALLOWED, Reason.SERVER_ERROR)
        if wanted.kind is not Kind.TOOL or named:
            raise results.error_of(outcome, asked)
        return results.unsuccessful(denial, modern=modern)
    said: Said = outcome.value
    if said.stray_frames:
        _log.warning("task %s: %d lines of the server's output were no messages", outcome.task, said.stray_frames)
    if outcome.pending:
        _log.warning("task %s: its changes wait: `fumehood commit %s`", outcome.task, outcome.task)
    ours = {TASK_KEY: outcome.task} | ({} if handle is None else {SESSION_KEY: handle})
    told = said.result
    if said.long is not None:
        told = results.linked(outcome.task, said.long, profile.limits.result_bytes)
    if wanted.kind is Kind.TOOL and (changed := files.links(outcome, profile)):
        told = {**told, "content": [*told["content"], *changed]}
    labels = labels_in(profile, wanted.name if wanted.kind is Kind.TOOL else f"{wanted.kind.value}:{wanted.name}")
    returns = UNTRUSTED if UNTRUSTED in labels else None
    return results.finished(told, results.labelled(ours, returns), modern=modern)


def _listing(upstream: Upstream) -> Asked:
    return Asked(kind="list", server=upstream.name, profile=upstream.profile.name)


def _bound(method: str, params: Mapping[str, Any]) -> str:
    """What a later round of the same request must repeat: everything but the answers and the envelope."""
    fixed = {name: value for name, value in params.items() if name not in {"_meta", "inputResponses", "requestState"}}
    return hashlib.sha256(json.dumps([method, fixed], sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def _token(meta: Mapping[str, Any]) -> str | int | None:
    token = meta.get("progressToken")
    return token if type(token) in (str, int) else None
