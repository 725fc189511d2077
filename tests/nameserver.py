"""A DNS server of the test's own: what it says may change while it runs, which is the attack that it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset


class Nameserver(asyncio.DatagramProtocol):
    """Answers `A` and `AAAA` from `records`; any other name does not exist. `asked` is every question, in order."""

    def __init__(self, **records: Sequence[str]) -> None:
        self.records: dict[str, Sequence[str]] = dict(records)
        self.aliases: dict[str, str] = {}
        self.ttl_s = 0
        self.is_silent = False
        self.asked: list[tuple[str, str]] = []
        self.place = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        self.place = f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if self.is_silent:
            return
        reply = dns.message.make_response(query, recursion_available=True)
        owner = question.name
        if name in self.aliases:
            alias = dns.rrset.from_text(owner, self.ttl_s, dns.rdataclass.IN, dns.rdatatype.CNAME, self.aliases[name] + ".")
            reply.answer.append(alias)
            owner, name = alias[0].target, self.aliases[name]
        found = self.records.get(name)
        if found is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        mine = [text for text in found or () if (":" in text) == (kind == "AAAA")]
        if mine and kind in {"A", "AAAA"}:
            reply.answer.append(dns.rrset.from_text(owner, self.ttl_s, dns.rdataclass.IN, question.rdtype, *mine))
        self.transport.sendto(reply.to_wire(), addr)


@asynccontextmanager
async def nameserver(records: dict[str, Sequence[str]] | None = None) -> AsyncIterator[Nameserver]:
    """One on this host's loopback, at `place` (`address:port`)."""
    loop = asyncio.get_running_loop()
    made = Nameserver()
    made.records.update(records or {})
    transport, _ = await loop.create_datagram_endpoint(lambda: made, local_addr=("127.0.0.1", 0))
    try:
        yield made
    finally:
        transport.close()
