"""Access tokens (RFC 9068, RFC 7519): what its claims must be before one is its subject's word. Pure.

A token is for one issuer, one audience and a short time. Attacks: a token that the same user has for another service (its `aud` is
another); an id token (its `typ`, and its audience is the client); one without an end; one that an issuer made for a year; a subject
that the operator never named. `cnf` says to which key it was issued (RFC 7800); a method of confirmation that is not known here
cannot be confirmed, so such a token is refused and not taken for an unbound one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fumehood.gateway.oauth.keys import KEY_ID_CHARACTERS
from fumehood.gateway.oauth.signed import Signed, UnfitError
from fumehood.oauth_config import IssuerConfig, OAuthConfig

TOKEN_CHARACTERS = 8 * 1024
SKEW_S = 30.0
_INVALID = "invalid_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """To whom a token was issued: the thumbprint of a DPoP key (RFC 9449), the digest of a certificate (RFC 8705), or neither."""

    key: str | None = None
    certificate: str | None = None


def issuer_of(signed: Signed, config: OAuthConfig) -> IssuerConfig:
    """The issuer that it says it is of, by whose keys alone it can be verified. Raises UnfitError."""
    said = signed.claims.get("iss")
    for each in config.issuers:
        if each.issuer == said:
            return each
    raise UnfitError(_INVALID, "the token is of an issuer that is not believed here")


def key_id_of(signed: Signed, issuer: IssuerConfig) -> str:
    """Which of the issuer's keys it names, for an algorithm that is pinned. Raises UnfitError."""
    if signed.algorithm not in issuer.algorithms:
        raise UnfitError(_INVALID, "the token is signed with an algorithm that is not believed here")
    typ = signed.header.get("typ")
    said = typ.lower().removeprefix("application/") if isinstance(typ, str) else None
    if said != issuer.typ:
        raise UnfitError(_INVALID, f"the token is no access token: its `typ` is not {issuer.typ}")
    name = signed.header.get("kid")
    if not isinstance(name, str) or not 0 < len(name) <= KEY_ID_CHARACTERS:
        raise UnfitError(_INVALID, "the token does not name its key (`kid`)")
    return name


def judge(claims: Mapping[str, Any], issuer: IssuerConfig, resource: str, now_s: float) -> None:
    """Whether verified claims are for here and now. Raises UnfitError."""
    audience = claims.get("aud")
    if resource not in (audience if isinstance(audience, list) else [audience]):
        raise UnfitError(_INVALID, "the token is for another resource")
    expires, issued, begins = (_time(claims, name) for name in ("exp", "iat", "nbf"))
    if expires is None or issued is None:
        raise UnfitError(_INVALID, "the token does not say when it was issued and when it expires")
    if now_s >= expires + SKEW_S:
        raise UnfitError(_INVALID, "the token has expired")
    if max(issued, begins or issued) > now_s + SKEW_S:
        raise UnfitError(_INVALID, "the token is not valid yet")
    if expires - issued > issuer.lifetime_s:
        raise UnfitError(_INVALID, "the token lives longer than tokens may here")


def confirmation_of(claims: Mapping[str, Any]) -> Confirmation:
    """To whom it was issued. Raises UnfitError."""
    said = claims.get("cnf", {})
    known = {"jkt", "x5t#S256"}
    if not isinstance(said, dict) or not said.keys() <= known or not all(isinstance(value, str) for value in said.values()):
        raise UnfitError(_INVALID, "the token is bound in a way that is not known here")
    if "cnf" in claims and not said:
        raise UnfitError(_INVALID, "the token is bound to nothing")
    return Confirmation(key=said.get("jkt"), certificate=said.get("x5t#S256"))


def sender_of(claims: Mapping[str, Any], issuer: IssuerConfig) -> str:
    """The sender that the operator named for this subject. Raises UnfitError(403)."""
    fitting = [each.name for each in issuer.senders if all(_has(claims, name, value) for name, value in each.claims)]
    if len(fitting) != 1:
        # Of two, the one of them would get the other's sessions by the order of a file.
        raise UnfitError("", "this subject is not admitted" if not fitting else "this subject fits two senders", 403)
    return issuer.sender_name(fitting[0])


def check_scopes(claims: Mapping[str, Any], scopes: tuple[str, ...]) -> None:
    """Whether it is good for all of these. Raises UnfitError(403)."""
    said = claims.get("scope", "")
    granted = said.split(" ") if isinstance(said, str) else []
    if not set(scopes) <= set(granted):
        raise UnfitError("insufficient_scope", f"the token is not good for {' '.join(scopes)}", 403)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Seconds since the epoch (RFC 7519 section 2). Raises UnfitError for anything else."""
    said = claims.get(name)
    if said is not None and type(said) not in (int, float):
        raise UnfitError(_INVALID, f"the token's `{name}` is no time")
    return said


def _has(claims: Mapping[str, Any], name: str, value: str) -> bool:
    """Whether a claim is this value, or a list with it. Only of texts: 1 and true and "1" are three subjects."""
    said = claims.get(name)
    return said == value if isinstance(said, str) else isinstance(said, list) and value in said and name != "sub"
