"""Who may speak HTTP with us, judged by the head of a request alone. Pure.

Order matters: what a web page in a browser can reach (any loopback port, and any name that its DNS server points there) is
refused by `Host` and `Origin` before a token is compared; a request without a good token is refused before its
body is read. A header that decides something must be there once: the proxy before us would judge another one than we.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fumehood.gateway.protocol import INVALID_REQUEST
from fumehood.gateway_config import EnvelopeConfig
from fumehood.model import Proof, Sender

if TYPE_CHECKING:
    from fumehood.gateway.oauth.given import OAuthFront

PATH = "/mcp"
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64
Headers = Sequence[tuple[bytes, bytes]]

_DECIDING = frozenset(
    {
        "host", "origin", "authorization", "content-type", "content-length", "content-encoding", "accept",
        "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "last-event-id", "dpop",
    }
)  # fmt: skip
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?")
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_JSON = re.compile(r'application/json(?: *; *charset *= *"?utf-8"?)? *', re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Rules:
    """What a head is judged by, and what is asked of the message behind it (`envelope`, for `proofs`).

    `authenticate` gives the sender of a token, in constant time; `hosts` are names without ports. With `oauth`, whoever has no token
    that `authenticate` knows is for the resource server to judge. `callback` is the path where approvers' answers come, which
    are signed and need no token. A reload changes them in place: a request is judged by those of the
    moment its head is there.
    """

    authenticate: Callable[[str], Sender | None]
    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)
    oauth: OAuthFront | None = None
    callback: str | None = None

    @property
    def documents(self) -> Mapping[str, bytes]:
        """What anybody may read, by path."""
        return {} if self.oauth is None else self.oauth.config.descriptions()

    def change(self, now: Rules) -> None:
        """Judge by those from now on."""
        self.authenticate, self.hosts, self.origins = now.authenticate, now.hosts, now.origins
        self.envelope, self.oauth = now.envelope, now.oauth


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status, and why."""

    status: int
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    code: int = INVALID_REQUEST


@dataclass(frozen=True, slots=True)
class Head:
    """A head that was let in: whose it is, and its deciding headers, each there once.

    `proof` is what it showed of its origin, `extra` the headers that its answer gets.
    """

    method: str
    sender: Sender
    headers: Mapping[str, str] = field(default_factory=dict)
    proof: Proof | None = None
    extra: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A request for something public."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that brings an approver's signed answer."""

    method: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Claimant:
    """A head that passed all but the question whose it is. `certificate` is the digest of what its TLS client showed."""

    method: str
    headers: Mapping[str, str]
    certificate: str | None = None


def judge(method: str, path: str, headers: Headers, rules: Rules) -> Head | Refusal | Document | Answered | Claimant:
    """Let a request in, or say why not, or who is to say."""
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        return Refusal(431, "the headers are too large")
    names = Counter(name.decode("latin-1").lower() for name, _ in headers)
    if twice := next((name for name in sorted(_DECIDING) if names[name] > 1), None):
        return Refusal(400, f"{twice} is there twice")
    found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    host = _HOST.fullmatch(found.get("host", "").lower())
    if host is None or host[1] not in rules.hosts:
        # A page of evil.example whose name resolves to 127.0.0.1 sends its own name.
        return Refusal(421, "this Host is not served here")
    if "origin" in found and found["origin"] not in rules.origins:
        return Refusal(403, "this Origin is not allowed")
    if path != PATH and path == rules.callback:
        return Answered(method, found)
    if path != PATH:
        return _document(method, path, rules)
    token = _BEARER.fullmatch(found.get("authorization", ""))
    sender = None if token is None else rules.authenticate(token[1])
    if sender is None and rules.oauth is not None:
        return Claimant(method, found)
    if sender is None:
        challenge = b'Bearer realm="fumehood"' + (b', error="invalid_token"' if "authorization" in found else b"")
        return Refusal(401, "a bearer token is needed", ((b"www-authenticate", challenge),))
    return admitted(method, found, sender)


def admitted(
    method: str, found: Mapping[str, str], sender: Sender, proof: Proof | None = None, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> Head | Refusal:
    """The head of somebody who may speak, if it is one that can be served."""
    refused = _unfit(method, found)
    return refused or Head(method, sender, {name: found[name] for name in _DECIDING if name in found}, proof, extra)


def _document(method: str, path: str, rules: Rules) -> Document | Refusal:
    body = rules.documents.get(path)
    if body is None:
        return Refusal(404, f"there is only {PATH}")
    return Document(body) if method == "GET" else Refusal(405, "GET", ((b"allow", b"GET"),))


def _unfit(method: str, found: Mapping[str, str]) -> Refusal | None:
    if method not in ("POST", "GET", "DELETE"):
        return Refusal(405, "POST, GET or DELETE", ((b"allow", b"POST, GET, DELETE"),))
    if method != "POST":
        return None
    if found.get("content-encoding", "identity").lower() != "identity":
        return Refusal(415, "no content encoding is understood")
    if _JSON.fullmatch(found.get("content-type", "")) is None:
        return Refusal(415, "the content type must be application/json in UTF-8")
    return None
