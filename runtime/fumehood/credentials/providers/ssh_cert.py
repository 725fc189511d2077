"""An SSH key of one call, with a certificate of minutes: signed here with the operator's authority, so nobody is asked.

A certificate cannot be taken back short of a revocation list on every server, so it ends with the call's longest time, and what it may
do is in it: principals, the forced command, the addresses it may come from. The record says that it was not revoked.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from fumehood.credentials.options import Options, Text, Texts, maximum_of, parsed, required
from fumehood.faults import FumehoodError
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm
from fumehood.reasons import Reason

MOST_S = 3600.0
# Clocks of servers differ.
_EARLIER_S = 60

Extension = Literal["permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding", "permit-user-rc"]


class Allow(Options):
    """The most that a profile's `scope` may ask for. Principals and commands may hold `*`."""

    principals: Texts = Field(min_length=1)
    force_command: Text | Texts | None = None


class SshOptions(Options):
    """What is in every certificate."""

    force_command: Text | None = None
    source_address: Texts | None = None
    extensions: list[Extension] = Field(default_factory=list)
    allow: Allow


OPTIONS = SshOptions
SECRETS = ("ca_key",)
REQUIRED = ("ca_key",)


class SshCertificates:
    """Signs with one authority."""

    kind = "ssh-cert"
    revocable = False
    least_s = 0.0

    def __init__(self, options: SshOptions, ca_key: str) -> None:
        self._options = options
        self._ca_key = ca_key
        self.maximum: Mapping[str, Any] = maximum_of(options.allow)

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """By what a server's log names it: nothing revokes it."""
        return {"key_id": f"fumehood-{request.lease}"}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """A fresh key and its certificate."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        principals = _names(request.scope.get("principals", self._options.allow.principals))
        if not principals or any("*" in name or "?" in name for name in principals):
            raise FumehoodError(Reason.SCOPE_REFUSED, "the scope must name principals, because `allow.principals` has patterns")
        command = request.scope.get("force_command", self._options.force_command)
        ends_s = int(time.time() + min(MOST_S, request.seconds))
        key = Ed25519PrivateKey.generate()
        builder = (
            serialization.SSHCertificateBuilder()
            .public_key(key.public_key())
            .type(serialization.SSHCertificateType.USER)
            .key_id(str(handle["key_id"]).encode())
            .valid_principals([name.encode() for name in principals])
            .valid_after(int(time.time()) - _EARLIER_S)
            .valid_before(ends_s)
        )
        if command is not None:
            builder = builder.add_critical_option(b"force-command", str(command).encode())
        if self._options.source_address:
            builder = builder.add_critical_option(b"source-address", ",".join(self._options.source_address).encode())
        for extension in sorted(self._options.extensions):
            builder = builder.add_extension(extension.encode(), b"")
        certificate = builder.sign(_authority(self._ca_key))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        parts = {"key": private.decode(), "certificate": certificate.public_bytes().decode() + "\n"}
        facts = {"principals": principals, "force_command": command, "key_id": handle["key_id"]}
        return Issued(secret=Secret(form=SecretForm.SSH, parts=parts), expires_at_s=float(ends_s), facts=facts)

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """Say that it cannot be done."""
        del handle, sealed
        return Revoked(gone=False, asked="nobody", answer="an SSH certificate is not revocable: it ends by itself")


def _authority(text: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        return load_ssh_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FumehoodError(Reason.CONFIG_INVALID, "ca_key: expected a private key of ssh-keygen's, without a passphrase") from None


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> SshCertificates:
    """The provider. Raises FumehoodError."""
    found = parsed(name, SshOptions, options)
    required(name, secrets, REQUIRED)
    for address in found.source_address or ():
        try:
            ipaddress.ip_network(address)
        except ValueError:
            detail = f"credentials.{name}.source_address: expected addresses or networks, found {address!r}"
            raise FumehoodError(Reason.CONFIG_INVALID, detail) from None
    return SshCertificates(found, secrets["ca_key"])
