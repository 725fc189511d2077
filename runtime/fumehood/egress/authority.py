"""The certificate authority of one task: it can speak for the names of that task's profile, for a day, and for nothing else (rule 22).

Keys are P-256 and never on a disk: OpenSSL reads a leaf's from a memfd, and the authority's exists only as an object of this process.
Contexts belong to their task's authority, so no other task's connection can be given one, whatever ids are used again. No session
survives a connection: no tickets, and so no early data either.

Measured on 2 cores: the authority 0.35 ms, one name's certificate and context 2 ms, once a name; a pool of keys made
ahead would save 0.03 ms of that.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
import ssl
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = dt.timedelta(days=1)
_SKEW = dt.timedelta(minutes=5)
# OpenSSL keeps the sessions of TLS 1.2 in the context, and Python has no way to say no: a context is left behind in time.
_SESSIONS = 256


class Authority:
    """The authority of one task."""

    def __init__(self, task: str, names: Iterable[str]) -> None:
        """Make it for these names of a profile; `*.` and a suffix stands for every name below."""
        permitted = sorted({name.removeprefix("*.") for name in names})
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fumehood task {task}"[:64])])
        self._begins = dt.datetime.now(dt.UTC)
        every_address = [x509.IPAddress(ipaddress.ip_network(network)) for network in ("0.0.0.0/0", "::/0")]
        self._certificate = (
            self._builder(self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            # Without the second list a certificate for an address would be good: constraints hold for their own kind of name only.
            .add_extension(
                x509.NameConstraints([x509.DNSName(name) for name in permitted], every_address), critical=True
            )
            .sign(self._key, hashes.SHA256())
        )
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._making: dict[str, asyncio.Task[ssl.SSLContext]] = {}

    @property
    def pem(self) -> bytes:
        """The authority's certificate, for the box to trust."""
        return self._certificate.public_bytes(Encoding.PEM)

    async def context(self, name: str) -> ssl.SSLContext:
        """What to answer a box's handshake for a name with. It is made in a thread, once."""
        found = self._contexts.get(name)
        if found is not None and found.session_stats()["number"] < _SESSIONS:
            return found
        making = self._making.get(name)
        if making is None:
            making = self._making[name] = asyncio.create_task(asyncio.to_thread(self.make_context, name))
            making.add_done_callback(lambda _: self._making.pop(name, None))
        context = self._contexts[name] = await asyncio.shield(making)
        return context

    def make_context(self, name: str) -> ssl.SSLContext:
        """A context with a certificate for exactly this name, which refuses a client that asks for another."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])

        def asked_for(_: ssl.SSLObject | ssl.SSLSocket, asked: str | None, __: ssl.SSLContext) -> int | None:
            # The gate has read the ClientHello too; this is what OpenSSL read in it.
            return None if (asked or "").lower() == name else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        context.sni_callback = asked_for
        descriptor = os.memfd_create("fumehood-leaf", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self._leaf(name))
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context

    def _leaf(self, name: str) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        # A common name holds 64 characters; nobody reads it where there is an alternative name.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name if len(name) <= 64 else "fumehood")])
        certificate = (
            self._builder(subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private + certificate.public_bytes(Encoding.PEM)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begins - _SKEW)
            .not_valid_after(self._begins + LIFETIME)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
