"""The names that one task may reach, each with an address that exists only in its box, and the places a gate listens at.

Pure. Invariants: a name is lower-case letters, digits and hyphens, compared byte by byte, never decoded (`xn--` is four letters);
what looks like an address is no name. Each name has one synthetic address of each family for the life of the box, at most 256 names
a task (rule 18), so the address that a connection arrives at says which name was meant, for any protocol. The `Route` that was
judged is what is dialled: nothing looks a name up twice. An exact rule beats a wildcard, and the first of two equal ones holds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.ports import Listen
from fumehood.reach import EgressRule
from fumehood.reasons import Reason

MOST_NAMES = 256
MOST_LISTENERS = 32  # two descriptors each, and a message between processes carries 253
DNS_PORT = 53
_MOST_NAME_CHARS = 253
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label: the URL standard reads such a name as an IPv4 address
# RFC 2544's benchmarking range and a ULA prefix: neither is ever a destination, and neither is anybody's own network.
_V4 = int(ipaddress.IPv4Address("198.18.0.0"))
_V6 = int(ipaddress.IPv6Address("fd53::"))
_FIRST = 2


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A name's addresses inside the box."""

    v4: str
    v6: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A name and a port that a rule allows. `number` is the rule's place in the profile, from 0."""

    rule: EgressRule
    number: int
    name: str
    port: int

    @property
    def label(self) -> str:
        """The rule as refusals and the log call it."""
        return f"network.egress[{self.number}] {self.rule.kind.value}: {self.rule.name}"


def is_name(text: str) -> bool:
    """Whether this is a host name in the form that rules have: LDH labels, lower-case, not an address in disguise."""
    if not 0 < len(text) <= _MOST_NAME_CHARS:
        return False
    labels = text.split(".")
    return all(_LABEL.fullmatch(label) for label in labels) and not _NUMBER.fullmatch(labels[-1])


class Names:
    """The rules of one profile, and which address stands for which name in one box."""

    def __init__(self, rules: Sequence[EgressRule]) -> None:
        """Give every exact name its address. Raises Refused(PROFILE_INVALID)."""
        self._exact: dict[tuple[str, int], tuple[int, EgressRule]] = {}
        self._suffix: dict[tuple[str, int], tuple[int, EgressRule]] = {}
        self._known: set[str] = set()
        self._suffixes: set[str] = set()
        self._addresses: dict[str, Synthetic] = {}
        self._names: dict[str, str] = {}
        for number, rule in enumerate(rules):
            wild = rule.name.startswith("*.")
            name = rule.name.removeprefix("*.")
            if not is_name(name):
                raise _invalid(number, f"{rule.name!r} is not a host name")
            if DNS_PORT in rule.ports:
                raise _invalid(number, "port 53 inside a box is the gate's own: names are resolved there, and nowhere else")
            for port in rule.ports:
                (self._suffix if wild else self._exact).setdefault((name, port), (number, rule))
            (self._suffixes if wild else self._known).add(name)
            if not wild and self.address_of(name) is None:
                raise _invalid(number, f"a task has at most {MOST_NAMES} names")

    def knows(self, name: str) -> bool:
        """Whether any rule allows this name."""
        return is_name(name) and (name in self._known or _suffix(name) in self._suffixes)

    def address_of(self, name: str) -> Synthetic | None:
        """The name's addresses in the box; None for a name that no rule allows, and for the 257th."""
        found = self._addresses.get(name)
        if found is not None or not self.knows(name) or len(self._addresses) >= MOST_NAMES:
            return found
        number = _FIRST + len(self._addresses)
        made = Synthetic(str(ipaddress.IPv4Address(_V4 + number)), str(ipaddress.IPv6Address(_V6 + number)))
        self._addresses[name] = made
        self._names[made.v4] = self._names[made.v6] = name
        return made

    def name_at(self, address: str) -> str | None:
        """The name that an address stands for."""
        return self._names.get(address)

    def route(self, name: str, port: int) -> Route | None:
        """What the profile says of this name and port."""
        found = self._exact.get((name, port)) or self._suffix.get((_suffix(name), port))
        if found is None or not is_name(name):
            return None
        number, rule = found
        return Route(rule=rule, number=number, name=name, port=port)

    def exact(self) -> Iterator[Route]:
        """Every route that the profile spells out."""
        for (name, port), (number, rule) in self._exact.items():
            yield Route(rule=rule, number=number, name=name, port=port)

    def listens(self) -> tuple[Listen, ...]:
        """Where to listen. Raises Refused.

        At each exact name's address, so that the kernel refuses all else; at any address of a port that a wildcard names, or of all
        ports when there are too many pairs, and then it is the gate that refuses.
        """
        anywhere = {port for _, port in self._suffix}
        pairs = [pair for pair in self._exact if pair[1] not in anywhere]
        if len(pairs) + len(anywhere) > MOST_LISTENERS:
            anywhere, pairs = anywhere | {port for _, port in pairs}, []
        if len(anywhere) > MOST_LISTENERS:
            raise Refused(_too_many(len(anywhere)))
        at = [(self._addresses[name], port) for name, port in pairs]
        return (
            *(Listen(v4=address.v4, v6=address.v6, port=port) for address, port in at),
            *(Listen(v4=None, v6=None, port=port) for port in sorted(anywhere)),
        )


def _suffix(name: str) -> str:
    """What is left of a name without its first label: a wildcard stands for exactly one."""
    return name.partition(".")[2]


def _invalid(number: int, detail: str) -> Refused:
    return Refused(Deny(reason=Reason.PROFILE_INVALID, rule=f"network.egress[{number}]", detail=detail))


def _too_many(ports: int) -> Deny:
    detail = f"{ports} ports, and a gate listens at {MOST_LISTENERS} at most"
    return Deny(reason=Reason.PROFILE_INVALID, rule="network.egress", detail=detail)
