"""`scripts/fuzz`: bytes that strangers could send, fed to what reads them; the tests run a second of it, this as long as one likes.

Each target is a pure parser, some inputs that it understands, and what must hold for every input: no exception, and a promise of its
own. Inputs are mutations of the known ones: bytes changed, removed, repeated, spliced together. A failure prints the input in hex and
the seed, and is the exit status.
"""

from __future__ import annotations

import argparse
import ipaddress
import random
import ssl
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fumehood.egress import addresses, dns, hello, packets
from fumehood.egress.names import Names, is_name
from fumehood.egress.refusals import Rejected
from fumehood.reach import EgressKind, EgressRule

_INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xc0\x0c", b"\0\0", b"\xff\xff", b"\x00\x01", b".", b"\r\n")


@dataclass(frozen=True)
class Target:
    """What is fed, with what, and what must hold."""

    seeds: Sequence[bytes]
    check: Callable[[bytes], None]


def _client_hello(name: str) -> bytes:
    context, outgoing = ssl.create_default_context(), ssl.MemoryBIO()
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def _check_hello(data: bytes) -> None:
    found = hello.parse(data)
    if isinstance(found, hello.Hello):
        assert found.name is None or is_name(found.name)
        # The name that was judged is in the bytes that are passed on, whatever else is.
        assert found.name is None or len(data) > 4000 or _without_records(data).lower().count(found.name.encode()) > 0
    if found is None:
        assert len(data) < hello.MOST_BYTES, "more is asked for than will be read"


def _check_second(data: bytes) -> None:
    """An answer of the server's, and what the client says before and after it, each behind its length in two bytes."""
    second, sent, passed = hello.Second("api.example"), b"", b""
    try:
        for is_server in (False, True, False, False):
            part, data = data[2 : 2 + int.from_bytes(data[:2])], data[2 + int.from_bytes(data[:2]) :]
            if is_server:
                second.from_server(part)
            else:
                sent += part
                passed += second.from_client(part)
    except Rejected:
        return
    assert sent.startswith(passed)
    assert not second.is_over or passed == sent


def _without_records(data: bytes) -> bytes:
    message, place = b"", 0
    while place + 5 <= len(data):
        size = int.from_bytes(data[place + 3 : place + 5])
        message += data[place + 5 : place + 5 + size]
        place += 5 + size
    return message


def _check_question(data: bytes) -> None:
    names = Names([EgressRule(kind=EgressKind.TLS, name=name, ports=(443,)) for name in ("api.example", "*.cdn.example")])
    found = dns.answer(data, names)
    if found.reply is not None:
        assert found.reply[:2] == data[:2]
        assert found.reply[2] & 0x80
        assert len(found.reply) <= len(data) + 64, "an answer that is much longer than its question"
        has_answer = int.from_bytes(found.reply[6:8]) > 0
        assert not has_answer or (found.name is not None and names.knows(found.name))
    dns.refused(data)


def _check_packet(data: bytes) -> None:
    found = packets.parse(data)
    if found is not None:
        ipaddress.ip_address(found.address)
        assert 0 <= found.port <= 65535


def _check_address(data: bytes) -> None:
    number = int.from_bytes(data[:16].ljust(16, b"\0"))
    address = ipaddress.IPv6Address(number)
    for inner in addresses.embedded(address):
        if addresses.judge(inner) is not None:
            assert addresses.judge(address, addresses.named(("::/0",))) is not None
    if addresses.judge(address) is None:
        assert address.is_global


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


_RETRY = bytes.fromhex("160303003a020000360303cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c") + bytes(20)
_SECOND = [b"\x14\3\3\0\1\1", _RETRY, b"\x14\3\3\0\1\1", _client_hello("api.example")]

TARGETS = {
    "second": Target((b"".join(len(part).to_bytes(2) + part for part in _SECOND),), _check_second),
    "hello": Target((_client_hello("api.example"), _client_hello("x.cdn.example")[:200]), _check_hello),
    "dns": Target(
        (_question("api.example", 1), _question("x.cdn.example", 28), _question("a.b.c.example", 16),
         _question("api.example", 255)[:10] + b"\0\1" + _question("api.example", 255)[12:] + b"\0\0\x29\x05\0\0\0\0\0\0\0"),
        _check_question,
    ),
    "packets": Target(
        (b"\x45" + bytes(8) + b"\x06" + bytes(10) + bytes(13) + b"\x02" + bytes(6),
         b"\x60" + bytes(5) + b"\x11\x40" + bytes(32) + bytes(8)),
        _check_packet,
    ),
    "addresses": Target(
        tuple(ipaddress.IPv6Address(each).packed for each in ("64:ff9b::1", "64:ff9b:1::", "2002::", "2001::", "::ffff:0:0", "2606::1")),
        _check_address,
    ),
}  # fmt: skip


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(0, 6)):
        place = chance.randrange(len(data) + 1)
        size = chance.choice((1, 1, 2, 4, 40))
        match chance.randrange(6):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[place : place + size]
            case 2:
                data[place:place] = chance.choice(_INTERESTING)
            case 3:
                data[place : place + size] = chance.choice(_INTERESTING)
            case 4:
                data[place:place] = data[place : place + size] * chance.randint(1, 8)
            case _:
                other = chance.choice(seeds)
                data[place:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)


def fuzz(name: str, seconds: float, seed: int) -> int:
    """How many inputs a target took. Raises what the target's check raises, with the input noted."""
    chance, target = random.Random(seed), TARGETS[name]  # noqa: S311 - repeatable
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutated(chance, target.seeds)
        try:
            target.check(data)
        except BaseException as error:
            error.add_note(f"target {name}, seed {seed}, input {count}: {data.hex()}")
            raise
        count += 1
    return count


def main() -> None:
    """Run the targets in turn."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Feed the gate's parsers with bytes that strangers could send.")
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="which (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a new one, which is printed)")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    for name in given.target or TARGETS:
        count = fuzz(name, given.seconds, seed)
        sys.stdout.write(f"{name}: {count} inputs, seed {seed}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
