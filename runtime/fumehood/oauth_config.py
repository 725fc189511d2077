"""What `gateway.http.oauth` says, as frozen values, and what of it others are told. Pure; standard library only.

The gateway is a resource server: it issues nothing, and believes an access token only when an issuer that the operator names signed
it, for this gateway (RFC 8707), to a subject that the operator names. A sender is the issuer's subject and not a subject alone: two
issuers may both have an `alice`.

The description (RFC 9728) is made from the configuration and from nothing of a request: what a client is told of where to get its
tokens, and for whom, must not depend on what somebody wrote into a Host header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

PATH = "/mcp"
WELL_KNOWN = "/.well-known/oauth-protected-resource"
# Pinned per issuer. None with a shared key: who can check such a token could have made it.
ALGORITHMS = ("ES256", "ES384", "EdDSA", "Ed25519", "PS256", "RS256")
PROOF_ALGORITHMS = ("ES256", "EdDSA", "Ed25519")
MAX_ISSUERS = 8
MAX_SENDERS = 256
MAX_SCOPES = 16
LIFETIME_S = 3600.0

_URL = re.compile(
    r"https://(?P<name>(?!.*\.\.)[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?(?P<path>/[!-\"$->@-~]*)?"
)
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")


class Binding(StrEnum):
    """What a client shows beside its token: that it has the key, or the certificate, which the token was issued to."""

    DPOP = "dpop"
    MTLS = "mtls"
    EITHER = "either"
    NONE = "none"

    @property
    def takes_proofs(self) -> bool:
        """Whether DPoP proofs are of use."""
        return self in (Binding.DPOP, Binding.EITHER, Binding.NONE)

    @property
    def takes_certificates(self) -> bool:
        """Whether clients are asked for certificates."""
        return self in (Binding.MTLS, Binding.EITHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysConfig:
    """Where an issuer's public keys are: a file, or a URL whose name may resolve to `addresses` (CIDR) beside public ones."""

    file: str | None = None
    url: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectConfig:
    """A sender: its name, and the claims that all have to be in a token of its, each with this very value."""

    name: str
    claims: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerConfig:
    """One issuer. `typ` is what its tokens call themselves, in lower case; `lifetime_s` the longest that one may live."""

    issuer: str
    keys: KeysConfig
    algorithms: tuple[str, ...]
    typ: str = "at+jwt"
    lifetime_s: float = LIFETIME_S
    senders: tuple[SubjectConfig, ...] = ()

    def sender_name(self, name: str) -> str:
        """A sender of this issuer's, as records have it; `@` is in no other kind of name."""
        return f"oauth:{name}@{self.issuer.removeprefix('https://')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthConfig:
    """The whole section. `client_authorities` is the path of a PEM file that clients' certificates are verified by."""

    resource: str
    issuers: tuple[IssuerConfig, ...]
    binding: Binding
    scopes: tuple[str, ...] = ()
    client_authorities: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Everything on disk that decides something here."""
        own = () if self.client_authorities is None else (self.client_authorities,)
        return (*own, *(each.keys.file for each in self.issuers if each.keys.file is not None))

    @property
    def host(self) -> str:
        """The name in the resource's URL, as a Host header has it, without the port."""
        found = _URL.fullmatch(self.resource)
        return "" if found is None else found["name"]

    @property
    def url(self) -> str:
        """Where requests are sent, by the operator's word: what proofs have to name (`htu`)."""
        return _origin(self.resource) + PATH

    @property
    def description_url(self) -> str:
        """Where this resource is described (RFC 9728 section 3.1)."""
        return _origin(self.resource) + WELL_KNOWN + urlsplit(self.resource).path.rstrip("/")

    def descriptions(self) -> Mapping[str, bytes]:
        """The resource's description, by each path that it is served at."""
        text = json.dumps(self.description(), separators=(",", ":")).encode()
        return {WELL_KNOWN: text, WELL_KNOWN + PATH: text}

    def description(self) -> dict[str, Any]:
        """The protected resource metadata (RFC 9728 section 2)."""
        said: dict[str, Any] = {
            "resource": self.resource,
            "authorization_servers": [each.issuer for each in self.issuers],
            "bearer_methods_supported": ["header"],
        }
        if self.scopes:
            said["scopes_supported"] = list(self.scopes)
        if self.binding.takes_proofs:
            said["dpop_signing_alg_values_supported"] = list(PROOF_ALGORITHMS)
            said["dpop_bound_access_tokens_required"] = self.binding is Binding.DPOP
        said["tls_client_certificate_bound_access_tokens"] = self.binding is Binding.MTLS
        return said


def resource_of(text: str) -> str:
    """This gateway's identifier: the URL that clients call, or its origin. Raises ValueError with what was expected."""
    found = _fitting(text)
    if found is None or (found["path"] or "/") not in ("/", PATH):
        raise ValueError(f"expected the URL that clients call, https://name[:port]{PATH}, or without the path, found {text!r}")
    return text


def issuer_of(text: str) -> str:
    """An issuer's identifier (RFC 8414 section 2): an https URL without query and fragment. Raises ValueError."""
    if _fitting(text) is None or len(text) > 128:
        raise ValueError(f"expected an issuer as its tokens name it, https://name[:port]/path, found {text!r}")
    return text


def scope_of(text: str) -> str:
    """One scope (RFC 6749 section 3.3). Raises ValueError."""
    if not _SCOPE.fullmatch(text):
        raise ValueError(f"expected one scope, without a space, found {text!r}")
    return text


def _fitting(text: str) -> re.Match[str] | None:
    found = _URL.fullmatch(text)
    return None if found is None or int(found["port"] or 443) > 65535 else found


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"https://{parts.netloc}"
