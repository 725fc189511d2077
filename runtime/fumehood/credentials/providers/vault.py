"""Dynamic secrets of Vault or OpenBao, read with a token made for one call.

    auth/token/create            a child of the operator's token, with one policy and a life of minutes
    GET <path>                   with the child: the secret, and the id of its lease
    sys/leases/revoke            and auth/token/revoke-accessor, which ends whatever else the child made

The child's accessor is journalled before the secret is read (rule 19): an accessor can revoke and do nothing else. If the process dies
before that, the child has read nothing, and ends by itself.

Asked over HTTP by ourselves: the usual client library is synchronous, so a revocation could not be bounded, and it follows redirects
with the token.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from fumehood.credentials.asking_http import Answered, Http, checked_url, refused
from fumehood.credentials.options import Options, Text, Texts, parsed, required
from fumehood.faults import FumehoodError
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm
from fumehood.reasons import Reason

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", re.ASCII)
_PARTS: dict[str, tuple[str, ...]] = {
    "token": ("token",),
    "password": ("user", "password"),
    "aws": ("key_id", "key", "session"),
    "ssh": ("key", "certificate"),
}
_OPTIONAL = frozenset({"session"})
# As the engines of databases, AWS and KV call what we call by another name.
_USUAL = {
    "password": {"user": "username", "password": "password"},
    "aws": {"key_id": "access_key", "key": "secret_key", "session": "security_token"},
    "ssh": {"key": "private_key", "certificate": "signed_key"},
    "token": {"token": "token"},
}


class Allow(Options):
    """The paths that a profile's `scope` may name in place of `path`; they may hold `*`."""

    path: Texts = Field(default_factory=list)


class VaultOptions(Options):
    """Which server, which secret there, and which policies read it."""

    address: Text
    namespace: Text | None = None
    path: Text | None = None
    policies: Texts = Field(min_length=1)
    form: Literal["token", "password", "aws", "ssh"] = "password"
    fields: dict[str, Text] = Field(default_factory=dict)
    allow: Allow = Field(default_factory=Allow)


OPTIONS = VaultOptions
SECRETS = ("token", "ca")
REQUIRED = ("token",)


class Vault:
    """Reads one secret a call, each with a token of its own."""

    kind = "vault"
    revocable = True
    least_s = 0.0

    def __init__(self, options: VaultOptions, token: str, http: Http) -> None:
        self._options = options
        self._address = options.address.rstrip("/")
        self._token = token
        self._http = http
        self._children: dict[str, str] = {}
        self.maximum: Mapping[str, Any] = {"path": [*options.allow.path, *([options.path] if options.path else [])]}

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """Make the child token, which has read nothing yet, and name what revokes it."""
        self._path(request)
        asked = "POST auth/token/create"
        body = {
            "policies": self._options.policies, "ttl": f"{int(request.seconds)}s", "explicit_max_ttl": f"{int(request.seconds)}s",
            "renewable": False, "no_default_policy": True, "display_name": "fumehood",
            "meta": {"lease": request.lease, "task": request.task},
        }  # fmt: skip
        answered = await self._ask("POST", "auth/token/create", self._token, body)
        auth = answered.fields.get("auth")
        if answered.status != 200 or not isinstance(auth, dict) or not auth.get("client_token") or not auth.get("accessor"):
            raise refused(asked, answered, "auth")
        self._children[request.lease] = str(auth["client_token"])
        return {"server": self._address, "accessor": str(auth["accessor"])}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """Read the secret with the child token."""
        del handle
        path = self._path(request)
        child = self._children.pop(request.lease, "")
        answered = await self._ask("GET", path, child)
        data = answered.fields.get("data")
        if answered.status != 200 or not isinstance(data, dict):
            raise refused("GET of the secret", answered, "data")
        lives_s, lease = answered.fields.get("lease_duration"), str(answered.fields.get("lease_id") or "")
        known = isinstance(lives_s, int | float) and not isinstance(lives_s, bool) and 0 < lives_s < request.seconds
        return Issued(
            secret=self._secret(data),
            expires_at_s=time.time() + (float(lives_s) if known and lives_s is not None else request.seconds),
            sealed={"lease": lease},
            facts={"path": path, "dynamic": bool(lease)},
        )

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """Revoke the secret's lease, then the child token with all that it made."""
        if handle.get("server") != self._address:
            raise FumehoodError(Reason.LEASE_FAILED, "it was issued by another server than is configured now")
        told, asked = [], ["POST sys/leases/revoke", "POST auth/token/revoke-accessor"]
        if lease := sealed.get("lease"):
            told.append(await self._end("sys/leases/revoke", {"lease_id": lease, "sync": True}))
        told.append(await self._end("auth/token/revoke-accessor", {"accessor": handle.get("accessor")}))
        if lease == "":
            return Revoked(gone=False, asked=asked[1], answer=f"{told[0]}; but the secret has no lease: it is not revocable")
        return Revoked(gone=True, asked=", ".join(asked[-len(told) :]), answer=", ".join(told))

    async def _end(self, path: str, body: Mapping[str, Any]) -> str:
        answered = await self._ask("POST", path, self._token, body)
        if answered.status in {200, 204}:
            return str(answered.status)
        # 400 is what both answer for what they do not know (any more); whatever else is wrong has another number or other words.
        words = " ".join(str(each) for each in answered.fields.get("errors") or ())
        if answered.status in {400, 403, 404} and ("invalid accessor" in words or "not found" in words or "invalid lease" in words):
            return f"{answered.status} (gone already)"
        raise refused(f"POST {path}", answered)

    async def _ask(self, method: str, path: str, token: str, body: Mapping[str, Any] | None = None) -> Answered:
        headers = {"X-Vault-Token": token, "X-Vault-Request": "true"}
        if self._options.namespace:
            headers["X-Vault-Namespace"] = self._options.namespace
        return await self._http.ask(method, f"{self._address}/v1/{path}", headers=headers, body=body)

    def _path(self, request: LeaseRequest) -> str:
        path = request.scope.get("path", self._options.path)
        if not isinstance(path, str) or _PATH.fullmatch(path) is None:
            raise FumehoodError(Reason.SCOPE_REFUSED, "the scope must name one path: neither it nor `path` does")
        return path

    def _secret(self, data: Mapping[str, Any]) -> Secret:
        form = self._options.form
        # The second version of KV has its fields a level deeper.
        inner = data.get("data")
        fields: Mapping[str, Any] = inner if isinstance(inner, dict) else data
        parts: dict[str, str] = {}
        for part in _PARTS[form]:
            value = fields.get(self._options.fields.get(part, _USUAL[form][part]))
            if isinstance(value, str) and value:
                parts[part] = value
            elif part not in _OPTIONAL:
                raise FumehoodError(Reason.LEASE_FAILED, f"the secret has no field for `{part}`; name it in `fields`")
        return Secret(form=SecretForm(form), parts=parts)


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> Vault:
    """The provider. Raises FumehoodError."""
    found = parsed(name, VaultOptions, options)
    required(name, secrets, REQUIRED)
    checked_url(name, "address", found.address)
    if unknown := set(found.fields) - set(_PARTS[found.form]):
        detail = f"credentials.{name}.fields.{min(unknown)}: expected one of {', '.join(_PARTS[found.form])}"
        raise FumehoodError(Reason.CONFIG_INVALID, detail)
    return Vault(found, secrets["token"], Http(secrets.get("ca")))
