"""A connection to a PostgreSQL server, with TLS as its rule demands, before anybody has logged in.

Invariants: the server learns nothing but that a client asks for TLS, until its certificate is verified for the rule's name against the
system's roots and the operator's authorities; without TLS there is a connection only on loopback, or where the rule says `insecure`.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import ipaddress
import ssl
from dataclasses import dataclass, replace
from typing import cast

from fumehood.egress import pg_messages, trust
from fumehood.egress.limits import HEAD_S
from fumehood.egress.names import Route
from fumehood.egress.pg_login import NOT_A_SERVER
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.task import GateTask

UNENCRYPTED = Why(
    "postgres_unencrypted", "the server has no TLS, and a session on the network would be anybody's",
    "Turn `ssl` on at the server, or say `insecure: true` in the rule.",
)  # fmt: skip
UNVERIFIED = Why(
    "postgres_unverified", "the server's certificate does not hold for the rule's name",
    "Add the authority that signed it to `egress.authorities`, or name what the certificate is for.",
)  # fmt: skip

_MOST_AHEAD = 64 * 2**10


class Inbox(asyncio.Protocol):
    """What came of a connection while it is not relayed yet."""

    def __init__(self) -> None:
        self.ended = False
        self._data = bytearray()
        self._arrived = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to pause it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Keep what came, and stop reading when it is a lot."""
        self._data += data
        self._arrived.set()
        if len(self._data) > _MOST_AHEAD and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        del exc
        self.eof_received()

    def take(self) -> bytes:
        """What is there."""
        data = bytes(self._data)
        self._data.clear()
        if not self.ended:
            self._arrived.clear()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    async def some(self) -> bytes:
        """What is there, at least a byte. Raises EOFError when nothing will come."""
        await self._arrived.wait()
        data = self.take()
        if not data:
            raise EOFError
        return data


@dataclass(frozen=True, slots=True)
class Server:
    """A connection to a server; `address` is its own, None behind a proxy; `binding` binds a login to its TLS."""

    transport: asyncio.Transport
    inbox: Inbox
    address: str | None
    is_tls: bool
    binding: bytes | None


async def connect(route: Route, task: GateTask, address: str | None = None) -> Server:
    """Connect to the server of a rule, or to this address of it, and agree on TLS. Raises Rejected, OSError."""
    loop = asyncio.get_running_loop()
    upstream = await task.dial(route if address is None else replace(route, name=address))
    try:
        peer = str(upstream.getpeername()[0]) if task.outward.proxy is None else None
        await loop.sock_sendall(upstream, pg_messages.request(pg_messages.SSL))
        # One byte and no more: what a third party put behind it must reach the TLS library, which refuses it.
        answer = await loop.sock_recv(upstream, 1)
        if answer == b"S":
            context = await asyncio.to_thread(_context, task.outward.authorities)
            transport, inbox = await loop.create_connection(
                Inbox, sock=upstream, ssl=context, server_hostname=route.name, ssl_handshake_timeout=HEAD_S
            )
            return Server(transport, inbox, peer, is_tls=True, binding=_binding(transport))
        if answer != b"N":
            raise Rejected(NOT_A_SERVER, what="no answer to the request for TLS")
        if not route.rule.insecure and not (peer is not None and ipaddress.ip_address(peer).is_loopback):
            raise Rejected(UNENCRYPTED)
        transport, inbox = await loop.create_connection(Inbox, sock=upstream)
        return Server(transport, inbox, peer, is_tls=False, binding=None)
    except ssl.SSLCertVerificationError as error:
        upstream.close()
        raise Rejected(UNVERIFIED, error=error.verify_message) from error
    except BaseException:
        upstream.close()
        raise


@functools.lru_cache(maxsize=4)
def _context(operators: str | None) -> ssl.SSLContext:
    """How servers are verified; reading all the roots takes 40 ms, so call it in a thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    # From release 17 on servers take no other; those before ignore it. No other protocol's server can be meant.
    context.set_alpn_protocols(["postgresql"])
    for authorities in (trust.system_roots().decode("ascii", "ignore"), operators):
        if authorities:
            context.load_verify_locations(cadata=authorities)
    return context


def _binding(transport: asyncio.Transport) -> bytes | None:
    """The data of `tls-server-end-point` (RFC 5929, section 4.1); None for certificates that it is not defined for."""
    from cryptography import x509

    der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    if algorithm is None:
        return None
    name = "sha256" if algorithm.name in {"md5", "sha1"} else algorithm.name
    return hashlib.new(name, der).digest() if name in hashlib.algorithms_available else None
