"""What a real name resolves to, asked outside the box and kept for as long as its answer says.

Invariants: a box's question never goes upstream; only names that a rule allows are asked for, as `A` and `AAAA`. Kept answers are
bounded in number and age, failures too, and one question for a name is under way at a time, so that no box makes us flood a
resolver. What comes back is judged by who dials (`addresses.py`), each time, whether it was kept or not.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fumehood.egress.addresses import Address
from fumehood.egress.refusals import Rejected, Why

if TYPE_CHECKING:
    import dns.asyncresolver

NOT_RESOLVED = Why("not_resolved", "the name has no address", "Check the name, and what resolves it on this host.")

TIMEOUT_S = 5.0
_TRY_S = 2.0
_KEEP_LEAST_S, _KEEP_MOST_S, _KEEP_FAILURE_S = 1.0, 300.0, 5.0
_MOST_KEPT = 4096
_MOST_ADDRESSES = 16
_HOSTS = Path("/etc/hosts")


@dataclass(frozen=True, slots=True)
class _Kept:
    addresses: tuple[Address, ...]
    until_s: float


class Resolver:
    """Asks the operator's resolvers (`address:port`), or the system's: then /etc/hosts comes first, as for other programs."""

    def __init__(self, servers: Sequence[str] = ()) -> None:
        """Ask nothing yet."""
        self._servers = tuple(servers)
        self._kept: dict[str, _Kept] = {}
        self._asking: dict[str, asyncio.Task[_Kept]] = {}
        self._asker: dns.asyncresolver.Resolver | None = None

    async def addresses(self, name: str) -> tuple[Address, ...]:
        """Every address of a name, IPv4 and IPv6 in turn. Raises Rejected(NOT_RESOLVED), within `TIMEOUT_S`."""
        kept = self._kept.get(name)
        now = asyncio.get_running_loop().time()
        if kept is None or kept.until_s <= now:
            asking = self._asking.get(name)
            if asking is None:
                asking = self._asking[name] = asyncio.create_task(self._resolve(name))
                asking.add_done_callback(lambda _: self._asking.pop(name, None))
            kept = await asyncio.shield(asking)  # one who no longer waits must not take the answer from the others
        if not kept.addresses:
            raise Rejected(NOT_RESOLVED, name=name)
        return kept.addresses

    async def _resolve(self, name: str) -> _Kept:
        found = () if self._servers else _from_hosts(name)
        ttl_s = _KEEP_LEAST_S
        if not found:
            found, ttl_s = await self._ask(name)
        if not found:
            ttl_s = _KEEP_FAILURE_S
        kept = _Kept(found[:_MOST_ADDRESSES], asyncio.get_running_loop().time() + ttl_s)
        if len(self._kept) >= _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept.pop(name, None)
        self._kept[name] = kept
        return kept

    async def _ask(self, name: str) -> tuple[tuple[Address, ...], float]:
        import dns.exception
        import dns.name
        import dns.rdatatype

        asker = self._asker = self._asker or _asker(self._servers)
        absolute = dns.name.from_text(name)  # with the root's dot: no search list is tried

        async def ask(kind: dns.rdatatype.RdataType) -> tuple[list[Address], float]:
            try:
                answer = await asker.resolve(absolute, kind, lifetime=TIMEOUT_S, search=False, raise_on_no_answer=False)
            except dns.exception.DNSException:
                return [], _KEEP_MOST_S
            texts = [record.address for record in answer.rrset or ()]
            return [ipaddress.ip_address(text) for text in texts], answer.chaining_result.minimum_ttl

        both = await asyncio.gather(ask(dns.rdatatype.A), ask(dns.rdatatype.AAAA))
        mixed = [address for pair in _in_turn(both[0][0], both[1][0]) for address in pair]
        return tuple(mixed), max(_KEEP_LEAST_S, min(_KEEP_MOST_S, both[0][1], both[1][1]))


def _in_turn(first: Sequence[Address], second: Sequence[Address]) -> list[Sequence[Address]]:
    return [(*first[i : i + 1], *second[i : i + 1]) for i in range(max(len(first), len(second)))]


def _asker(servers: Sequence[str]) -> dns.asyncresolver.Resolver:
    import dns.asyncresolver
    import dns.nameserver

    asker = dns.asyncresolver.Resolver(configure=not servers)
    if servers:
        places = [split_place(server, 53) for server in servers]
        asker.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in places]
    asker.timeout = _TRY_S
    asker.lifetime = TIMEOUT_S
    asker.cache = None
    return asker


def split_place(text: str, default_port: int) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `host` or `v6` as host and port. Raises ValueError."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or default_port)
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host:
        return text, default_port
    return host, int(port)


def _from_hosts(name: str) -> tuple[Address, ...]:
    """What the host's own file says of a name: small, the operator's, and read anew, so that a change counts at once."""
    try:
        lines = _HOSTS.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if name in (each.lower() for each in names):
            try:
                found.append(ipaddress.ip_address(address))
            except ValueError:
                continue
    return tuple(found)
