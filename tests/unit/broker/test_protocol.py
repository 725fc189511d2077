"""What broker and init say to each other: exact bytes, and nothing that is not exactly them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.broker import protocol
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

INIT = Path(protocol.__file__).parent / "init" / "init.c"


def test_a_frame_is_limits_and_the_filter() -> None:
    assert protocol.frame_message(b"12345678" * 2, 1024) == b"F" + struct.pack("=II", 1024, 2) + b"12345678" * 2


def test_a_start_is_counted_strings() -> None:
    message = protocol.start_message(["cat", "a b"], {"A": "1", "B": ""})
    assert message == b"S" + struct.pack("=II", 2, 2) + b"cat\0a b\0A=1\0B=\0"


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=5))
def test_arguments_survive_the_trip(argv: list[str]) -> None:
    message = protocol.start_message(argv, {})
    assert message[9:].split(b"\0")[:-1] == [text.encode() for text in argv]


def test_bytes_that_are_no_text_survive_the_trip() -> None:
    odd = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert protocol.start_message([odd], {})[9:] == b"\xff\xfe\0"


@pytest.mark.parametrize(
    ("argv", "env"),
    [([], {}), (["a\0b"], {}), (["a"], {"B": "c\0"}), (["x"] * 20_000, {}), (["x" * 200_000], {}), (["\ud800"], {})],
)
def test_what_cannot_be_carried_is_a_bad_request(argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(BoxFailed) as caught:
        protocol.start_message(argv, env)
    assert caught.value.reason is Reason.BAD_REQUEST


@given(st.binary(max_size=32))
def test_a_report_is_nine_bytes_or_a_failure(data: bytes) -> None:
    try:
        report = protocol.parse_report(data)
    except BoxFailed:
        return
    assert len(data) == protocol.REPORT_BYTES
    assert (report.kind, report.first, report.second) == (chr(data[0]), *struct.unpack("=ii", data[1:]))


def test_a_failed_step_is_named() -> None:
    with pytest.raises(BoxFailed, match="seccomp"):
        protocol.parse_report(b"!" + struct.pack("=ii", 5, 22))
    with pytest.raises(BoxFailed) as caught:
        protocol.parse_report(b"")
    assert caught.value.reason is Reason.BOX_DIED


def test_init_and_broker_agree_on_sizes_and_steps() -> None:
    source = INIT.read_text()
    assert "MESSAGE_BYTES = 192 * 1024" in source
    assert f"STRINGS_MAX = {protocol.STRINGS_MAX}" in source
    assert protocol.MESSAGE_BYTES == 192 * 1024
    assert {int(step) for step in re.findall(r"die\((\d+)\)", source)} == set(protocol.STEPS)
