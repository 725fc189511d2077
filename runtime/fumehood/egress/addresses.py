"""Which addresses a name may turn out to have.

Pure. A public address is always allowed; any other only where the rule's `addresses` name a network that holds it. Three further
rules, each from an attack on a name whose owner chooses what it resolves to:

* loopback and link-local (where clouds keep their metadata) need a network *inside* their own range: `0.0.0.0/0` names neither;
* the well-known metadata addresses outside these ranges need to be named exactly, alone;
* an address with an IPv4 address in it (mapped, compatible, 6to4, Teredo, NAT64) needs its own network named, and the IPv4 address
  allowed too: Python 3.11 calls 64:ff9b::a9fe:a9fe global, and a NAT64 gateway turns it into 169.254.169.254.

Multicast, broadcast, unspecified and reserved addresses are never allowed. The tables are the IANA special-purpose registries
(RFC 6890 and its updates), not `ipaddress.is_global`, which differs from one Python to the next.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from fumehood.egress.refusals import Why

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ADDRESS_NOT_ALLOWED = Why(
    "address_not_allowed",
    "the name resolves to an address that its rule does not name",
    "If the name belongs on a private network, add that network to `addresses` of the rule.",
)


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_NEVER = _networks(
    "0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8", "100::/64", "2001:db8::/32", "3fff::/20",
)  # fmt: skip
_BY_THEIR_OWN = _networks("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")
_EXACTLY = _networks(
    "100.100.100.200/32",  # Alibaba Cloud's metadata, in the range of carriers' NAT
    "168.63.129.16/32",  # Azure's, which is a public address
    "192.0.0.192/32",  # Oracle Cloud's
    "fd00:ec2::254/128",  # AWS's, in a range that sites use for themselves
    "fd20:ce::254/128",  # Google Cloud's
)
_NOT_PUBLIC = _networks(
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
    "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
    "2001::/23", "2002::/16",
)  # fmt: skip
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


@lru_cache(maxsize=256)
def named(addresses: tuple[str, ...]) -> tuple[Network, ...]:
    """The networks of a rule. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in addresses)


@lru_cache(maxsize=1024)
def judge(address: Address, networks: tuple[Network, ...] = ()) -> str | None:
    """None when the address may be dialled under a rule that names these networks; otherwise what is wrong with it.

    Nothing else decides that, so what was judged lately is not judged again.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "scoped"
        if inner := embedded(address):
            if not _within(address, networks):
                return f"embeds {inner[0]}"
            return next((f"embeds {each}: {wrong}" for each in inner if (wrong := judge(each, networks))), None)
    if _within(address, _NEVER):
        return "reserved"
    for special in _EXACTLY:
        if address in special:
            return None if special in networks else "metadata"
    for special in _BY_THEIR_OWN:
        if address in special:
            inside = (network for network in networks if _inside(network, special))
            return None if _within(address, inside) else "loopback or link-local"
    return None if is_public(address) or _within(address, networks) else "not public"


def is_public(address: Address) -> bool:
    """Whether this is an ordinary address of the internet. Embedded addresses are `judge`'s affair."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_V6:
        return False
    return not _within(address, _NOT_PUBLIC) and not _within(address, _NEVER)


def embedded(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that some gateway or stack could take this for."""
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return (address.teredo[1],)
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _NAT64 or (address in _COMPATIBLE and number > 1):
        return (last,)
    if address in _NAT64_LOCAL:
        # A site cuts its own prefix from these (RFC 8215), and the prefix's length says where the address is (RFC 6052): at the
        # end, or around bits 64 to 71. Whichever it uses, none of them may lead where it must not.
        around = number >> 64 << 56 | number & (1 << 56) - 1  # without bits 64 to 71
        places = [ipaddress.IPv4Address(around >> shift & 0xFFFFFFFF) for shift in (40, 32, 24)]
        # What is zero where another prefix would have the address is filling, and 0.0.0.0/8 is no host.
        return tuple(place for place in places if int(place) >> 24) + (last,) * (int(last) >> 24 > 0) or (last,)
    return ()


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)  # of the other family: not in it


def _inside(network: Network, other: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return network.subnet_of(other)
    if isinstance(network, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return network.subnet_of(other)
    return False
