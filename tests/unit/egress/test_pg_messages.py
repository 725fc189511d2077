"""PostgreSQL's first packets: read exactly, or not at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress import pg_messages as pg
from fumehood.egress.pg_messages import Cancel, Encryption, Malformed, Startup


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", 8 + len(body), code) + body


def begin(body: bytes, minor: int = 0) -> bytes:
    return packet(3 << 16 | minor, body)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (packet(pg.SSL), Encryption.TLS),
        (packet(pg.GSS), Encryption.GSS),
        (packet(pg.CANCEL, b"\0\0\0\x07abcd"), Cancel(7, b"abcd")),
        (packet(pg.CANCEL, b"\0\0\0\x07" + b"k" * 256), Cancel(7, b"k" * 256)),
        (begin(b"user\0me\0\0"), Startup(0, {"user": b"me"})),
        (begin(b"user\0me\0database\0\0\0", 2), Startup(2, {"user": b"me", "database": b""})),
        (begin(b"\0"), Startup(0, {})),
    ],
)
def test_each_opening_packet(data: bytes, expected: pg.Opening) -> None:
    assert pg.opening(data) == (expected, len(data))
    assert pg.opening(data + b"rest") == (expected, len(data))
    assert all(pg.opening(data[:cut]) is None for cut in range(len(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",  # TLS at once
        b"GET / HTTP/1.1\r\n",
        struct.pack("!II", 7, pg.SSL),
        struct.pack("!II", 0, pg.SSL),
        struct.pack("!I", 10_001),
        packet(pg.SSL, b"x"),
        packet(pg.GSS, b"x"),
        packet(pg.CANCEL),
        packet(pg.CANCEL, b"\0\0\0\x07abc"),
        packet(pg.CANCEL, b"\0\0\0\x07" + b"k" * 257),
        packet(2 << 16, b"\0" * 288),
        packet(4 << 16, b"\0"),
        packet(80877105),
        begin(b""),
        begin(b"user\0me\0"),
        begin(b"user\0\0"),
        begin(b"user\0me"),
        begin(b"user\0me\0\0\0"),
        begin(b"user\0me\0\0user\0root\0\0"),
        begin(b"user\0me\0user\0root\0\0"),
        begin(b"us er\0me\0\0"),
        begin(b"us\xc3\xa9r\0me\0\0"),
        begin(b"\0me\0\0"),
        begin(b"".join(b"p%d\0v\0" % n for n in range(65)) + b"\0"),
    ],
)
def test_what_is_no_opening_packet_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        pg.opening(data)


@given(st.binary(max_size=300), st.sampled_from([b"", packet(pg.SSL)[:4], b"\0\0\0\x20\0\3\0\0", b"\0\0\0\x14\x04\xd2\x16\x2e"]))
def test_no_bytes_of_a_client_raise_anything_else(data: bytes, before: bytes) -> None:
    try:
        found = pg.opening(before + data)
    except Malformed:
        return
    if found is not None:
        assert 8 <= found[1] <= len(before + data)


_NAMES = st.from_regex(r"\A[a-z_][a-z0-9_.]{0,30}\Z")
_VALUES = st.binary(max_size=50).map(lambda value: value.replace(b"\0", b""))


@given(st.dictionaries(_NAMES, _VALUES, max_size=20))
def test_what_is_written_is_read_back(parameters: dict[str, bytes]) -> None:
    data = pg.startup(parameters)
    assert pg.opening(data) == (Startup(0, parameters), len(data))


@given(st.binary(max_size=100))
def test_servers_messages_are_bounded(data: bytes) -> None:
    try:
        found = pg.message(data)
    except Malformed:
        assert not 4 <= struct.unpack_from("!I", data, 1)[0] <= pg.MOST_MESSAGE_BYTES
        return
    if found is not None:
        assert found[0].encoded() == data[: found[1]]


def test_an_error_is_what_clients_show() -> None:
    data = pg.fatal("28000", "no\0thing", "why", "how")
    found = pg.message(data)
    assert found is not None
    assert pg.error_fields(found[0].body) == {
        "S": "FATAL", "V": "FATAL", "C": "28000", "M": "no?thing", "D": "why", "H": "how"
    }  # fmt: skip


@given(st.binary(max_size=400))
def test_a_servers_error_is_shown_in_printable_short_lines(body: bytes) -> None:
    for text in pg.error_fields(body).values():
        assert text.isprintable()
        assert len(text) <= 300
