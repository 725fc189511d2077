"""OAuth access tokens for one call: token exchange (RFC 8693) or client credentials, for one resource (RFC 8707).

Tokens are narrowed by scope, audience and resource, and revoked (RFC 7009) when the server is configured with an URL for that; else
they live as long as the server says, and the record says that nobody could revoke them. A token with a wider scope than was asked
for is not used.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from fumehood.credentials.asking_http import Http, checked_url, refused, text_of
from fumehood.credentials.options import Options, Text, Texts, maximum_of, parsed, required
from fumehood.faults import FumehoodError
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm
from fumehood.reasons import Reason

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
_ASKED = "POST to the token endpoint"
# A server that does not say how long a token lives mostly gives it an hour.
_USUAL_S = 3600.0


class Allow(Options):
    """The most that a profile's `scope` may ask for; without a scope, all of it is asked for."""

    scopes: Texts | None = None
    audience: Text | Texts | None = None
    resource: Text | Texts | None = None


class OAuthOptions(Options):
    """Which server, as which client, and what for."""

    token_url: Text
    revocation_url: Text | None = None
    grant: Literal["token-exchange", "client-credentials"] = "token-exchange"
    client_id: Text | None = None
    client_auth: Literal["basic", "post", "none"] = "basic"
    subject_token_type: Text = _ACCESS_TOKEN
    allow: Allow = Field(default_factory=Allow)


OPTIONS = OAuthOptions
SECRETS = ("client_secret", "subject_token", "ca")
REQUIRED: tuple[str, ...] = ()  # it depends on the grant: `make` says


class OAuth:
    """Asks one authorization server."""

    kind = "oauth-exchange"

    def __init__(self, options: OAuthOptions, secrets: Mapping[str, str], http: Http) -> None:
        self._options = options
        self._secrets = dict(secrets)
        self._http = http
        self.revocable = options.revocation_url is not None
        self.least_s = _USUAL_S
        self.maximum: Mapping[str, Any] = maximum_of(options.allow)

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """Where its token is revoked; the token itself is sealed once it is there."""
        del request
        return {"server": self._options.token_url}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """An access token for the scope, or for all that is allowed."""
        del handle
        form: dict[str, Any] = {"grant_type": "client_credentials"}
        if self._options.grant == "token-exchange":
            form = {
                "grant_type": _EXCHANGE, "subject_token": self._secrets["subject_token"],
                "subject_token_type": self._options.subject_token_type, "requested_token_type": _ACCESS_TOKEN,
            }  # fmt: skip
        wanted = {key: request.scope.get(key, self.maximum.get(key)) for key in ("scopes", "audience", "resource")}
        scopes = _list(wanted["scopes"])
        if scopes:
            form["scope"] = " ".join(scopes)
        form |= {key: _list(wanted[key]) for key in ("audience", "resource") if wanted[key]}
        answered = await self._ask(self._options.token_url, form)
        token = text_of(answered, "access_token", _ASKED)
        sealed = {"token": token} if self.revocable else {}
        granted = answered.fields.get("scope")
        if scopes and isinstance(granted, str) and not set(granted.split()) <= set(scopes):
            await self.revoke({"server": self._options.token_url}, {"token": token})
            raise FumehoodError(Reason.LEASE_FAILED, f"{_ASKED}: the server granted more scopes than were asked for")
        lives_s = answered.fields.get("expires_in")
        known = isinstance(lives_s, int | float) and not isinstance(lives_s, bool) and lives_s > 0
        return Issued(
            secret=Secret(form=SecretForm.TOKEN, parts={"token": token}),
            expires_at_s=time.time() + (float(lives_s) if known else _USUAL_S),
            sealed=sealed,
            facts={key: value for key, value in wanted.items() if value},
        )

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """Ask the server to forget the token. It answers 200 for one that it does not know, too."""
        if handle.get("server") != self._options.token_url:
            raise FumehoodError(Reason.LEASE_FAILED, "it was issued by another server than is configured now")
        url = self._options.revocation_url
        if url is None:
            return Revoked(gone=False, asked="nobody", answer="the server is configured without a revocation endpoint")
        token = sealed.get("token")
        if token is None:
            answer = "the answer to its issue was lost; it lives as long as the server lets it"
            return Revoked(gone=False, asked="nobody", answer=answer)
        answered = await self._ask(url, {"token": token, "token_type_hint": "access_token"})
        if answered.status != 200:
            raise refused("POST to the revocation endpoint", answered)
        return Revoked(gone=True, asked="POST to the revocation endpoint", answer="200")

    async def _ask(self, url: str, form: Mapping[str, Any]) -> Any:
        """Ask as the client that we are."""
        client, secret = self._options.client_id, self._secrets.get("client_secret", "")
        match self._options.client_auth:
            case "basic" if client is not None:
                return await self._http.ask("POST", url, form=form, basic=(_encoded(client), _encoded(secret)))
            case "post" if client is not None:
                return await self._http.ask("POST", url, form={**form, "client_id": client, "client_secret": secret})
            case _:
                return await self._http.ask("POST", url, form=form if client is None else {**form, "client_id": client})


def _list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _encoded(value: str) -> str:
    """As RFC 6749, 2.3.1 has it: what goes into Basic is form-encoded first."""
    from urllib.parse import quote_plus

    return quote_plus(value)


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> OAuth:
    """The provider. Raises FumehoodError."""
    found = parsed(name, OAuthOptions, options)
    checked_url(name, "token_url", found.token_url)
    if found.revocation_url is not None:
        checked_url(name, "revocation_url", found.revocation_url)
    if found.grant == "token-exchange":
        required(name, secrets, ["subject_token"])
    if found.grant == "client-credentials" or found.client_id is not None:
        required(name, secrets, [] if found.client_auth == "none" else ["client_secret"])
    if found.grant == "client-credentials" and found.client_id is None:
        raise FumehoodError(Reason.CONFIG_INVALID, f"credentials.{name}.client_id: expected this field for client-credentials")
    return OAuth(found, secrets, Http(secrets.get("ca")))
