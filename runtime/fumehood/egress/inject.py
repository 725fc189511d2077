"""A credential is written into a request by the gate, in the one place its profile names (rule 20). Pure.

The box holds a placeholder: a token of its task, without any value. The gate never swaps it for the secret where it finds it, which
would put the secret wherever the tool (or whoever talks it into something) put the placeholder: into a comment, a path, another
header. It removes what the client wrote in the named place and writes the secret there itself. A placeholder in any other place, or of
another task, is a tool that was misled, and the request goes nowhere.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
import secrets
import string
from collections.abc import Iterator, Sequence
from urllib.parse import quote, unquote_to_bytes

from fumehood.egress import sigv4
from fumehood.egress.http_judge import FORBIDDEN, Headers, Refusal, Request
from fumehood.egress.refusals import Why
from fumehood.reach import CredentialUse, Delivery, Scheme, Secret, SecretForm
from fumehood.screening.spellings import Spellings, spellings_of

PLACEHOLDER_MISPLACED = Why(
    "placeholder_misplaced",
    "a placeholder where its credential is not written",
    "Send it only where the profile's `credentials` say: the gate writes the credential there, and nowhere else.",
)
PLACEHOLDER_FOREIGN = Why(
    "placeholder_foreign",
    "a placeholder of another task",
    "Read the placeholder from this call's environment: it is worth nothing anywhere else.",
)

PREFIX = "fumehood0"
MIN_LENGTH, MAX_LENGTH = 32, 512
LOOK_BYTES = 64 * 1024
_MARK = PREFIX.encode()
_PLACEHOLDER = re.compile(_MARK + rb"[0-9A-Za-z]{8,512}")
_ALPHABET = string.ascii_letters + string.digits
_ALIAS = re.compile(rb"[^a-z0-9]")
_BASIC = re.compile(rb"basic +([A-Za-z0-9+/=_-]+)\s*", re.IGNORECASE)
_UNSENDABLE = re.compile(r"[^\x20-\x7e]")
# With them a server could send the secret back so that it is not seen: compressed, in pieces, or behind the body.
_DROPPED = frozenset({b"accept-encoding", b"range", b"if-range", b"te", b"trailer", b"sec-websocket-extensions"})
_PARTS = {
    SecretForm.TOKEN: ("token",),
    SecretForm.PASSWORD: ("password",),
    SecretForm.AWS: ("key", "session"),
    SecretForm.SSH: ("key",),
}


class CannotInject(Exception):
    """This secret does not fit its use; the text names neither."""


class Placeholders:
    """The placeholders of one box: one for each credential that its gate injects. They die with the box."""

    def __init__(self, uses: Sequence[CredentialUse], lengths: dict[str, int] | None = None) -> None:
        """Make them. `lengths` are those of the secrets, where they are known: some clients look at a token's length."""
        self._uses = {use.name: use for use in uses if use.deliver is Delivery.GATE}
        self._tokens = {name: _token((lengths or {}).get(name, 0)) for name in self._uses}

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell the tool its placeholders."""
        found = {use.variable: self._tokens[name] for name, use in self._uses.items() if use.variable is not None}
        for name, use in self._uses.items():
            if use.scheme is Scheme.SIGV4:
                # An SDK signs with anything; the gate signs again. Its own signature tells region and service.
                found |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), self._tokens[name])
        return found

    def token(self, credential: str) -> str:
        """The placeholder of one credential."""
        return self._tokens[credential]

    def misplaced(self, request: Request, use: CredentialUse | None) -> Refusal | None:
        """Refuse a request with a placeholder in its head in a place that is not that credential's, or that is not this box's."""
        own = self._right(use)
        rest, theirs = _parted(request, use)
        for found in [*_in(rest), *(each for part in theirs for each in _in(part) if each not in own)]:
            return self._refusal(found, "in the path or query", request.asked)
        for name, text in request.headers:
            expected = own if use is not None and _is_place(use, name) else ()
            for found in _in(name) + _in(text):
                if found not in expected:
                    return self._refusal(found, f"in the header {name.decode('latin-1')[:64]}", request.asked)
        return None

    def _right(self, use: CredentialUse | None) -> frozenset[bytes]:
        """The placeholders that may stand in a credential's place. SDKs have one AWS key, whichever rule a request meets."""
        if use is None:
            return frozenset()
        alike = (
            name for name, each in self._uses.items() if each.scheme is Scheme.SIGV4 and use.scheme is Scheme.SIGV4
        )
        return frozenset(self._tokens[name].encode() for name in {*alike, use.name} & self._uses.keys())

    def misplaced_in(self, data: bytes, asked: str) -> Refusal | None:
        """Refuse a piece of a body with a placeholder in it."""
        return next((self._refusal(found, "in the body", asked) for found in _in(data)), None)

    def _refusal(self, found: bytes, where: str, asked: str) -> Refusal:
        cause = PLACEHOLDER_MISPLACED if found.decode() in self._tokens.values() else PLACEHOLDER_FOREIGN
        return Refusal(FORBIDDEN, cause, where, asked)


def _token(length: int) -> str:
    wanted = min(max(length, MIN_LENGTH), MAX_LENGTH) - len(PREFIX)
    return PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(wanted))


def _in(data: bytes) -> list[bytes]:
    """The placeholders in some bytes: plain, percent-encoded, or in a Basic header."""
    found = _PLACEHOLDER.findall(data) if _MARK in data else []
    if b"%" in data and _MARK in (decoded := unquote_to_bytes(data)):
        found += _PLACEHOLDER.findall(decoded)
    if basic := _BASIC.fullmatch(data):
        text = basic[1].replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
        if len(text) % 4 != 1:
            found += _PLACEHOLDER.findall(base64.b64decode(text + b"=" * (-len(text) % 4)))
    return found


def _is_place(use: CredentialUse, name: bytes) -> bool:
    header = "authorization" if use.scheme is Scheme.SIGV4 else use.header
    if header is None:
        return False
    # By its aliases too: a server that reads `X_Api_Key` as `X-Api-Key` may take the client's.
    return _ALIAS.sub(b"-", name.lower()) == _ALIAS.sub(b"-", header.lower().encode())


def _parted(request: Request, use: CredentialUse | None) -> tuple[bytes, list[bytes]]:
    """A request's target without the parameters that are the credential's place, and those."""
    if request.query is None or use is None or use.query is None:
        return request.target, []
    wanted = use.query.encode()
    kept: list[bytes] = []
    theirs: list[bytes] = []
    for part in request.query.split(b"&"):
        name = unquote_to_bytes(part.split(b"=")[0].replace(b"+", b" "))
        (theirs if name == wanted else kept).append(part)
    return request.path + (b"?" + b"&".join(kept) if kept else b""), theirs


def beside(request: Request, use: CredentialUse) -> Iterator[tuple[str, bytes]]:
    """What a request's head says in other places than the credential's, each with its name; a target as it is and decoded."""
    rest, _ = _parted(request, use)
    yield "the path or query", rest
    yield "the path or query", unquote_to_bytes(rest)
    for name, text in request.headers:
        if not _is_place(use, name):
            yield f"the header {name.decode('latin-1')[:64]}", text


def value(use: CredentialUse, secret: Secret) -> str:
    """What is written, for every scheme but SigV4. Raises CannotInject."""
    part = {SecretForm.TOKEN: "token", SecretForm.PASSWORD: "password"}.get(secret.form)
    if part is None:
        raise CannotInject("this kind of credential cannot be written into a request")
    text = secret.parts[part]
    if use.scheme is Scheme.BASIC:
        user = user_of(use, secret)
        if user is None or ":" in user:
            raise CannotInject("scheme `basic` needs a user name without a colon")
        return "Basic " + base64.b64encode(f"{user}:{text}".encode()).decode()
    if not text or _UNSENDABLE.search(text) or text != text.strip():
        # A line feed in it would end the header and begin another.
        raise CannotInject("the credential has characters that no header may have")
    return f"Bearer {text}" if use.scheme is Scheme.BEARER and use.query is None else text


def user_of(use: CredentialUse, secret: Secret) -> str | None:
    """The user name of scheme `basic`: the profile's, or the credential's own."""
    return use.username if use.username is not None else secret.parts.get("user")


def written(request: Request, use: CredentialUse, secret: Secret) -> tuple[bytes, Headers]:
    """Target and headers with the credential in its place, and without what could bring it back unseen. Raises CannotInject."""
    text = value(use, secret)
    headers = [(name, client) for name, client in plain_headers(request) if not _is_place(use, name)]
    if use.header is not None:
        return request.target, [*headers, (use.header.lower().encode(), text.encode())]
    if use.query is None:
        raise CannotInject("the profile names no place for it")
    if request.query is not None and b";" in request.query:
        # Some servers split a query there too, and would find the client's own parameter first.
        raise CannotInject("a query with `;` may hold the parameter twice")
    rest, _ = _parted(request, use)
    parameter = f"{quote(use.query, safe='')}={quote(text, safe='')}".encode()
    return rest + (b"&" if b"?" in rest else b"?") + parameter, headers


def length(secret: Secret) -> int:
    """How long a placeholder for this secret is to be."""
    return max((len(secret.parts.get(part, "")) for part in _PARTS[secret.form]), default=0)


def needs_digest(request: Request, host: bytes) -> bool:
    """Whether SigV4 takes the digest of a body that has to be read for it. Raises CannotInject."""
    try:
        scope = sigv4.scope_of(host.decode(), request.headers)
        return sigv4.payload_of(scope.service, request.headers, None) is None
    except sigv4.CannotSign as error:
        raise CannotInject(str(error)) from error


def signed(request: Request, secret: Secret, host: bytes, digest: str | None) -> Headers:
    """The headers of a request signed anew with SigV4; `digest` is the body's, where it was needed. Raises CannotInject."""
    headers = plain_headers(request)
    try:
        return sigv4.sign(
            request.method, host.decode(), request.target, headers, secret, digest=digest, now=dt.datetime.now(dt.UTC)
        )
    except sigv4.CannotSign as error:
        raise CannotInject(str(error)) from error


def plain_headers(request: Request) -> Headers:
    """The client's headers without those that an injected request must not have."""
    kept = [(name, text) for name, text in request.headers if name not in _DROPPED and not name.startswith(b"proxy-")]
    return [*kept, (b"accept-encoding", b"identity")]


def spellings(use: CredentialUse, secret: Secret, placeholder: str) -> Spellings:
    """What a response to a request with this credential in it is scrubbed of."""
    return Spellings(spellings_of(list(_secret_values(use, secret))), placeholder.encode())


def _secret_values(use: CredentialUse, secret: Secret) -> Iterator[tuple[str, str | None]]:
    user = user_of(use, secret) if use.scheme is Scheme.BASIC else None
    for part in _PARTS[secret.form]:
        if text := secret.parts.get(part):
            yield text, user
