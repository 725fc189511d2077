"""AWS Signature Version 4, made by the gate for a request that it has judged. Pure; the clock is the caller's.

The box signs with a placeholder, or not at all; what it sent of a signature is removed and the request signed anew with the leased
key. The signature covers method, path, query, host, body's digest and every `x-amz-` header, so nobody in between can change them.

Region and service are those of the client's own signature, which every SDK knows best, or else they are read from an
`amazonaws.com` host. That a box chooses them gives it nothing: a signature holds for the host that it was made for, at which AWS
accepts the region and the service of that host alone.

The body's digest is the client's (`x-amz-content-sha256`; a wrong one is refused by AWS), or the caller's, who has read the body; or
`UNSIGNED-PAYLOAD`, which S3 takes over TLS. Refused, each with what to do instead: chunks that the client signed one by one (their
signatures chain from the one that is replaced), presigned queries, SigV4A, and spellings of a query that two readers could take for
different things.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fumehood.reach import Secret, SecretForm

Headers = Sequence[tuple[bytes, bytes]]

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNSIGNED_PAYLOADS = frozenset({UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
# What a client's signature consists of, in any version of it.
_REPLACED = frozenset({
    b"authorization", b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256", b"x-amz-region-set",
    b"x-amz-s3session-token",
})  # fmt: skip
_PRESIGNED = frozenset({
    b"x-amz-algorithm", b"x-amz-credential", b"x-amz-signature", b"x-amz-signedheaders", b"x-amz-security-token", b"x-amz-date",
    b"x-amz-expires", b"x-amz-region-set", b"x-amz-s3session-token", b"awsaccesskeyid", b"signature", b"key-pair-id",
})  # fmt: skip
_SIGNED = frozenset({b"host", b"content-type", b"content-md5"})
_SCOPE = re.compile(
    rb"AWS4-HMAC-SHA256\s+(?:.*[,\s])?Credential=[^/,\s]{1,128}/[0-9]{8}/([a-z0-9-]{1,32})/([a-z0-9-]{1,32})/aws4_request(?:[,\s].*)?"
)
_REGION = r"(?P<region>[a-z]{2}(?:-[a-z]+)+-[0-9])"
# The hosts of the services that clients without an SDK are pointed at; the last one names the service in its first label.
_HOSTS = tuple(
    re.compile(pattern + r"\.amazonaws\.com(?:\.cn)?")
    for pattern in (
        rf"(?:.+\.)?(?P<service>s3)(?:\.dualstack)?[.-]{_REGION}",
        r"(?:.+\.)?(?P<service>s3)",
        rf"[a-z0-9]+\.(?P<service>execute-api)\.{_REGION}",
        r"(?P<service>sts|iam|cloudfront|route53)",
        rf"(?P<service>[a-z0-9-]+)\.{_REGION}",
    )
)


class CannotSign(Exception):
    """This request cannot be signed; the text says why and what to do, and holds nothing secret."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a signature is for."""

    region: str
    service: str


def scope_of(host: str, headers: Headers) -> Scope:
    """Region and service of a request, by the client's own signature or else by the host. Raises CannotSign."""
    for name, value in headers:
        # The bound keeps the pattern's steps few, whatever the value.
        if name.lower() == b"authorization" and len(value) <= 1024 and (found := _SCOPE.fullmatch(value.strip())):
            return Scope(found[1].decode(), found[2].decode())
    for pattern in _HOSTS:
        if match := pattern.fullmatch(host.lower()):
            return Scope(match.groupdict().get("region") or "us-east-1", match["service"])
    raise CannotSign(
        "the host names no AWS region and service, and the client sent no signature that does; sign with the placeholder"
    )


def payload_of(service: str, headers: Headers, digest: str | None) -> str | None:
    """What stands for the body in the signature; None when the caller has to read the body and tell its digest. Raises CannotSign."""
    claimed = [value.decode("latin-1") for name, value in headers if name.lower() == b"x-amz-content-sha256"]
    if not claimed:
        return digest or (UNSIGNED if service == "s3" else None)
    if len(set(claimed)) > 1:
        raise CannotSign("x-amz-content-sha256 is there twice; send it once")
    if claimed[0] in _UNSIGNED_PAYLOADS or _DIGEST.fullmatch(claimed[0]):
        return claimed[0]
    raise CannotSign("the body is signed in chunks, with a key that is not the real one; send it unsigned or whole")


def sign(
    method: bytes, host: str, target: bytes, headers: Headers, secret: Secret, *, digest: str | None, now: dt.datetime
) -> list[tuple[bytes, bytes]]:
    """The request's headers (names in lower case, without Host) with the signature in place of what the client sent of one.

    `host` is what goes into Host; `target` an origin-form target, sent as it is; `digest` the hex SHA-256 of the body if it is known;
    `secret` has `key_id`, `key` and perhaps `session`; `now` is aware. Raises CannotSign.
    """
    if secret.form is not SecretForm.AWS:
        raise CannotSign("the credential is no AWS key; use one of kind aws-sts, or static with `form: aws`")
    scope = scope_of(host, headers)
    payload = payload_of(scope.service, headers, digest)
    if payload is None:
        raise CannotSign(f"{scope.service} wants the body's digest; send x-amz-content-sha256")
    time = now.astimezone(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in {*_REPLACED, b"host"}]
    kept += [(b"x-amz-date", time.encode()), (b"x-amz-content-sha256", payload.encode())]
    if secret.parts.get("session"):
        kept.append((b"x-amz-security-token", secret.parts["session"].encode()))
    covered = [
        (b"host", host.encode()),
        *(each for each in kept if each[0] in _SIGNED or each[0].startswith(b"x-amz-")),
    ]
    value = authorization(method, target, covered, payload, secret, scope, time)
    return [*kept, (b"authorization", value.encode())]


def authorization(
    method: bytes, target: bytes, covered: Headers, payload: str, secret: Secret, scope: Scope, time: str
) -> str:
    """The value of Authorization that signs exactly these headers. `time` is `YYYYMMDDTHHMMSSZ`. Raises CannotSign."""
    path, _, query = target.partition(b"?")
    lines, names = _canonical_headers(covered)
    request = b"\n".join(
        [method, _canonical_path(path, scope.service), _canonical_query(query), lines, names, payload.encode()]
    )
    within = f"{time[:8]}/{scope.region}/{scope.service}/aws4_request"
    text = f"{ALGORITHM}\n{time}\n{within}\n{hashlib.sha256(request).hexdigest()}"
    key = b"AWS4" + secret.parts["key"].encode()
    for part in within.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{secret.parts['key_id']}/{within}"
    return f"{ALGORITHM} Credential={credential}, SignedHeaders={names.decode()}, Signature={signature}"


def _canonical_path(path: bytes, service: str) -> bytes:
    """S3 signs a path's names as they are meant, all others as they are sent, and encodes them once more."""
    text = unquote_to_bytes(path) if service == "s3" else path
    return quote_from_bytes(text or b"/", safe="/~").encode()


def _canonical_query(query: bytes) -> bytes:
    if b"+" in query or b";" in query:
        raise CannotSign("a query with `+` or `;` reads in two ways; write %20, %2B or %3B")
    pairs = []
    for part in query.split(b"&") if query else []:
        name, _, value = part.partition(b"=")
        meant = unquote_to_bytes(name)
        if meant.lower() in _PRESIGNED:
            raise CannotSign("the query has a signature of its own; send the request without one")
        pairs.append((quote_from_bytes(meant, safe="~"), quote_from_bytes(unquote_to_bytes(value), safe="~")))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs)).encode()


def _canonical_headers(covered: Headers) -> tuple[bytes, bytes]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in covered:
        values.setdefault(name.lower(), []).append(b" ".join(value.split()))
    lines = b"".join(name + b":" + b",".join(values[name]) + b"\n" for name in sorted(values))
    return lines, b";".join(sorted(values))
