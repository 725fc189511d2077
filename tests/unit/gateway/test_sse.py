"""Server-sent events: the same events however the bytes were cut, and never more of one than its limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.faults import ExchangeFailed
from fumehood.gateway.sse import FIELD_BYTES, Events
from fumehood.memory import Memory
from fumehood.reasons import Reason

STREAM = (
    b"\xef\xbb\xbf: hello\n\n"
    b'data: {"a":\r\ndata:1}\r\n\r\n'
    b"event: message\rid: 7\rdata: two\r\r"
    b"event: other\ndata: not ours\n\n"
    b"retry: 250\nid: a b\ndata\ndata:\ndata:  three\n\n"
    b"id: 8\nevent: message\ndata:\n\n"
    b"data: cut off"
)
FOUND = [b'{"a": 1}', b"two", b"   three"]


def fed(pieces: list[bytes], longest: int = 1000) -> tuple[Events, list[bytes]]:
    events, found = Events(longest), []
    for piece in pieces:
        events.feed(piece)
        while (event := events.next()) is not None:
            assert isinstance(event.data, bytes)
            found.append(event.data)
    return events, found


def cut(data: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


@given(st.sets(st.integers(4, len(STREAM) - 1)))
def test_events_are_the_same_however_they_arrive(places: set[int]) -> None:
    events, found = fed(cut(STREAM, places))
    assert [data.strip() for data in found] == [data.strip() for data in FOUND]
    assert (events.last_id, events.retry_ms) == ("8", 250), "an id with a blank could end a word of a header, so it is none"


@given(st.binary(max_size=400), st.sets(st.integers(1, 399)))
def test_any_bytes_are_read_alike_in_any_pieces(data: bytes, places: set[int]) -> None:
    # The mark at the beginning is looked for in the first piece alone.
    data = data.removeprefix(b"\xef")
    assert fed([data])[1] == fed(cut(data, {place for place in places if place < len(data)}))[1]


def test_an_event_over_the_limit_is_refused_as_soon_as_it_is() -> None:
    events = Events(1000)
    for _ in range(9):
        events.feed(b"data: " + b"x" * 100 + b"\n")
    with pytest.raises(ExchangeFailed) as caught:
        events.feed(b"data: " + b"x" * 100 + b"\n")
    assert caught.value.reason is Reason.RESULT_TOO_LARGE


def test_a_long_event_goes_into_memory_up_to_its_most_and_no_further() -> None:
    events = Events(100)
    events.most = 2000
    events.feed(b"data: [" + b"1," * 400)
    events.feed(b"1]\n\n")
    event = events.next()
    assert event is not None
    assert isinstance(event.data, Memory)
    assert event.data.size == 803
    event.data.close()
    with pytest.raises(ExchangeFailed):
        events.feed(b"data: " + b"x" * 3000)
    events.drop()


def test_other_lines_are_cut_and_never_kept() -> None:
    events, found = fed([b": " + b"x" * 10_000, b"y" * 10_000, b"\nid: " + b"z" * 10_000 + b"\ndata: a\n\n"])
    assert found == [b"a"]
    assert events.last_id is None
    assert len(events._line) <= FIELD_BYTES
