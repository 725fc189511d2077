from __future__ import annotations

import ssl
import struct
from itertools import pairwise

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
    Second,
    end_of,
    judge,
    parse,
)
from fumehood.egress.refusals import Rejected, Why


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


# A second hello.

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
CCS = b"\x14\x03\x03\0\x01\x01"
EARLY = b"\x17\x03\x03" + sized(b"\x16\x03\x01\0\x05early data that looks like a record")
SECRET = b"\x17\x03\x03" + sized(b"application data") + b"\x16\x03\x03" + sized(b"\x01 is no hello")


def server_hello(random: bytes) -> bytes:
    body = b"\x03\x03" + random + b"\0\x13\x01\0" + sized(b"")
    return b"\x16\x03\x03" + sized(b"\x02" + sized(body, 3))


def fed(second: Second, data: bytes, cuts: list[int]) -> bytes:
    """What is passed on of data that arrives in pieces."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(second.from_client(data[a:b]) for a, b in pairwise(places))


def test_the_end_of_a_hello_is_where_its_last_record_ends() -> None:
    whole = real()
    halves = whole[:3] + sized(whole[5:50]) + whole[:3] + sized(whole[50:])
    for hello in (whole, halves):
        assert end_of(hello) == end_of(hello + CCS + EARLY) == len(hello)


cuts = st.lists(st.integers(0, 10_000), max_size=6)


@given(cuts, cuts, st.sampled_from([b"", CCS, EARLY, CCS + EARLY, EARLY + CCS]))
def test_a_second_hello_for_the_same_name_passes_however_it_is_cut_and_all_after_it(
    before: list[int], after: list[int], between: bytes
) -> None:
    second = Second("api.example")
    assert fed(second, between, before) == between, "nothing of it is a hello"
    for at in range(0, 60, 7):
        second.from_server(server_hello(RETRY)[at : at + 7])
    data = CCS + real() + SECRET
    assert fed(second, data, after) == data
    assert second.is_over


@given(cuts)
def test_of_a_second_hello_for_another_name_nothing_passes(at: list[int]) -> None:
    second = Second("api.example")
    second.from_server(server_hello(RETRY))
    passed = b""
    with pytest.raises(Rejected) as refused:
        passed = fed(second, CCS + real("evil.example"), at)
    assert refused.value.why is SNI_MISMATCH
    assert passed == b""
    assert not second.is_over


def test_a_hello_ahead_of_the_servers_answer_waits_for_it() -> None:
    ahead = real("evil.example")
    for answer, released in ((server_hello(bytes(32)), True), (server_hello(RETRY), False)):
        second = Second("api.example")
        assert second.from_client(CCS + ahead) == CCS
        second.from_server(answer[:20])
        assert second.from_client(b"") == b""
        second.from_server(answer[20:])
        if released:  # no server takes it for a hello now
            assert second.from_client(b"") == ahead
        else:
            with pytest.raises(Rejected):
                second.from_client(b"")


@pytest.mark.parametrize("answer", [server_hello(bytes(32)), b"\x15\x03\x03\0\x02\x02\x28", b"SSH-2.0", b"\x16\x03\x03" + bytes(60)])
def test_a_server_that_asks_for_nothing_ends_the_watch(answer: bytes) -> None:
    second = Second("api.example")
    second.from_server(answer)
    assert second.is_over
    data = SECRET + real("evil.example")
    assert second.from_client(data) == data, "encrypted, or an error to the server"


def test_what_waits_for_a_server_that_says_nothing_is_bounded() -> None:
    second = Second("api.example")
    for _ in range(MOST_BYTES // 1029):
        assert second.from_client(b"\x16\x03\x01" + sized(bytes(2**10))) == b""
    with pytest.raises(Rejected):
        second.from_client(bytes(1029))


@given(st.binary(max_size=200), st.binary(max_size=80), cuts)
def test_any_bytes_pass_in_order_or_are_refused(data: bytes, answer: bytes, at: list[int]) -> None:
    second = Second("api.example")
    try:
        passed = fed(second, data, at)
        second.from_server(answer)
        passed += second.from_client(b"")
    except Rejected:
        return
    assert data.startswith(passed)
