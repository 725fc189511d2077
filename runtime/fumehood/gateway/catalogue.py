"""What a server says it has, read in a box of its own and pinned until a later reading finds something else.

Invariants: a call is judged by this catalogue and never by a list that the client saw (a stateless client calls without
listing, and a server may list something else a second time). A server's list can vary with what its client declares, so
there is one catalogue for each set of capabilities, and few of them. Reading it also finds the era that the server
speaks. Nothing read here may grant anything: `tools.allow` comes from the operator.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from fumehood.execution import Streams
from fumehood.faults import ExchangeFailed
from fumehood.gateway import closing, exchange
from fumehood.gateway.events import LIST_KINDS, ListKind
from fumehood.gateway.exchange import ClientFacts, Conversation, Greeting, ServerAnsweredError
from fumehood.gateway.protocol import METHOD_NOT_FOUND, TOO_MANY_REQUESTS, GatewayError, printable
from fumehood.gateway.schema import CHECK_CPU_S, Schema, SchemaError
from fumehood.model import (
    CommitMode,
    OnHidden,
    OnSecret,
    Outcome,
    PinOf,
    Profile,
    Result,
    Scope,
    Secrets,
    SessionLife,
    WorkspaceMode,
)
from fumehood.reasons import Reason

MAX_ENTRIES = 2048
MAX_PAGES = 100
MAX_NAME_CHARS = 128
MAX_URI_CHARS = 2048
MAX_CATALOGUES = 16
PIN_CPU_S = 5.0

_log = logging.getLogger("fumehood")


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its definition as the server gave it, its pin, and its schemas, or why one of them cannot be judged."""

    definition: Mapping[str, Any]
    schema: Schema | None
    unusable: str = ""
    pin: str | None = None
    output: Schema | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The pinned tools, prompts, resources and templates of one server, for one set of client capabilities.

    `pin_of` is whose the pins are, and `image` the digest of what the server was started from, once `pinning` has pinned it.
    """

    greeting: Greeting
    tools: Mapping[str, Tool]
    prompts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pin_of: PinOf | None = None
    image: str | None = None

    def differs(self, other: Catalogue) -> frozenset[ListKind]:
        """Which lists are not those of the other."""
        told = {
            "tools": self.usable_tools == other.usable_tools,
            "prompts": self.prompts == other.prompts,
            "resources": (self.resources, self.templates) == (other.resources, other.templates),
        }
        return frozenset(kind for kind in LIST_KINDS if not told[kind])

    @property
    def usable_tools(self) -> dict[str, Mapping[str, Any]]:
        """The definitions of tools whose arguments can be judged, unchanged and in the server's order."""
        return {name: tool.definition for name, tool in self.tools.items() if tool.schema is not None}


class UnreadError(Exception):
    """The list could not be read; `outcome` is that of the reading."""

    def __init__(self, outcome: Outcome) -> None:
        """Carry how the reading ended."""
        super().__init__(outcome.task)
        self.outcome = outcome


@dataclass(slots=True)
class _Place:
    """One catalogue, with whom it is for."""

    modern: bool
    capabilities: Mapping[str, Any]
    catalogue: Catalogue


Pin = Callable[[Catalogue, str, str | None], Awaitable[Catalogue]]


class Shelf:
    """The catalogues of one server, by what the client declares."""

    def __init__(self, pin: Pin, image: Callable[[], str | None]) -> None:
        """Hold none yet. `pin` makes what was read the catalogue; `image` is what the server would be started from now."""
        self._pin = pin
        self._image = image
        self._places: dict[str, _Place] = {}
        self._reading = anyio.Lock()

    async def get(
        self, capabilities: Mapping[str, Any], *, modern: bool, reading: Callable[[str | None, bool], Awaitable[Outcome]]
    ) -> Catalogue:
        """The catalogue for these capabilities, read by `reading(probe)` if need be. Raises `UnreadError` or `GatewayError`.

        A server that speaks both eras is spoken to in its client's: it may ask only in the way of the era. What was read from
        an image that has been rebuilt since is read anew.
        """
        key = json.dumps([modern, capabilities], sort_keys=True)
        image = self._image()
        if (found := self._places.get(key)) is not None and found.catalogue.image == image:
            return found.catalogue
        async with self._reading:  # whoever comes meanwhile waits for the one reading
            image = self._image()
            if (found := self._places.get(key)) is not None and found.catalogue.image == image:
                return found.catalogue
            if found is None and len(self._places) >= MAX_CATALOGUES:
                raise GatewayError(TOO_MANY_REQUESTS, f"more than {MAX_CATALOGUES} sets of client capabilities")
            catalogue = await self._pin(await _either_way(modern, partial(reading, image)), key, image)
            place = self._places[key] = _Place(modern, capabilities, catalogue)
            return place.catalogue

    @property
    def catalogues(self) -> list[Catalogue]:
        """Those that are there."""
        return [place.catalogue for place in self._places.values()]

    async def renew(
        self, reading: Callable[[Mapping[str, Any], str | None, bool], Awaitable[Outcome]]
    ) -> frozenset[ListKind]:
        """Read every catalogue again by `reading(capabilities, image, probe)`; which lists differ. One that cannot be read stays."""
        changed: frozenset[ListKind] = frozenset()
        async with self._reading:
            for key, place in list(self._places.items()):
                image = self._image()
                try:
                    read = await _either_way(place.modern, partial(reading, place.capabilities, image))
                    read = await self._pin(read, key, image)
                except UnreadError as error:
                    _log.warning("task %s: lists were not read again: %s", error.outcome.task, error.outcome.detail)
                    continue
                except GatewayError as error:
                    _log.warning("lists were not pinned again: %s", error.message)
                    continue
                changed |= read.differs(place.catalogue)
                place.catalogue = read
        return changed


async def _either_way(modern: bool, reading: Callable[[bool], Awaitable[Outcome]]) -> Catalogue:
    outcome = await reading(modern)
    if outcome.reason in (Reason.SERVER_DIED, Reason.SERVER_GARBAGE):
        # Some servers end when their first message is of the other era.
        again = await reading(not modern)
        outcome = again if again.result is Result.OK else outcome
    if outcome.result is not Result.OK or not isinstance(outcome.value, Catalogue):
        raise UnreadError(outcome)
    return outcome.value


async def read(streams: Streams, client: ClientFacts, profile: Profile, *, probe: bool) -> Catalogue:
    """Read and pin all that the profile could allow; `probe` is for 2026-07-28 first. Raises `ExchangeFailed`."""
    conversation = Conversation(streams, client)
    greeting = await (exchange.discover if probe else exchange.greeted)(conversation, client)
    has = greeting.capabilities

    async def listed(method: str, member: str, key: str, *, wanted: bool) -> dict[str, dict[str, Any]]:
        return await _listed(conversation, greeting, method, member, key) if wanted else {}

    tools = await listed("tools/list", "tools", "name", wanted=profile.tools != frozenset())
    prompts = await listed("prompts/list", "prompts", "name", wanted="prompts" in has and profile.prompts != frozenset())
    files = "resources" in has and profile.resources != frozenset()
    resources = await listed("resources/list", "resources", "uri", wanted=files)
    templates = await listed("resources/templates/list", "resourceTemplates", "uriTemplate", wanted=files)
    return Catalogue(greeting, await _judged(list(tools.values()), profile.arguments.open), prompts, resources, templates)


async def _listed(
    conversation: Conversation, greeting: Greeting, method: str, member: str, key: str
) -> dict[str, dict[str, Any]]:
    """Every page of one list, by name or URI."""
    found: dict[str, dict[str, Any]] = {}
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        if meta := conversation.envelope(modern=greeting.era.modern):
            params["_meta"] = meta
        try:
            page = await conversation.request(method, params)
        except ServerAnsweredError as error:
            if error.code == METHOD_NOT_FOUND and method == "resources/templates/list":
                return {}  # servers with resources need not have templates
            raise
        for entry in _checked(page.get(member), key):
            if entry[key] in found:
                raise ExchangeFailed(Reason.SERVER_GARBAGE, f"it lists two {member} named {printable(entry[key])!r}")
            found[entry[key]] = entry
        if len(found) > MAX_ENTRIES:
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"it lists more than {MAX_ENTRIES} {member}")
        cursor = page.get("nextCursor")
        if cursor is None:
            return found
        if not isinstance(cursor, str):
            break
    raise ExchangeFailed(Reason.SERVER_GARBAGE, f"its list of {member} does not end")


def _checked(entries: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list):
        raise ExchangeFailed(Reason.SERVER_GARBAGE, "its list is none")
    longest = MAX_NAME_CHARS if key == "name" else MAX_URI_CHARS
    for entry in entries:
        name = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= longest or not name.isprintable():
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"it lists something with the {key} {printable(str(name))!r}")
    return entries


async def _judged(definitions: Sequence[Mapping[str, Any]], opened: Sequence[str]) -> dict[str, Tool]:
    """The tools with their schemas ready to judge; one whose schemas are not safe is there and cannot be called."""
    tools: dict[str, Tool] = {}
    began_s = time.thread_time()

    def left_s() -> float:
        # The reading's box is not the only one waiting for this thread.
        return max(0.01, min(CHECK_CPU_S, PIN_CPU_S - (time.thread_time() - began_s)))

    for definition in definitions:
        name = definition["name"]
        which = "input"
        try:
            given = Schema(definition.get("inputSchema"), left_s(), opens=closing.places(opened, name))
            which = "output"
            output = Schema(definition["outputSchema"], left_s(), opens=None) if "outputSchema" in definition else None
            tools[name] = Tool(definition, given, output=output)
        except SchemaError as error:
            _log.warning("the tool %s is not offered: its %s schema cannot be judged: %s", name, which, error)
            tools[name] = Tool(definition, None, f"its {which} schema cannot be judged: {error}")
        await anyio.lowlevel.checkpoint()
    return tools


# A definition is pinned as the server has it; what is disguised in it the pins tell.
_AS_IT_IS = Secrets(outputs=OnSecret.ALLOW, hidden=OnHidden.ALLOW)


def reading_profile(profile: Profile) -> Profile:
    """The profile for a reading: like the calls' own, except that nothing a server does at its start is kept."""
    profile = replace(profile, scope=Scope.CALL, session=SessionLife(), secrets=_AS_IT_IS)
    files = profile.filesystem
    if files.workspace is WorkspaceMode.RW:
        return replace(profile, filesystem=replace(files, commit=CommitMode.NEVER))
    if files.workspace is WorkspaceMode.DIRECT:
        return replace(profile, filesystem=replace(files, workspace=WorkspaceMode.RO))
    return profile
