"""Messages between our own processes: what arrives is what was sent, and what is no message ends the connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood import wire
from fumehood.faults import BoxFailed, FumehoodError, LedgerGone, Refused
from fumehood.model import Deny
from fumehood.reasons import Reason

Pair = tuple[socket.socket, socket.socket]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def ends() -> Iterator[Pair]:
    ours, theirs = wire.pair()
    with ours, theirs:
        for end in (ours, theirs):
            end.settimeout(5)
        yield ours, theirs


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_what_is_decoded_is_what_was_encoded(message: dict[str, Any]) -> None:
    assert wire.decode(wire.encode(message)) == message


def test_bytes_that_are_no_text_survive() -> None:
    odd = os.fsdecode(b"\xff\xfe/name")
    assert wire.decode(wire.encode({"path": odd})) == {"path": odd}


def test_messages_of_several_threads_do_not_mix_and_nothing_of_one_stays_where_it_arrived() -> None:
    def talk(number: int) -> bool:
        ours, theirs = wire.pair()
        with ours, theirs:
            for size in (100_000, 10, 1000):
                message = {"secret": f"{number}" * size}
                wire.send(ours, message)
                if wire.receive(theirs) != (message, []):
                    return False
        return not any(wire._room.bytes)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(talk, range(8))) == [True] * 8


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        assert isinstance(wire.decode(data), dict)
    except wire.WireError:
        pass


@pytest.mark.parametrize("data", [b"[" * 100_000, b"1" * 10_000, b'{"a":' * 50_000])
def test_deep_or_endless_json_is_an_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_the_largest_message_passes_and_one_byte_more_is_told_before_it_is_sent(ends: Pair) -> None:
    ours, theirs = ends
    empty = len(wire.encode({"a": ""}))
    wire.send(ours, {"a": "x" * (wire.MESSAGE_BYTES - empty)})
    got = wire.receive(theirs)
    assert got is not None
    assert len(got[0]["a"]) == wire.MESSAGE_BYTES - empty
    with pytest.raises(wire.TooLongError):
        wire.send(ours, {"a": "x" * (wire.MESSAGE_BYTES - empty + 1)})
    wire.send(ours, {"still": "usable"})
    assert wire.receive(theirs) == ({"still": "usable"}, [])


def test_a_longer_datagram_of_a_liar_is_an_error(ends: Pair) -> None:
    ours, theirs = ends
    ours.send(b" " * (wire.MESSAGE_BYTES + 1))
    with pytest.raises(wire.WireError):
        wire.receive(theirs)


def test_descriptors_arrive_close_on_exec(ends: Pair) -> None:
    ours, theirs = ends
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    wire.send(ours, {}, [reading])
    os.close(reading)
    got = wire.receive(theirs)
    assert got is not None
    (arrived,) = got[1]
    assert not os.get_inheritable(arrived)
    os.write(writing, b"x")
    assert os.read(arrived, 1) == b"x"
    wire.close_all([arrived, writing])


def test_too_many_descriptors_are_an_error_and_none_is_kept(ends: Pair) -> None:
    ours, theirs = ends
    given_fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(wire.MESSAGE_FDS + 40)]
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ours, [b"{}"], given_fds)
    with pytest.raises(wire.WireError):
        wire.receive(theirs)
    assert len(os.listdir("/proc/self/fd")) == before
    wire.close_all(given_fds)


def test_descriptors_beside_garbage_are_closed(ends: Pair) -> None:
    ours, theirs = ends
    null = os.open(os.devnull, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ours, [b"not json"], [null])
    with pytest.raises(wire.WireError):
        wire.receive(theirs)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(null)


def test_the_end_is_none_and_sending_to_it_an_error(ends: Pair) -> None:
    ours, theirs = ends
    theirs.close()
    assert wire.receive(ours) is None
    with pytest.raises(wire.WireError):
        wire.send(ours, {})


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Refused(Deny(reason=Reason.BUSY, rule="r", detail="d")), Refused, Reason.BUSY),
        (BoxFailed(Reason.BOX_DIED, "d"), BoxFailed, Reason.BOX_DIED),
        (LedgerGone(Reason.LEDGER_UNAVAILABLE, "d"), LedgerGone, Reason.LEDGER_UNAVAILABLE),
        (ValueError("boom"), BoxFailed, Reason.INTERNAL),
    ],
)
def test_an_error_arrives_as_its_kind(error: Exception, kind: type[FumehoodError], reason: Reason) -> None:
    with pytest.raises(kind) as caught:
        wire.result_of_reply(wire.decode(wire.encode(wire.reply_of_error(error))))
    assert caught.value.reason is reason


@pytest.mark.parametrize("reply", [{}, {"fault": "x"}, {"fault": None}])
def test_a_reply_without_a_result_is_an_error(reply: dict[str, Any]) -> None:
    with pytest.raises(wire.WireError):
        wire.result_of_reply(reply)
