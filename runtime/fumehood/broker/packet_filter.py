"""The filter on a gate's packet socket: classic BPF that lets the refused attempts of a box through, and nothing else.

What passes, cut to `KEPT_BYTES` from the IP header on: the first packet of a TCP connection, and a UDP datagram, to a place where
the gate does not listen. Not passed: what goes to the gate or comes from its DNS, what the box says to its own loopback
addresses, later fragments, and every packet of a connection that stands: a box that floods costs the gate a full buffer at most
(rule 18). Pure. Source: Documentation/networking/filter.rst.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Sequence

from fumehood.ports import Listen

KEPT_BYTES = 96
DNS_PORT = 53

_LD_W, _LD_H, _LD_B, _LD_MEM = 0x20, 0x28, 0x30, 0x60
_LD_H_X, _LD_B_X, _LDX_HEADER = 0x48, 0x50, 0xB1
_ST, _AND, _JA, _JEQ, _JSET, _RET = 0x02, 0x54, 0x05, 0x15, 0x45, 0x06
_PROTOCOL, _PACKET_TYPE = 0xFFFFF000, 0xFFFFF004  # SKF_AD_OFF and the ancillary data behind it
_OUTGOING, _IPV4, _IPV6 = 4, 0x0800, 0x86DD
_SYN, _SYN_OR_ACK = 0x02, 0x12
_PORT = 0  # the scratch word that holds the destination's port

_Code = list[tuple[int, int, int, int]]
_DROP: _Code = [(_RET, 0, 0, 0)]
_PASS: _Code = [(_RET, 0, 0, KEPT_BYTES)]


@functools.lru_cache(maxsize=64)
def refused_attempts(listens: tuple[Listen, ...]) -> bytes:
    """The program for a gate that listens there, and at port 53 everywhere."""
    ports = sorted({each.port for each in listens if each.v4 is None} | {DNS_PORT})
    version_4 = _version_4(ports, listens)
    code = [
        (_LD_W, 0, 0, _PACKET_TYPE),
        *_unless(_JEQ, _OUTGOING, _DROP),
        (_LD_W, 0, 0, _PROTOCOL),
        (_JEQ, 1, 0, _IPV4),
        # Conditional jumps reach 255 instructions, an unconditional one anywhere.
        (_JA, 0, 0, len(version_4)),
        *version_4,
        (_LD_W, 0, 0, _PROTOCOL),
        (_JEQ, 1, 0, _IPV6),
        *_DROP,
        *_version_6(ports, listens),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _version_4(ports: Sequence[int], listens: Sequence[Listen]) -> _Code:
    ours: dict[int, list[int]] = {}
    for each in listens:
        if each.v4 is not None:
            ours.setdefault(each.port, []).append(*struct.unpack("!I", socket.inet_pton(socket.AF_INET, each.v4)))
    tcp: _Code = [
        (_LD_B_X, 0, 0, 13), (_AND, 0, 0, _SYN_OR_ACK), (_JEQ, 1, 0, _SYN), *_DROP,
        (_LD_H_X, 0, 0, 2), (_ST, 0, 0, _PORT), *_drop_any(ports),
    ]  # fmt: skip
    for port, addresses in ours.items():
        tcp += _only_if((_LD_MEM, 0, 0, _PORT), port, [(_LD_W, 0, 0, 16), *_drop_any(addresses)])
    udp: _Code = [(_LD_H_X, 0, 0, 0), *_drop_any([DNS_PORT]), (_LD_H_X, 0, 0, 2), *_drop_any([DNS_PORT]), *_PASS]
    return [
        (_LD_H, 0, 0, 6), *_unless(_JSET, 0x1FFF, _DROP),
        (_LD_W, 0, 0, 16), (_AND, 0, 0, 0xFF000000), *_unless(_JEQ, 0x7F000000, _DROP),
        (_LDX_HEADER, 0, 0, 0),
        (_LD_B, 0, 0, 9), (_JEQ, 2, 0, socket.IPPROTO_TCP), (_JEQ, 2, 0, socket.IPPROTO_UDP), *_DROP,
        (_JA, 0, 0, len(udp)),
        *udp,
        *tcp,
        *_PASS,
    ]  # fmt: skip


def _version_6(ports: Sequence[int], listens: Sequence[Listen]) -> _Code:
    ours: dict[tuple[int, ...], list[int]] = {}
    for each in listens:
        if each.v6 is not None:
            *front, last = struct.unpack("!4I", socket.inet_pton(socket.AF_INET6, each.v6))
            ours.setdefault((each.port, *front), []).append(last)
    tcp: _Code = [
        (_LD_B, 0, 0, 53), (_AND, 0, 0, _SYN_OR_ACK), (_JEQ, 1, 0, _SYN), *_DROP,
        (_LD_H, 0, 0, 42), (_ST, 0, 0, _PORT), *_drop_any(ports),
    ]  # fmt: skip
    for (port, *front), lasts in ours.items():
        tcp += _only_if((_LD_MEM, 0, 0, _PORT), port, _at_prefix(front, [(_LD_W, 0, 0, 36), *_drop_any(lasts)]))
    udp: _Code = [(_LD_H, 0, 0, 40), *_drop_any([DNS_PORT]), (_LD_H, 0, 0, 42), *_drop_any([DNS_PORT]), *_PASS]
    return [
        *_at_prefix([0, 0, 0], [(_LD_W, 0, 0, 36), *_drop_any([1])]),
        # A box cannot send extension headers: each needs a capability.
        (_LD_B, 0, 0, 6), (_JEQ, 2, 0, socket.IPPROTO_TCP), (_JEQ, 2, 0, socket.IPPROTO_UDP), *_DROP,
        (_JA, 0, 0, len(udp)),
        *udp,
        *tcp,
        *_PASS,
    ]  # fmt: skip


def _at_prefix(front: Sequence[int], body: _Code) -> _Code:
    """`body` for an IPv6 destination that begins with these three words."""
    for number, word in reversed(list(enumerate(front))):
        body = _only_if((_LD_W, 0, 0, 24 + 4 * number), word, body)
    return body


def _only_if(load: tuple[int, int, int, int], value: int, body: _Code) -> _Code:
    return [load, (_JEQ, 0, len(body), value), *body]


def _unless(test: int, value: int, body: _Code) -> _Code:
    """`body`, which ends, if the test holds."""
    return [(test, 0, len(body), value), *body]


def _drop_any(values: Sequence[int]) -> _Code:
    """Drop the packet if the accumulator is one of these."""
    tests: _Code = [(_JEQ, len(values) - number, 0, value) for number, value in enumerate(values)]
    return [*tests, (_JA, 0, 0, 1), *_DROP]
