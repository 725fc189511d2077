"""GitHub App installation tokens, narrowed to repositories and permissions, revoked with themselves.

    POST /app/installations/ID/access_tokens   with a JWT of the app's private key, naming repositories and permissions
    DELETE /installation/token                 with the token

A token is revoked by who holds it, so it is sealed into the journal. If the answer to its issue is lost nobody holds it: it lives for
the hour that GitHub gives it, and the record says so. What GitHub says it granted is compared with what was asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from fumehood.credentials.asking_http import Answered, Http, checked_url, refused, text_of
from fumehood.credentials.options import Options, Text, Texts, parsed, required
from fumehood.faults import FumehoodError
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm
from fumehood.reasons import Reason

HOUR_S = 3600.0
Level = Literal["read", "write", "admin"]
_LEVELS: tuple[Level, ...] = ("read", "write", "admin")
_HEADERS = {"X-GitHub-Api-Version": "2022-11-28"}
_ASKED = "POST /app/installations/*/access_tokens"


class Allow(Options):
    """The most that a profile's `scope` may ask for. Repositories are `owner/name`, and may hold `*`."""

    repositories: Texts = Field(min_length=1)
    permissions: dict[str, Level] = Field(min_length=1)


class GitHubOptions(Options):
    """Which app, which installation of it, and what of it may be used."""

    app_id: int = Field(ge=1)
    installation_id: int = Field(ge=1)
    api_url: Text = "https://api.github.com"
    allow: Allow


OPTIONS = GitHubOptions
SECRETS = ("private_key", "ca")
REQUIRED = ("private_key",)


class GitHubApp:
    """Asks GitHub for tokens of one installation."""

    kind = "github-app"
    revocable = True
    least_s = HOUR_S

    def __init__(self, options: GitHubOptions, url: str, private_key: str, http: Http) -> None:
        self._options = options
        self._url = url.rstrip("/")
        self._private_key = private_key
        self._http = http
        allow = options.allow
        levels = {name: list(_LEVELS[: _LEVELS.index(level) + 1]) for name, level in allow.permissions.items()}
        self.maximum: Mapping[str, Any] = {"repositories": allow.repositories, "permissions": levels}

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """Where its token is revoked; the token itself is sealed once it is there."""
        del request
        return {"api": self._url}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """A token for the scope's repositories and permissions, or for all that is allowed."""
        del handle
        repositories = self._repositories(request)
        permissions = dict(request.scope.get("permissions") or self._options.allow.permissions)
        body = {"repositories": [name.partition("/")[2] for name in repositories], "permissions": permissions}
        url = f"{self._url}/app/installations/{self._options.installation_id}/access_tokens"
        answered = await self._http.ask("POST", url, headers={**_HEADERS, "Authorization": f"Bearer {self._jwt()}"}, body=body)
        token = text_of(answered, "token", _ASKED)
        if wider := _wider(answered, repositories, permissions):
            await self.revoke({"api": self._url}, {"token": token})
            raise FumehoodError(Reason.LEASE_FAILED, f"{_ASKED}: GitHub granted more than was asked for: {wider}")
        return Issued(
            secret=Secret(form=SecretForm.TOKEN, parts={"token": token}),
            expires_at_s=_instant(answered),
            sealed={"token": token},
            facts={"repositories": repositories, "permissions": permissions},
        )

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """Delete the token. One that GitHub does not know any more is gone."""
        if handle.get("api") != self._url:
            raise FumehoodError(Reason.LEASE_FAILED, "it was issued by another GitHub than is configured now")
        token = sealed.get("token")
        if token is None:
            return Revoked(gone=False, asked="nobody", answer="the answer to its issue was lost; GitHub ends it within an hour")
        asked = "DELETE /installation/token"
        answered = await self._http.ask(
            "DELETE", f"{self._url}/installation/token", headers={**_HEADERS, "Authorization": f"Bearer {token}"}
        )
        if answered.status not in {204, 401}:
            raise refused(asked, answered)
        return Revoked(gone=True, asked=asked, answer=f"{answered.status}" + (" (gone already)" if answered.status == 401 else ""))

    def _repositories(self, request: LeaseRequest) -> list[str]:
        named = request.scope.get("repositories") or self._options.allow.repositories
        repositories = [named] if isinstance(named, str) else list(named)
        for name in repositories:
            owner, slash, rest = name.partition("/")
            if not (owner and slash and rest) or "/" in rest or "*" in name or "?" in name:
                detail = "the scope must name repositories as owner/name, because `allow.repositories` has patterns"
                raise FumehoodError(Reason.SCOPE_REFUSED, detail)
        return repositories

    def _jwt(self) -> str:
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import RSAKey

        now_s = int(time.time())
        claims = {"iss": str(self._options.app_id), "iat": now_s - 60, "exp": now_s + 540}
        try:
            return jwt.encode({"alg": "RS256"}, claims, RSAKey.import_key(self._private_key), algorithms=["RS256"])
        except (JoseError, ValueError):
            raise FumehoodError(Reason.CONFIG_INVALID, "private_key: expected an RSA key in PEM") from None


def _wider(answered: Answered, repositories: list[str], permissions: Mapping[str, str]) -> str:
    """What was granted beyond what was asked for; nothing, mostly. `metadata: read` comes with every token."""
    granted = answered.fields.get("permissions")
    for name, level in granted.items() if isinstance(granted, dict) else ():
        asked = permissions.get(name, "read" if name == "metadata" else None)
        if asked is None or level not in _LEVELS or _LEVELS.index(level) > _LEVELS.index(asked):
            return f"permissions.{name}"
    if answered.fields.get("repository_selection") == "all":
        return "all repositories"
    listed = answered.fields.get("repositories")
    names = {each.get("full_name") for each in listed if isinstance(each, dict)} if isinstance(listed, list) else set()
    return "repositories" if names - set(repositories) else ""


def _instant(answered: Answered) -> float:
    try:
        return datetime.fromisoformat(str(answered.fields.get("expires_at"))).timestamp()
    except ValueError:
        return time.time() + HOUR_S


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> GitHubApp:
    """The provider. Raises FumehoodError."""
    found = parsed(name, GitHubOptions, options)
    required(name, secrets, REQUIRED)
    return GitHubApp(found, checked_url(name, "api_url", found.api_url), secrets["private_key"], Http(secrets.get("ca")))
