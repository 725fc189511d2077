"""What a box may ask over HTTP/1.1, judged from the bytes of a request's head. Pure; h11 reads the wire.

A gate that reads a request otherwise than the server behind it is no gate: every known way to make two readers disagree (two
lengths, two hosts, folded lines, a bare line feed, an alias of a header) is refused rather than repaired. What is let through was
read by h11 and is written anew from what it read, so no byte of the box's own framing goes upstream.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

import h11

from fumehood.egress.http_rules import Ambiguous, allows, judges_paths, segments_of
from fumehood.egress.refusals import Why
from fumehood.reach import EgressRule

_PLAINLY = "Correct the client: the gate passes only what every server reads alike."
MALFORMED = Why("http_malformed", "the request is one that servers read in different ways", _PLAINLY)
TOO_LARGE = Why(
    "http_too_large", "the request's head is over the limit", "Send fewer or shorter headers, or a shorter query."
)
HTTP2 = Why("http_2", "HTTP/2 without asking first", "Use HTTP/1.1: the gate offers nothing else by ALPN.")
METHOD = Why("http_method", "the method is never allowed", "There is no way to allow it: connect to the name itself.")
HOST = Why(
    "http_host", "the request is for another host than was connected to", "Connect to the name that the request is for."
)
ALIAS = Why("http_alias", "a server may read one header as another", "Spell header names with hyphens.")
OVERRIDE = Why(
    "http_override", "it asks a server for something else than is judged", "Send the method, path and host plainly."
)
AMBIGUOUS = Why("http_ambiguous_path", "servers read the path in different ways", "Ask for the path in its plain form.")
NOT_ALLOWED = Why(
    "http_not_allowed", "the rule does not allow this request", "Add it to the rule's `allow` if that is right."
)
UPGRADE = Why(
    "http_upgrade",
    "the connection would become something that is not judged",
    "Only WebSocket is relayed; turn HTTP/2 off.",
)

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 16 * 1024
MAX_HEADERS = 128
FORBIDDEN, MISDIRECTED = 403, 421
Headers = list[tuple[bytes, bytes]]

_UNPRINTABLE = re.compile(rb"[^\t\r\n\x20-\x7e\x80-\xff]|\r(?!\n)|(?<!\r)\n")
_ALIAS = re.compile(rb"[^a-z0-9]")
_PORT_OF = {True: 443, False: 80}
_ONCE = frozenset(
    {
        b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect", b"authorization", b"content-type",
        b"content-encoding", b"range", b"trailer", b"sec-websocket-key", b"sec-websocket-version",
    }
)  # fmt: skip
# They ask a server to judge another method, path or host than the gate did.
_OVERRIDES = frozenset(
    {
        b"x-http-method", b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-rewrite-url", b"x-original-uri",
        b"x-forwarded-host", b"x-forwarded-server", b"x-host", b"x-http-host-override", b"x-original-host", b"forwarded",
    }
)  # fmt: skip
# Headers of one hop: the gate's connections are its own. `connection` and `upgrade` are judged, then written anew.
_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"te", b"upgrade",
     b"transfer-encoding", b"http2-settings", b"host"}
)  # fmt: skip
_KNOWN = (
    _ONCE | _OVERRIDES | _HOP | {b"cookie", b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip", b"accept-encoding"}
)
_CONNECTION_TOKENS = frozenset({b"close", b"keep-alive", b"upgrade", b"te"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a connection reached: a name on a port, and the rule that allows it."""

    name: str
    port: int
    rule: EgressRule

    @property
    def secure(self) -> bool:
        """Whether it is reached through TLS."""
        return not self.rule.insecure

    @property
    def host(self) -> bytes:
        """The `Host` that goes upstream."""
        name = self.name.encode("ascii")
        return name if self.port == _PORT_OF[self.secure] else b"%s:%d" % (name, self.port)

    @property
    def hosts(self) -> frozenset[bytes]:
        """Every spelling of it that a client may use."""
        name = self.name.encode("ascii")
        named = b"%s:%d" % (name, self.port)
        return frozenset({named, name}) if self.port == _PORT_OF[self.secure] else frozenset({named})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that goes nowhere: an HTTP status, the cause, what exactly, and the request (without its query) as the log has it."""

    status: int
    cause: Why
    detail: str = ""
    asked: str = ""
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that may go upstream. `headers` are lower-case, in order, without `Host` and without those of one hop.

    `length` is the body's in bytes, None when it comes in chunks. `key` is the WebSocket's, None when it is none.
    """

    method: bytes
    path: bytes
    query: bytes | None
    headers: Headers
    length: int | None = 0
    last: bool = False
    expects: bool = False
    key: bytes | None = None
    asked: str = ""

    @property
    def target(self) -> bytes:
        """Path and query."""
        return self.path if self.query is None else self.path + b"?" + self.query


class HeadReader:
    """Gathers one request's head. `leftover` are bytes that came after the request before, on the same connection."""

    def __init__(self, leftover: bytes = b"") -> None:
        self._held = bytearray(leftover)
        self._looked = 0

    @property
    def empty(self) -> bool:
        """Whether not a byte of the request has come."""
        return not self._held

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._held += data

    def ready(self) -> bool | Refusal:
        """Whether the head is whole. A head over the limit is refused by what came, whole or not."""
        if self._held.startswith((b"PRI * HTTP/2", b"PRI * HTTP/3")):
            return Refusal(MISDIRECTED, HTTP2)
        seen = max(0, self._looked - 3)
        end = self._held.find(b"\r\n\r\n", seen)
        self._looked = len(self._held)
        if end > MAX_HEAD_BYTES or (end < 0 and len(self._held) > MAX_HEAD_BYTES):
            return _too_large()
        if end >= 0:
            return True
        # A line of nothing after a bare line feed ends a head for some: look for one now, only in what is new.
        return _unprintable(self._held, seen) or False

    def take(self) -> bytes:
        """Everything so far: the head, and what came behind it."""
        held, self._held = bytes(self._held), bytearray()
        return held


def _too_large() -> Refusal:
    return Refusal(431, TOO_LARGE, f"a head over {MAX_HEAD_BYTES} bytes")


def _unprintable(head: bytes | bytearray, start: int = 0) -> Refusal | None:
    # A CR at the very end of what came may be the first half of CRLF.
    end = len(head) - head.endswith(b"\r")
    return (
        _malformed("a control character, or a line that does not end in CRLF")
        if _UNPRINTABLE.search(head, start, end)
        else None
    )


def _malformed(why: str) -> Refusal:
    return Refusal(400, MALFORMED, why)


def judge(received: bytes, place: Place) -> tuple[Request, h11.Connection] | Refusal:
    """Judge one request from all that came of it: its head is whole. The connection then has the body to give."""
    head = received[: received.index(b"\r\n\r\n") + 2]
    if refused := _unprintable(head):
        return refused
    wire = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    wire.receive_data(received)
    try:
        event = wire.next_event()
    except h11.RemoteProtocolError as error:
        return _malformed(_h11_says(error))
    if not isinstance(event, h11.Request):
        return _malformed("no request")
    asked = _asked(event)
    found = list(event.headers)
    if head.count(b"\r\n") != len(found) + 1:
        # h11 joins folded lines and keeps one of two equal Content-Lengths: others do otherwise.
        return _with(_malformed("a folded line, or one header said twice"), asked)
    judged = _judge(event, found, place)
    return _with(judged, asked) if isinstance(judged, Refusal) else (judged, wire)


def _with(refusal: Refusal, asked: str) -> Refusal:
    return replace(refusal, asked=asked)


def _asked(event: h11.Request) -> str:
    # Not the query: it may hold anything, and this goes into logs.
    path = event.target.split(b"?")[0].decode("latin-1")
    return f"{event.method.decode('latin-1')[:32]} {path[:200]}"


def _h11_says(error: h11.RemoteProtocolError) -> str:
    # Only h11's own words: it may quote the line, and that may hold a secret.
    known = (
        "illegal header line",
        "illegal request line",
        "multiple Transfer-Encoding",
        "conflicting Content-Length",
        "bad Content-Length",
    )
    said = str(error)
    return next((words for words in known if said.lower().startswith(words.lower())), "not HTTP/1.1")


def _judge(event: h11.Request, found: Sequence[tuple[bytes, bytes]], place: Place) -> Request | Refusal:
    if refused := _method(event.method) or _headers(event, found):
        return refused
    headers = Counter(name for name, _ in found)
    host = next((value.lower() for name, value in found if name == b"host"), None)
    if headers[b"host"] != 1 or host not in place.hosts:
        return Refusal(MISDIRECTED, HOST, "Host is not the name that was connected to")
    parts = _target(event, place)
    if isinstance(parts, Refusal):
        return parts
    path, query = parts
    if refused := _not_allowed(event.method, path, query, place.rule):
        return refused
    values = dict(found)
    key = _websocket(event, values)
    if isinstance(key, Refusal):
        return key
    tokens = _tokens(values.get(b"connection", b""))
    length = values.get(b"content-length")
    return Request(
        method=event.method,
        path=path,
        query=query,
        headers=[(name, value) for name, value in found if name not in _HOP],
        length=None if b"transfer-encoding" in values else int(length or b"0"),
        last=b"close" in tokens or (event.http_version == b"1.0" and b"keep-alive" not in tokens),
        expects=b"expect" in values,
        key=key,
        asked=_asked(event),
    )


def _method(method: bytes) -> Refusal | None:
    if method in (b"CONNECT", b"TRACE", b"TRACK"):
        return Refusal(FORBIDDEN, METHOD, method.decode())
    if method != method.upper():
        # Some servers read `get` as GET, and a rule that names GET would not be asked.
        return _malformed("a method in small letters")
    return None


def _headers(event: h11.Request, found: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
    if len(found) > MAX_HEADERS:
        return Refusal(431, TOO_LARGE, f"over {MAX_HEADERS} headers")
    names = Counter(name for name, _ in found)
    if twice := next((name for name in names if name in _ONCE and names[name] > 1), None):
        return _malformed(f"{twice.decode()} is there twice")
    for name in names:
        plain = _ALIAS.sub(b"-", name)
        if plain != name and (plain in _KNOWN or plain in names):
            return Refusal(400, ALIAS, f"{_shown(name)} as {_shown(plain)}")
        if plain in _OVERRIDES:
            return Refusal(FORBIDDEN, OVERRIDE, _shown(name))
    if b"transfer-encoding" in names and (b"content-length" in names or event.http_version != b"1.1"):
        return _malformed("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
    values = dict(found)
    if values.get(b"expect", b"100-continue").lower() != b"100-continue":
        return _malformed("Expect is not 100-continue")
    if event.http_version not in (b"1.0", b"1.1"):
        return _malformed("neither HTTP/1.0 nor HTTP/1.1")
    if named := _tokens(values.get(b"connection", b"")) - _CONNECTION_TOKENS - _HOP:
        # `Connection: authorization` makes a proxy behind us drop what the gate wrote.
        return _malformed(f"Connection names {_shown(min(named))}")
    return None


def _shown(name: bytes) -> str:
    return name.decode("latin-1")[:64]


def _tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in value.split(b",") if token.strip())


def _target(event: h11.Request, place: Place) -> tuple[bytes, bytes | None] | Refusal:
    """A request target's path and query, if it is this place's."""
    target = event.target
    if len(target) > MAX_TARGET_BYTES:
        return Refusal(414, TOO_LARGE, f"a target over {MAX_TARGET_BYTES} bytes")
    if target == b"*" and event.method == b"OPTIONS":
        return target, None
    if not target.startswith(b"/"):
        scheme, colon, rest = target.partition(b"://")
        host, slash, behind = rest.partition(b"/")
        if not colon or scheme.lower() != (b"https" if place.secure else b"http") or host.lower() not in place.hosts:
            return Refusal(
                MISDIRECTED, HOST, "the target names another place than was connected to; the gate is no proxy"
            )
        target = b"/" + behind if slash else b"/"
    if b"#" in target:
        return _malformed("a fragment in the target")
    path, question, query = target.partition(b"?")
    return path, query if question else None


def _not_allowed(method: bytes, path: bytes, query: bytes | None, rule: EgressRule) -> Refusal | None:
    segments: tuple[str, ...] | None = None
    if path != b"*" and judges_paths(rule):
        read = segments_of(path)
        if isinstance(read, Ambiguous):
            return Refusal(FORBIDDEN, AMBIGUOUS, read.why)
        segments = read
        parameters = re.split(rb"[&;]", query or b"")
        if any(unquote_to_bytes(parameter.split(b"=")[0]) == b"_method" for parameter in parameters):
            return Refusal(FORBIDDEN, OVERRIDE, "_method in the query")
    if allows(rule, method.decode(), segments):
        return None
    entry = f"{method.decode()} {path.decode('latin-1')[:200]}"
    return Refusal(
        FORBIDDEN,
        NOT_ALLOWED,
        remedy=f'Add "{entry}" to `allow` of `http: {rule.name}` in the profile if that is right.',
    )


def _websocket(event: h11.Request, values: dict[bytes, bytes]) -> bytes | Refusal | None:
    """The key of a WebSocket's opening handshake (RFC 6455 section 4.2.1); None when nothing is upgraded."""
    upgrade = values.get(b"upgrade")
    if upgrade is None:
        return None
    if upgrade.lower() != b"websocket":
        # `Upgrade: h2c` made gates into raw relays: everything behind the 101 went unjudged.
        return Refusal(FORBIDDEN, UPGRADE, f"Upgrade: {_shown(upgrade)}")
    key = values.get(b"sec-websocket-key", b"")
    try:
        fits = len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        fits = False
    bare = b"transfer-encoding" not in values and int(values.get(b"content-length", b"0")) == 0
    asks = b"upgrade" in _tokens(values.get(b"connection", b""))
    version = values.get(b"sec-websocket-version") == b"13"
    if not (fits and bare and asks and version and event.method == b"GET" and event.http_version == b"1.1"):
        return _malformed("no WebSocket handshake as RFC 6455 has it")
    return key
