"""JSON-RPC messages out of frames: one line, one message. Pure.

Invariants: an id is a string or an integer and nothing that compares equal to one, so `true` (which Python and pydantic
take for 1, or for a notification) and `1.0` are refused. A message with any id is never a notification. Members that
are none of JSON-RPC's are refused, because the side that ignores them would judge another message than the side that
does not. Batches are refused: no revision that we speak needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fumehood.gateway import strict_json
from fumehood.gateway.protocol import INVALID_REQUEST, PARSE_ERROR

Id = str | int
_MAX_ID_CHARS = 256
_MAX_ID = 2**63


@dataclass(frozen=True, slots=True)
class Request:
    """Wants an answer under `id`."""

    id: Id
    method: str
    params: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Notification:
    """Wants no answer."""

    method: str
    params: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Answers request `id` with exactly one of `result` and `error`."""

    id: Id | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


Message = Request | Notification | Answer


class FrameError(ValueError):
    """A frame that is no message. `id` is whom to answer, when that much can be read."""

    def __init__(self, code: int, message: str, request_id: Id | None = None) -> None:
        """Carry the JSON-RPC error."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = request_id


def read(frame: bytes, *, repair_surrogates: bool = False) -> Message:
    """The message in one frame. Raises `FrameError`."""
    try:
        value = strict_json.parse(frame, repair_surrogates=repair_surrogates)
    except strict_json.UnfitError as error:
        raise FrameError(PARSE_ERROR, f"Parse error: {error}", _id_of(error.loose)) from error
    if not isinstance(value, dict):
        raise FrameError(INVALID_REQUEST, "Invalid request: a message is one JSON object (no batches)")
    try:
        return _message(value)
    except ValueError as error:
        raise FrameError(INVALID_REQUEST, f"Invalid request: {error}", _id_of(value)) from error


def valid_id(value: Any) -> bool:
    """Whether this is an id: exact types only, because bool is an int and 1.0 equals 1."""
    if type(value) is int:
        return -_MAX_ID <= value < _MAX_ID
    return type(value) is str and len(value) <= _MAX_ID_CHARS


def _id_of(value: Any) -> Id | None:
    found = value.get("id") if isinstance(value, dict) and "method" in value else None
    return found if valid_id(found) else None


def _message(value: dict[str, Any]) -> Message:
    if value.get("jsonrpc") != "2.0":
        raise ValueError('"jsonrpc" is not "2.0"')
    if "id" in value and not valid_id(value["id"]) and not ("error" in value and value["id"] is None):
        raise ValueError("an id is a string or an integer")
    if "method" in value:
        return _call(value)
    if unknown := value.keys() - {"jsonrpc", "id", "result", "error"}:
        raise ValueError(f"unknown member {min(unknown)!r}")
    if "id" not in value or ("result" in value) == ("error" in value):
        raise ValueError("neither a request nor an answer")
    body = value["result"] if "result" in value else value["error"]
    if not isinstance(body, dict):
        raise ValueError("a result or an error is an object")  # noqa: TRY004 - a fault of the message, not of the code
    return Answer(value["id"], value.get("result"), value.get("error"))


def _call(value: dict[str, Any]) -> Request | Notification:
    if unknown := value.keys() - {"jsonrpc", "id", "method", "params"}:
        raise ValueError(f"unknown member {min(unknown)!r}")
    method, params = value["method"], value.get("params")
    if not isinstance(method, str) or len(method) > _MAX_ID_CHARS:
        raise ValueError("a method is a short string")
    if "params" in value and not isinstance(params, dict):
        raise ValueError("params is an object")
    return Request(value["id"], method, params) if "id" in value else Notification(method, params)
