"""The strict model of `gateway.http.oauth`, and what its fields mean together. Apart from `oauth_config` for its imports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from fumehood import gateway_config
from fumehood import oauth_config as values
from fumehood.oauth_config import Binding
from fumehood.profile.fields import AbsolutePath, Strict, Text, checked, duration, matching
from fumehood.profile.problems import Problem
from fumehood.profile.source import Path, Source

_CLAIM = r"^[A-Za-z0-9_.:/-]{1,128}$"
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_MAX_CLAIMS = 8
# What the gateway judges itself; as a sender's claim it would look like a second rule beside its own.
_JUDGED = ("iss", "aud", "exp", "nbf", "iat", "jti", "cnf", "scope")


Claim = Annotated[str, *matching(_CLAIM, "a claim's name")]
SenderName = Annotated[str, *matching(_NAME, "a sender's name of a-z, 0-9, `.`, `_`, `-`")]
ClaimValue = Annotated[Text, Field(min_length=1, max_length=256)]


class KeysDocument(Strict):
    """Where an issuer's public keys are, as a JWK Set (RFC 7517): `file` or `url`."""

    file: AbsolutePath | None = Field(default=None, description="A file that only root and you can write.")
    url: Annotated[str, checked(gateway_config.url_of)] | None = Field(
        default=None, description="https://name[:port]/path; read by the gateway itself, through the checks of every way out."
    )
    addresses: tuple[Annotated[str, checked(gateway_config.network_of)], ...] = Field(
        default=(), strict=False, description="Networks the URL's name may resolve to beside public ones. Default: none."
    )


class IssuerDocument(Strict):
    """One authorization server, and whom of its subjects the gateway serves."""

    issuer: Annotated[str, checked(values.issuer_of)] = Field(description="Exactly as `iss` in its tokens.")
    jwks: KeysDocument
    algorithms: tuple[Literal[values.ALGORITHMS], ...] = Field(  # type: ignore[valid-type] # one list of them
        strict=False, description="What it signs with; nothing else is believed."
    )
    typ: Literal["at+jwt", "jwt"] = Field(
        default="at+jwt", description="`jwt` for an issuer whose access tokens are not of RFC 9068."
    )
    lifetime: Annotated[float, *duration(1)] = Field(default=values.LIFETIME_S, description="The longest a token may live.")
    senders: dict[SenderName, dict[Claim, ClaimValue]] = Field(
        max_length=values.MAX_SENDERS, description="Senders by name, each with `sub` and whatever other claims must be in its tokens."
    )


class OAuthDocument(Strict):
    """The gateway as an OAuth resource server, beside or in place of `tokens_file`."""

    resource: Annotated[str, checked(values.resource_of)] = Field(
        description="This gateway's identifier, which `aud` of a token must have (RFC 8707): the URL that clients call."
    )
    issuers: tuple[IssuerDocument, ...] = Field(max_length=values.MAX_ISSUERS, strict=False)
    binding: Literal["dpop", "mtls", "either", "none"] = Field(
        description="What shows that a token is its user's: dpop (RFC 9449), mtls (RFC 8705), either; `none` takes stolen ones too."
    )
    scopes: tuple[Annotated[str, checked(values.scope_of)], ...] = Field(
        default=(), max_length=values.MAX_SCOPES, strict=False, description="What every token must be good for. Default: nothing."
    )
    client_authorities: AbsolutePath | None = Field(
        default=None, description="A PEM file of authorities, or of clients' own certificates, for mtls."
    )


def judge(document: OAuthDocument, source: Source, *, tls: bool, hosts: tuple[str, ...] | None) -> Iterator[Problem]:
    """What is wrong between fields that are each well-formed. `hosts` are the names that the gateway answers to, if known."""
    at: Path = ("gateway", "http", "oauth")
    if Binding(document.binding).takes_certificates:
        if document.client_authorities is None:
            yield source.problem((*at, "binding"), "expected `client_authorities` beside it: what certificates are verified by")
        if not tls:
            yield source.problem((*at, "binding"), "expected `gateway.http.tls`: certificates are shown in a TLS handshake")
    elif document.client_authorities is not None:
        yield source.problem((*at, "client_authorities"), f"expected nothing: with `binding: {document.binding}` none is asked for")
    host = plain(document).host
    if hosts is not None and host not in hosts:
        yield source.problem((*at, "resource"), f"expected `allowed_hosts` to have {host}: requests to it would be refused")
    if not document.issuers:
        yield source.problem((*at, "issuers"), "expected at least one: nobody could use the gateway")
    named: set[str] = set()
    for number, issuer in enumerate(document.issuers):
        here: Path = (*at, "issuers", number)
        if issuer.issuer in named:
            yield source.problem((*here, "issuer"), "expected each issuer once")
        named.add(issuer.issuer)
        yield from _judge_issuer(issuer, source, here)


def _judge_issuer(issuer: IssuerDocument, source: Source, at: Path) -> Iterator[Problem]:
    # Not by `min_length`: of a list with a wrong entry it would complain too, and first.
    for field in ("algorithms", "senders"):
        if not getattr(issuer, field):
            yield source.problem((*at, field), "expected at least one")
    keys = issuer.jwks
    if (keys.file is None) == (keys.url is None):
        yield source.problem((*at, "jwks"), "expected exactly one of `file` and `url`")
    if keys.url is None and keys.addresses:
        yield source.problem((*at, "jwks", "addresses"), "expected `url` beside it")
    yield from _judge_senders(issuer, source, at)


def _judge_senders(issuer: IssuerDocument, source: Source, at: Path) -> Iterator[Problem]:
    seen: dict[frozenset[tuple[str, str]], str] = {}
    for name, claims in issuer.senders.items():
        here = (*at, "senders", name)
        if "sub" not in claims:
            # Of a group or a client alone, its members would share sessions and results as one sender.
            yield source.problem(here, "expected `sub`: a sender is one subject")
        if len(claims) > _MAX_CLAIMS:
            yield source.problem(here, f"expected at most {_MAX_CLAIMS} claims")
        for claim in _JUDGED:
            if claim in claims:
                yield source.problem((*here, claim), "expected another claim: the gateway judges this one by itself")
        if (other := seen.setdefault(frozenset(claims.items()), name)) != name:
            yield source.problem(here, f"expected other claims than those of {other}")


def plain(document: OAuthDocument) -> values.OAuthConfig:
    """The section as the values that the rest of fumehood uses."""
    return values.OAuthConfig(
        resource=document.resource,
        issuers=tuple(
            values.IssuerConfig(
                issuer=each.issuer,
                keys=values.KeysConfig(file=each.jwks.file, url=each.jwks.url, addresses=each.jwks.addresses),
                algorithms=each.algorithms,
                typ=each.typ,
                lifetime_s=each.lifetime,
                senders=tuple(
                    values.SubjectConfig(name=name, claims=tuple(sorted(claims.items()))) for name, claims in each.senders.items()
                ),
            )
            for each in document.issuers
        ),
        binding=Binding(document.binding),
        scopes=document.scopes,
        client_authorities=document.client_authorities,
    )
