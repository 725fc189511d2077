"""What a gateway serves, as one value that the operator's rights make and the worker is given.

Profiles are resolved, directories open and secrets read when it reaches the worker, which can read none of the
operator's files. It crosses as parts, one message each (`wire` bounds a message), a server's directory beside it.

Invariants: no two servers share a name, and no name holds `_`, so that no two tools share a prefixed name; a set arrives
whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from fumehood.faults import FumehoodError
from fumehood.gateway.senders import Row, Senders
from fumehood.gateway_config import EnvelopeConfig, EnvelopeMode, Listen
from fumehood.model import Profile
from fumehood.operating import Part
from fumehood.policies.policy import Policy, Texts, checked
from fumehood.profile.kept import decoded, encoded

if TYPE_CHECKING:
    import ssl

    from fumehood.gateway.oauth.given import OAuthFront

_PIECE = 16 * 1024  # characters of a policy in one message, which may take six bytes each


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Served:
    """One server: its command under its profile, with the directory that its boxes see. `workspace_fd` is ours to close."""

    name: str
    profile: Profile
    argv: tuple[str, ...]
    workspace_fd: int | None = None
    workspace_path: str | None = None
    pinned: str | None = None

    @property
    def pinned_as(self) -> str:
        """By which name the pins of its tools are kept: the operator's, unless nothing but its command tells it from another."""
        return self.pinned or self.name

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes it another server than it was: everything, but of a directory not the number of its descriptor."""
        found = None if self.workspace_fd is None else os.fstat(self.workspace_fd)
        # The profile and not its digest: the operator's engine is in the one and not in the other.
        return (self.name, self.profile, self.argv, self.workspace_path, found and (found.st_dev, found.st_ino))


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts: the certificate with its chain, and its key."""

    certificate: str
    key: str = field(repr=False)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make new connections of `context` use it. Raises OSError (ssl.SSLError) when it is no certificate and its key."""
        # OpenSSL is given files only, and a key of ours is never in one that has a name.
        fd = os.memfd_create("fumehood-tls", os.MFD_CLOEXEC)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{self.certificate}\n{self.key}")
            file.flush()
            # A passphrase would be asked for on the terminal.
            context.load_cert_chain(f"/proc/self/fd/{fd}", password="")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFront:
    """Where and for whom HTTP is served. `allowed_hosts` are names without ports, in lower case, IPv6 in brackets."""

    listen: Listen
    senders: Senders
    tls: Tls | None
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)
    oauth: OAuthFront | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSet:
    """Everything one gateway serves. With neither `http` nor `unix` (a socket's path) the client is on stdio."""

    servers: tuple[Served, ...]
    http: HttpFront | None = None
    unix: str | None = None
    unix_envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)
    unix_users: tuple[tuple[str, int], ...] = ()
    policy: Policy | None = None

    def __post_init__(self) -> None:
        """Refuse names under which tools of two servers could be mistaken. Raises ValueError."""
        names = [server.name for server in self.servers]
        if len(set(names)) != len(names) or any("_" in name for name in names):
            raise ValueError(f"expected servers' names once each and without `_`, found {names}")

    def close(self) -> None:
        """Close the directories, when the last call under this set has ended."""
        for server in self.servers:
            if server.workspace_fd is not None:
                os.close(server.workspace_fd)


def parts_of(served: ServedSet) -> tuple[Part, ...]:
    """The set as messages. The last one says what belongs to it."""
    http = served.http
    senders: list[Part] = []
    pieces: tuple[str, ...] = ()
    if http is not None:
        senders.append(Part({"senders": http.senders.rows, "uid": http.senders.uid}))
        senders.append(Part({"tls": None if http.tls is None else asdict(http.tls)}))
        pieces = _pieces_of(http.oauth)
        senders += [Part({"oauth": piece}) for piece in pieces]
    fronts = {
        "servers": len(served.servers),
        "http": None if http is None else {
            "listen": asdict(http.listen), "hosts": http.allowed_hosts, "origins": http.allowed_origins,
            "envelope": asdict(http.envelope), "oauth": len(pieces),
        },
        "unix": served.unix,
        "unix_envelope": asdict(served.unix_envelope),
        "unix_users": served.unix_users,
    }  # fmt: skip
    policy = "" if served.policy is None else served.policy.texts.written()
    texts = [Part({"policy": policy[begin : begin + _PIECE]}) for begin in range(0, len(policy), _PIECE)]
    return (*map(_part_of, served.servers), *senders, *texts, Part({"fronts": {**fronts, "policy": len(texts)}}))


def set_of(parts: Iterable[Part]) -> ServedSet:
    """The set whose messages these are; its descriptors are theirs. Raises ValueError for anything else."""
    by_kind: dict[str, Mapping[str, Any]] = {}
    servers: list[Served] = []
    pieces: list[str] = []
    texts: list[str] = []
    try:
        for part in parts:
            if "server" in part.fields:
                servers.append(_server_of(part))
            elif "oauth" in part.fields:
                pieces.append(part.fields["oauth"])
            elif "policy" in part.fields:
                texts.append(part.fields["policy"])
            else:
                by_kind[next(iter(part.fields))] = part.fields
        fronts = by_kind["fronts"]["fronts"]
        if fronts["servers"] != len(servers):
            raise ValueError("expected as many servers as were announced")
        http = None if fronts["http"] is None else _http_of(fronts["http"], by_kind, pieces)
        envelope, users = _envelope_of(fronts["unix_envelope"]), tuple(map(tuple, fronts["unix_users"]))
        return ServedSet(
            servers=tuple(servers), http=http, unix=fronts["unix"], unix_envelope=envelope, unix_users=users,
            policy=_policy_of(texts, fronts["policy"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, StopIteration, FumehoodError) as error:
        raise ValueError(f"not the parts of a served set: {error!r}") from error


def _part_of(server: Served) -> Part:
    fields = {
        "server": server.name, "profile": encoded(server.profile), "argv": server.argv, "path": server.workspace_path,
    }  # fmt: skip
    return Part(fields, () if server.workspace_fd is None else (server.workspace_fd,))


def _server_of(part: Part) -> Served:
    has = part.fields
    (directory,) = part.fds or (None,)
    return Served(
        name=has["server"],
        profile=decoded(has["profile"]),
        argv=tuple(has["argv"]),
        workspace_fd=directory,
        workspace_path=has["path"],
    )


def _pieces_of(oauth: OAuthFront | None) -> tuple[str, ...]:
    if oauth is None:
        return ()
    from fumehood.gateway.oauth.given import pieces_of

    return pieces_of(oauth)


def _oauth_of(pieces: Sequence[str], announced: int) -> OAuthFront | None:
    if len(pieces) != announced:
        raise ValueError("expected as many pieces as were announced")
    if not pieces:
        return None
    from fumehood.gateway.oauth.given import front_of

    return front_of(pieces)


def _policy_of(texts: Sequence[str], announced: int) -> Policy | None:
    if len(texts) != announced:
        raise ValueError("expected as many pieces of the policy as were announced")
    return checked(Texts.read("".join(texts))) if texts else None


def _http_of(has: Mapping[str, Any], by_kind: Mapping[str, Mapping[str, Any]], pieces: Sequence[str]) -> HttpFront:
    senders, tls = by_kind["senders"], by_kind["tls"]["tls"]
    return HttpFront(
        listen=Listen(**has["listen"]),
        senders=Senders(tuple(Row(*row) for row in senders["senders"]), senders["uid"]),
        tls=None if tls is None else Tls(**tls),
        allowed_hosts=tuple(has["hosts"]),
        allowed_origins=tuple(has["origins"]),
        envelope=_envelope_of(has["envelope"]),
        oauth=_oauth_of(pieces, has["oauth"]),
    )


def _envelope_of(has: Mapping[str, Any]) -> EnvelopeConfig:
    return EnvelopeConfig(**{**has, "mode": EnvelopeMode(has["mode"])})
