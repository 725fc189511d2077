"""A secret that the operator has: read at start with the operator's own rights, the same for every call, and never revocable.

The flag is in each record: its proof says that nobody was asked and that the secret lives on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fumehood.credentials.options import Options, parsed, required
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm

# What the parts of a secret are called in fumehood.yaml and, after it, in `Secret.parts`; the last one of AWS may be missing.
_PARTS: dict[str, dict[str, str]] = {
    "token": {"token": "token"},
    "password": {"user": "user", "password": "password"},
    "aws": {"key_id": "key_id", "key": "key", "session": "session"},
    "ssh": {"private_key": "key", "certificate": "certificate"},
}
_OPTIONAL = frozenset({"session"})


class StaticOptions(Options):
    """Which parts the secret has."""

    form: Literal["token", "password", "aws", "ssh"] = "token"


OPTIONS = StaticOptions
SECRETS = tuple(name for parts in _PARTS.values() for name in parts)
REQUIRED: tuple[str, ...] = ()  # it depends on the form: `make` says


class Static:
    """Hands out what it holds."""

    kind = "static"
    revocable = False
    least_s = 0.0

    def __init__(self, form: SecretForm, parts: Mapping[str, str]) -> None:
        self._secret = Secret(form=form, parts=dict(parts))
        self.maximum: Mapping[str, Any] = {}

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """Nothing could revoke it."""
        del request
        return {}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """What it holds."""
        del request, handle
        return Issued(secret=self._secret, expires_at_s=None)

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """Say that it cannot be done."""
        del handle, sealed
        return Revoked(gone=False, asked="nobody", answer="a static secret is not revocable")


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> Static:
    """The provider. Raises FumehoodError."""
    form = parsed(name, StaticOptions, options).form
    names = _PARTS[form]
    required(name, secrets, set(names) - _OPTIONAL)
    return Static(SecretForm(form), {part: secrets[key] for key, part in names.items() if secrets.get(key)})
