"""The strict models of the `gateway:` section, and what its fields mean together. Apart from `gateway_config` for its imports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from fumehood import gateway_config as values
from fumehood.profile.fields import AbsolutePath, Name, Strict, Text, checked, duration, matching
from fumehood.profile.files import NAME_PATTERN
from fumehood.profile.problems import Problem, Problems
from fumehood.profile.source import Source
from fumehood.profile.validation import validate_part

if TYPE_CHECKING:
    from fumehood.oauth_config import OAuthConfig

# No underscore: the first `__` of a prefixed tool's name always ends the server's, so no two servers' tools collide.
SERVER_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"


def _server_name(name: str) -> None:
    import re

    if not re.fullmatch(SERVER_NAME.removesuffix("$"), name):
        raise ValueError(f"expected a server's name: at most 32 of a-z, 0-9, `-`, no `_`, found {name!r}")


def _profile(name: str) -> None:
    import re

    # A relative path would depend on the directory that the gateway happens to be started in.
    if not name.startswith("/") and not re.fullmatch(NAME_PATTERN.removesuffix("$"), name):
        raise ValueError(f"expected a profile's name or absolute path, found {name!r}")


def _socket(path: str) -> None:
    if len(path.encode("utf-8", "surrogatepass")) > values.SOCKET_PATH_BYTES:
        raise ValueError(f"expected a path of at most {values.SOCKET_PATH_BYTES} bytes: the kernel takes no longer one")


_OF_A_BOX = ("workspace", "command", "engine")
ServerName = Annotated[str, checked(_server_name), WithJsonSchema({"type": "string", "pattern": SERVER_NAME})]
SocketPath = Annotated[AbsolutePath, checked(_socket)]


class UpstreamDocument(Strict):
    """A remote MCP server: nothing runs here, and every call goes through a gate of its own."""

    url: Annotated[str, checked(values.url_of)] = Field(description="https://name[:port]/path of its Streamable HTTP.")
    credential: Name | None = Field(
        default=None, description="One of `credentials`, leased for each call: the bearer token that the gate sends."
    )
    resource: Annotated[str, checked(values.resource_of)] | None = Field(
        default=None, description="What the token is asked for (RFC 8707), where the credential's kind can say so."
    )
    addresses: tuple[Annotated[str, checked(values.network_of)], ...] = Field(
        default=(), strict=False, description="Networks its name may resolve to beside public ones. Default: none."
    )


class ServerDocument(Strict):
    """One server behind the gateway."""

    profile: Annotated[str, checked(_profile)] = Field(description="A profile's name, or an absolute path to one.")
    workspace: AbsolutePath | None = Field(default=None, description="A directory the server sees at /workspace.")
    command: tuple[Text, ...] = Field(
        default=(), strict=False, description="The server's argv; default: the profile's."
    )
    engine: Literal["docker", "oci"] | None = Field(
        default=None, description="Default: the profile's, else what works."
    )
    upstream: UpstreamDocument | None = Field(
        default=None, description="A remote server, in place of one that runs here; wants a profile with `remote: true`."
    )
    pins: Literal["trust-first", "review"] | None = Field(default=None, description="Default: the gateway's.")


class TlsDocument(Strict):
    """What a client outside this host recognises the gateway by."""

    certificate: AbsolutePath = Field(description="A PEM file: the certificate, then its chain.")
    key: AbsolutePath = Field(description="A PEM file of mode 0600: the certificate's key, without a passphrase.")


class EnvelopeDocument(Strict):
    """What a front door asks of requests' envelopes (docs/senders.md)."""

    mode: Literal["required", "accepted", "off"] = Field(
        default="accepted",
        description="`required`: requests must be signed. `accepted`: they may, and then it is verified. `off`: they must not.",
    )
    audience: Annotated[str, *matching(rf"^{values.AUDIENCE_PATTERN}$", "a name or URL without spaces")] = Field(
        default=values.AUDIENCE, description="What envelopes must be made out to."
    )
    clock_skew: Annotated[float, *duration(0, 30)] = Field(default=5.0, description="How far a sender's clock may be off.")


OAuthSection = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "description": "Access tokens of OAuth issuers; docs/oauth.md has its fields."}),
]


class HttpDocument(Strict):
    """The gateway over HTTP, for senders with a token: one of `tokens_file`, or an access token by `oauth`."""

    listen: Annotated[str, checked(values.listen_of)] | None = Field(
        default=None,
        description="HOST:PORT with a literal address; beyond loopback only with `tls`. Default: --http's.",
    )
    tokens_file: AbsolutePath | None = Field(
        default=None, description="Lines NAME:SHA256, mode 0600; `fumehood gateway token` writes them."
    )
    oauth: OAuthSection | None = None
    tls: TlsDocument | None = Field(default=None, description="Serve HTTPS.")
    allowed_hosts: tuple[Annotated[str, checked(values.host_of)], ...] = Field(
        default=(), strict=False, description="Names in a Host header, without ports. Default: the address itself."
    )
    allowed_origins: tuple[Annotated[str, checked(values.origin_of)], ...] = Field(
        default=(), strict=False, description="Origins whose pages may call, as browsers write them. Default: none."
    )
    envelope: EnvelopeDocument = Field(default_factory=EnvelopeDocument, description="Whether requests are signed.")


class UnixDocument(Strict):
    """The gateway on a unix socket, for processes of the operator's own uid, and of the users that are named."""

    path: SocketPath = Field(description="Where the socket is made.")
    envelope: EnvelopeDocument = Field(default_factory=EnvelopeDocument, description="Whether requests are signed.")
    users: dict[Name, Annotated[int, Field(ge=0, lt=2**32 - 1)]] = Field(
        default_factory=dict, max_length=values.MAX_UNIX_USERS, description="Further users, NAME: UID. Default: none."
    )


class GatewayDocument(Strict):
    """What `fumehood gateway` serves when it is given no --profile."""

    servers: dict[ServerName, ServerDocument] = Field(
        default_factory=dict,
        max_length=values.MAX_SERVERS,
        description="Servers by name; tools are called NAME__TOOL when there is more than one.",
    )
    http: HttpDocument | None = None
    unix: UnixDocument | None = None
    pins: Literal["trust-first", "review"] = Field(
        default="trust-first",
        description="May a tool be called when it is first seen, or when `fumehood pins accept` was given? A change always waits.",
    )


def judge(document: GatewayDocument, source: Source) -> Iterator[Problem]:
    """What is wrong between fields that are each well-formed."""
    for name, server in document.servers.items():
        at = ("gateway", "servers", name)
        for field in _OF_A_BOX if server.upstream is not None else ():
            if field in server.model_fields_set:
                yield source.problem((*at, field), "expected nothing beside `upstream`: a remote server runs elsewhere")
        if server.upstream is not None and server.upstream.resource is not None and server.upstream.credential is None:
            yield source.problem((*at, "upstream", "resource"), "expected `credential` beside it: it says what its token is for")
    http = document.http
    yield from _judge_users({} if document.unix is None else document.unix.users, source)
    if http is not None and http.listen is not None:
        listen = values.listen_of(http.listen)
        wrong = values.exposed(listen, tls=http.tls is not None, allowed_hosts=bool(http.allowed_hosts))
        if wrong is not None:
            yield source.problem(("gateway", "http", "listen"), wrong)
    if http is not None and http.tokens_file is None and http.oauth is None:
        yield source.problem(("gateway", "http"), "expected `tokens_file` or `oauth`: HTTP is served only to senders with a token")
    if http is not None and http.oauth is not None:
        yield from _judge_oauth(http, http.oauth, source)


def _judge_users(users: dict[str, int], source: Source) -> Iterator[Problem]:
    seen: set[int] = set()
    for name, uid in users.items():
        if uid in seen:
            yield source.problem(("gateway", "unix", "users", name), f"expected each uid once, found {uid} again")
        seen.add(uid)


def _judge_oauth(http: HttpDocument, section: dict[str, Any], source: Source) -> Iterator[Problem]:
    """Validated here and not with the rest, so that its model is made only where there is such a section."""
    from fumehood import oauth_document

    try:
        read = validate_part(source, oauth_document.OAuthDocument, ("gateway", "http", "oauth"), section)
    except Problems as wrong:
        yield from wrong.problems
        return
    hosts = tuple(map(values.host_of, http.allowed_hosts)) or None
    if hosts is None and http.listen is not None:
        hosts = values.default_hosts(values.listen_of(http.listen))
    yield from oauth_document.judge(read, source, tls=http.tls is not None, hosts=hosts)


def plain(document: GatewayDocument) -> values.GatewayConfig:
    """The section as the values that the rest of fumehood uses."""
    http = document.http
    return values.GatewayConfig(
        servers=tuple(
            values.ServerConfig(
                name=name,
                upstream=None if each.upstream is None else values.UpstreamConfig(**each.upstream.model_dump()),
                pins=None if each.pins is None else values.PinMode(each.pins),
                **{field: getattr(each, field) for field in ServerDocument.model_fields if field not in {"upstream", "pins"}},
            )
            for name, each in document.servers.items()
        ),
        http=None if http is None else _http(http),
        unix=None if document.unix is None else document.unix.path,
        **({} if document.unix is None else {"unix_envelope": _envelope(document.unix.envelope)}),
        unix_users=() if document.unix is None else tuple(document.unix.users.items()),
        pins=values.PinMode(document.pins),
    )


def _envelope(document: EnvelopeDocument) -> values.EnvelopeConfig:
    mode = values.EnvelopeMode(document.mode)
    return values.EnvelopeConfig(mode=mode, audience=document.audience, skew_s=document.clock_skew)


def _http(document: HttpDocument) -> values.HttpConfig:
    tls = document.tls
    return values.HttpConfig(
        tokens_file=document.tokens_file,
        listen=None if document.listen is None else values.listen_of(document.listen),
        tls=None if tls is None else values.TlsConfig(certificate=tls.certificate, key=tls.key),
        allowed_hosts=tuple(map(values.host_of, document.allowed_hosts)),
        allowed_origins=document.allowed_origins,
        envelope=_envelope(document.envelope),
        oauth=None if document.oauth is None else _oauth(document.oauth),
    )


def _oauth(section: dict[str, Any]) -> OAuthConfig:
    from fumehood import oauth_document

    return oauth_document.plain(oauth_document.OAuthDocument.model_validate(section))
