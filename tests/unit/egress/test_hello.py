from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fumehood.egress.hello import (
    ECH_OFFERED,
    HELLO_MALFORMED,
    MOST_BYTES,
    NOT_TLS,
    SNI_ABSENT,
    SNI_MISMATCH,
    Hello,
    judge,
    parse,
)
from fumehood.egress.refusals import Why


def real(name: str | None = "api.example", *protocols: str) -> bytes:
    """The hello that OpenSSL writes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def sized(data: bytes, size: int = 2) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!H", kind) + sized(content)


def server_name(name: bytes, kind: int = 0) -> bytes:
    return extension(0, sized(bytes([kind]) + sized(name)))


def record(message: bytes) -> bytes:
    return b"\x16\x03\x01" + sized(message)


def made(*extensions: bytes, suites: bytes = b"\x13\x01", session: bytes = b"", compression: bytes = b"\0", tail: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + sized(session, 1) + sized(suites) + sized(compression, 1) + sized(b"".join(extensions)) + tail
    return record(b"\x01" + sized(body, 3))


SNI = server_name(b"api.example")


def test_openssls_own_hello_is_understood() -> None:
    assert parse(real("api.example", "h2", "http/1.1")) == Hello("api.example", is_encrypted=False, protocols=("h2", "http/1.1"))
    assert parse(real(None)) == Hello(None, is_encrypted=False, protocols=())


def test_a_hello_without_any_extension_names_nobody() -> None:
    message = record(b"\x01" + sized(b"\x03\x03" + bytes(32) + sized(b"", 1) + sized(b"\x13\x01") + sized(b"\0", 1), 3))
    assert parse(message) == Hello(None, is_encrypted=False, protocols=())


@given(st.integers(1, 300))
def test_every_beginning_of_a_hello_asks_for_more_and_never_decides(cut: int) -> None:
    whole = made(SNI, extension(16, sized(sized(b"h2", 1))), extension(21, bytes(200)))
    assert parse(whole[: min(cut, len(whole) - 1)]) is None
    assert isinstance(parse(whole), Hello)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=15))
def test_a_hello_cut_into_records_is_the_same_hello(sizes: list[int]) -> None:
    message = made(SNI)[5:]
    pieces, place = [], 0
    for size in sizes:
        pieces.append(message[place : place + size])
        place += size
    pieces.append(message[place:])
    assert parse(b"".join(record(piece) for piece in pieces if piece)) == parse(made(SNI))


def test_a_hello_in_more_records_than_any_client_cuts_is_refused() -> None:
    message = made(SNI)[5:]
    assert parse(b"".join(record(message[i : i + 1]) for i in range(len(message)))) is HELLO_MALFORMED


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", NOT_TLS),
        (b"\x80\x2e\x01\x00\x02", NOT_TLS),  # SSLv2
        (b"\x15\x03\x01\x00\x02\x02\x28", NOT_TLS),  # an alert
        (b"\x16\x02\x00\x00\x05", NOT_TLS),
        (record(b"\x02\0\0\0"), NOT_TLS),  # a ServerHello
        (b"\x16\x03\x01\x00\x00", HELLO_MALFORMED),
        (b"\x16\x03\x01\x40\x01", HELLO_MALFORMED),
        (record(b"\x01\x00\xff\xff"), HELLO_MALFORMED),
        (record(b"\x01\0\0\0"), HELLO_MALFORMED),
        (made(SNI, SNI), HELLO_MALFORMED),
        (made(SNI, extension(10, b""), extension(10, b"")), HELLO_MALFORMED),
        (made(SNI, tail=b"\0"), HELLO_MALFORMED),
        (made(SNI[:-1]), HELLO_MALFORMED),
        (made(extension(0, b"")), HELLO_MALFORMED),
        (made(extension(0, sized(b""))), HELLO_MALFORMED),
        (made(server_name(b"")), HELLO_MALFORMED),
        (made(server_name(b"api.example", kind=1)), HELLO_MALFORMED),
        (made(extension(0, sized((b"\0" + sized(b"api.example")) * 2))), HELLO_MALFORMED),
        (made(extension(0, sized(b"\0" + sized(b"api.example")) + b"\0")), HELLO_MALFORMED),
        (made(server_name(b"api.example\0.evil.example")), HELLO_MALFORMED),
        (made(server_name(b"api.example\0")), HELLO_MALFORMED),
        (made(server_name(b"api.example.")), HELLO_MALFORMED),
        (made(server_name("\N{FULLWIDTH LATIN SMALL LETTER A}pi.example".encode())), HELLO_MALFORMED),
        (made(server_name("\N{KELVIN SIGN}.example".encode())), HELLO_MALFORMED),
        (made(server_name(b"10.0.0.1")), HELLO_MALFORMED),
        (made(SNI, extension(16, sized(b""))), HELLO_MALFORMED),
        (made(SNI, extension(16, sized(sized(b"", 1)))), HELLO_MALFORMED),
        (made(SNI, extension(16, sized(b"\x05h2"))), HELLO_MALFORMED),
        (made(SNI, session=bytes(33)), HELLO_MALFORMED),
        (made(SNI, suites=b"\x13"), HELLO_MALFORMED),
        (made(SNI, suites=b""), HELLO_MALFORMED),
        (made(SNI, compression=b""), HELLO_MALFORMED),
        (record(made(SNI)[5:] + b"\x0b"), HELLO_MALFORMED),
        (made(SNI)[:5] + made(SNI)[5:-1], None),
    ],
)
def test_what_two_readers_could_take_differently_is_refused(data: bytes, why: Why | None) -> None:
    assert parse(data) is why


@pytest.mark.parametrize("kind", [0xFE0D, 0xFE08, 0xFFCE])
def test_an_encrypted_hello_and_its_decoy_are_refused(kind: int) -> None:
    hello = parse(made(SNI, extension(kind, bytes(8))))
    assert isinstance(hello, Hello)
    assert judge(hello, "api.example") is ECH_OFFERED


def test_grease_in_suites_and_extensions_is_nothing() -> None:
    hello = parse(made(extension(0x0A0A, b""), SNI, extension(0xFAFA, b"\0"), suites=b"\x1a\x1a\x13\x01"))
    assert isinstance(hello, Hello)
    assert judge(hello, "api.example") is None


def test_the_name_is_compared_without_case_and_with_nothing_else_let_go() -> None:
    hello = parse(made(server_name(b"API.Example")))
    assert isinstance(hello, Hello)
    assert judge(hello, "api.example") is None
    assert judge(hello, "pi.example") is SNI_MISMATCH
    assert judge(Hello(None, is_encrypted=False, protocols=()), "api.example") is SNI_ABSENT


@given(st.binary(max_size=400))
@example(b"\x16")
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    parse(data)
    parse(record(b"\x01" + sized(data, 3)))
    parse(made(data))


@given(st.integers(0, 500), st.integers(0, 255))
def test_a_changed_byte_never_makes_a_hello_for_another_known_name(place: int, value: int) -> None:
    whole = bytearray(real("api.example"))
    whole[place % len(whole)] = value
    found = parse(bytes(whole))
    if isinstance(found, Hello) and found.name is not None and judge(found, "api.example") is None:
        assert found.name == "api.example"


def test_nothing_is_read_that_could_not_be_a_hello() -> None:
    assert isinstance(parse(b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\x00" + bytes(MOST_BYTES)), Why)
