"""Which server a name belongs to.

One server's names are bare. Of several, tools and prompts carry `server__`: a server's name has no underscore, so the
first two end it and no two names can meet. Resources keep their URIs, which are the servers' own: one that two
servers have is ambiguous, and refused rather than guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fumehood.admission.policy import WORKSPACE_FILES, permits
from fumehood.gateway import files
from fumehood.gateway.catalogue import Catalogue
from fumehood.gateway.kept import SCHEME
from fumehood.gateway.peer import Client
from fumehood.gateway.protocol import INVALID_PARAMS, RESOURCE_NOT_FOUND, GatewayError, printable
from fumehood.gateway.upstream import Upstream, Wanted
from fumehood.model import Kind, Profile

SEPARATOR = "__"
RESERVED = (WORKSPACE_FILES, SCHEME)
_KINDS = {"tools": Kind.TOOL, "prompts": Kind.PROMPT, "resources": Kind.RESOURCE, "resourceTemplates": Kind.RESOURCE}
_log = logging.getLogger("fumehood")


@dataclass(frozen=True, slots=True)
class Route:
    """A request and the server it goes to."""

    upstream: Upstream
    wanted: Wanted


class Routes:
    """The servers of one gateway."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        """Route among `upstreams`, whose names differ."""
        self.upstreams = tuple(upstreams)

    def listed(self, member: str, found: Mapping[Upstream, Catalogue]) -> list[Mapping[str, Any]]:
        """The entries of every server that its profile allows, as clients see them, in the operator's order."""
        entries: list[Mapping[str, Any]] = []
        seen: dict[str, str] = {}
        for upstream in self.upstreams:
            if upstream not in found:
                continue
            for name, entry in _of(member, found[upstream]).items():
                if member.startswith("resource") and name.startswith(RESERVED):
                    continue  # those addresses are ours: reading them never comes to a server
                if not _visible(upstream.profile, member, name):
                    continue
                if member in {"tools", "prompts"}:
                    entries.append({**entry, "name": self._public(upstream, name)})
                elif name in seen:
                    _log.warning("%s and %s both have %s: only the first is listed", seen[name], upstream.name, printable(name, 200))
                else:
                    seen[name] = upstream.name
                    entries.append(entry)
        if member == "resourceTemplates" and any(files.offered(upstream.profile) for upstream in self.upstreams):
            entries.append(files.TEMPLATE)
        return entries

    async def of(self, kind: Kind, params: Mapping[str, Any], client: Client) -> Route:
        """Where a request goes, and what goes there. Raises `GatewayError` or `UnreadError`."""
        match kind:
            case Kind.TOOL | Kind.PROMPT:
                upstream, name = self._private(kind, _text(params, "name"))
                arguments = _arguments(params, texts=kind is Kind.PROMPT)
                return Route(upstream, _wanted(kind, name, {"name": name, "arguments": arguments}, arguments))
            case Kind.RESOURCE:
                uri = _text(params, "uri")
                upstream = await self._reader(uri, client)
                return Route(upstream, _wanted(kind, uri, {"uri": uri}, {}))
            case _:
                return await self._completion(params, client)

    async def input_schema(self, name: str, client: Client) -> Mapping[str, Any] | None:
        """The pinned input schema of a tool that its profile allows. Raises `GatewayError` or `UnreadError`."""
        upstream, inner = self._private(Kind.TOOL, name)
        if not permits(upstream.profile, Kind.TOOL, inner):
            return None
        tool = (await upstream.catalogue(client)).tools.get(inner)
        schema = None if tool is None else tool.definition.get("inputSchema")
        return schema if isinstance(schema, Mapping) else None

    def may_read(self, uri: str) -> bool:
        """Whether any profile allows this resource."""
        return any(permits(upstream.profile, Kind.RESOURCE, uri) for upstream in self.upstreams)

    async def _reader(self, uri: str, client: Client) -> Upstream:
        allowed = [upstream for upstream in self.upstreams if permits(upstream.profile, Kind.RESOURCE, uri)]
        if len(allowed) == 1 or len(self.upstreams) == 1:
            return (allowed or self.upstreams)[0]
        if uri.startswith(WORKSPACE_FILES):
            raise GatewayError(INVALID_PARAMS, f"{printable(uri, 200)!r}: more than one server has a workspace with it, or none")
        # Several may: the one that has it, or whose template it could be.
        having: list[Upstream] = []
        for upstream in allowed:
            found = await upstream.catalogue(client)
            if uri in found.resources or any(uri.startswith(_static(template)) for template in found.templates):
                having.append(upstream)
        if len(having) == 1:
            return having[0]
        why = "more than one server has it" if having else "there is no such resource"
        raise GatewayError(INVALID_PARAMS if having else RESOURCE_NOT_FOUND, f"{printable(uri, 200)!r}: {why}")

    async def _completion(self, params: Mapping[str, Any], client: Client) -> Route:
        ref, argument = params.get("ref"), params.get("argument")
        if not isinstance(ref, dict) or not isinstance(argument, dict):
            raise GatewayError(INVALID_PARAMS, "Invalid params: a ref and an argument are needed")
        if ref.get("type") == "ref/prompt":
            upstream, name = self._private(Kind.PROMPT, _text(ref, "name"))
            inner, allowed = {**ref, "name": name}, permits(upstream.profile, Kind.PROMPT, name)
        else:
            name = _text(ref, "uri")
            readers = [each for each in self.upstreams if _visible(each.profile, "resourceTemplates", name)]
            if len(self.upstreams) > 1:
                readers = [each for each in readers if name in (await each.catalogue(client)).templates]
            if len(readers) != 1:
                raise GatewayError(INVALID_PARAMS, "Invalid params: the ref names no template of exactly one server")
            upstream, inner, allowed = readers[0], ref, True
        if not allowed:
            raise GatewayError(INVALID_PARAMS, f"the profile does not allow the prompt {printable(name, 80)!r}")
        told = {"ref": inner, "argument": argument}
        if isinstance(params.get("context"), dict):
            told["context"] = params["context"]
        return Route(upstream, _wanted(Kind.COMPLETION, name, told, told))

    def _public(self, upstream: Upstream, name: str) -> str:
        return name if len(self.upstreams) == 1 else f"{upstream.name}{SEPARATOR}{name}"

    def _private(self, kind: Kind, public: str) -> tuple[Upstream, str]:
        if len(self.upstreams) == 1:
            return self.upstreams[0], public
        server, _, name = public.partition(SEPARATOR)
        for upstream in self.upstreams:
            if upstream.name == server and name:
                return upstream, name
        raise GatewayError(INVALID_PARAMS, f"there is no {kind.value} {printable(public, 80)!r}")


def _of(member: str, found: Catalogue) -> Mapping[str, Mapping[str, Any]]:
    lists = {
        "tools": found.usable_tools,
        "prompts": found.prompts,
        "resources": found.resources,
        "resourceTemplates": found.templates,
    }
    return lists[member]


def _visible(profile: Profile, member: str, name: str) -> bool:
    if member != "resourceTemplates" or profile.resources is None:
        return permits(profile, _KINDS[member], name)
    return name in profile.resources or any(_overlap(_static(name), entry) for entry in profile.resources)


def _overlap(static: str, entry: str) -> bool:
    """Whether an allowed URI, or beginning of URIs, can be one of a template's."""
    return entry.startswith(static) or (entry.endswith("*") and static.startswith(entry[:-1]))


def _static(template: str) -> str:
    return template.partition("{")[0]


def _wanted(kind: Kind, name: str, params: Mapping[str, Any], arguments: Mapping[str, Any]) -> Wanted:
    return Wanted(kind=kind, method="", name=name, params=params, arguments=arguments)


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise GatewayError(INVALID_PARAMS, f"Invalid params: a {name} is needed")
    return value


def _arguments(params: Mapping[str, Any], *, texts: bool) -> dict[str, Any]:
    value = params.get("arguments")
    if value is None:
        return {}
    if not isinstance(value, dict) or (texts and not all(isinstance(each, str) for each in value.values())):
        raise GatewayError(INVALID_PARAMS, "Invalid params: arguments is an object" + (" of strings" if texts else ""))
    return value


