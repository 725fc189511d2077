from __future__ import annotations

import json
from typing import Any

import pytest
from mcp_types import version

from fumehood.gateway import protocol
from fumehood.gateway.frames import Answer, FrameError, Notification, Request, read


def frame(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def test_the_revisions_are_those_of_the_sdk() -> None:
    assert protocol.HANDSHAKE_VERSIONS == version.HANDSHAKE_PROTOCOL_VERSIONS
    assert protocol.MODERN_VERSIONS == version.MODERN_PROTOCOL_VERSIONS


def test_the_messages_there_are() -> None:
    assert read(frame(id=1, method="ping")) == Request(1, "ping", None)
    assert read(frame(id="", method="ping", params={})) == Request("", "ping", {})
    assert read(frame(method="n", params={"a": 1})) == Notification("n", {"a": 1})
    assert read(frame(id="x", result={})) == Answer("x", {}, None)
    assert read(frame(id=None, error={"code": 1})) == Answer(None, None, {"code": 1})


@pytest.mark.parametrize(
    "members",
    [
        {"id": True, "method": "ping"},
        {"id": 1.0, "method": "ping"},
        {"id": None, "method": "ping"},
        {"id": {}, "method": "ping"},
        {"id": "x" * 257, "method": "ping"},
        {"id": 2**63, "method": "ping"},
        {"id": 1, "method": 1},
        {"id": 1, "method": "ping", "params": []},
        {"id": 1, "method": "ping", "params": None},
        {"id": 1, "method": "ping", "result": {}},
        {"id": 1, "method": "ping", "extra": {}},
        {"id": 1, "result": {}, "error": {}},
        {"id": 1, "result": []},
        {"id": None, "result": {}},
        {"result": {}},
        {"id": 1},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
    ],
)
def test_what_is_no_message(members: dict[str, Any]) -> None:
    with pytest.raises(FrameError) as caught:
        read(frame(**members))
    assert caught.value.code == protocol.INVALID_REQUEST


def test_an_unfit_request_is_answered_under_its_id_and_an_unfit_answer_is_not() -> None:
    with pytest.raises(FrameError) as caught:
        read(b'{"jsonrpc":"2.0","id":4,"method":"ping","params":{"a":NaN}}')
    assert (caught.value.code, caught.value.id) == (protocol.PARSE_ERROR, 4)
    with pytest.raises(FrameError) as caught:
        read(b'{"jsonrpc":"2.0","id":4,"result":{"a":NaN}}')
    assert caught.value.id is None
