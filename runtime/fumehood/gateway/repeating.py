"""Requests that are sent again: a client's idempotency key, what it must be equal by, and how an answer is written down. Pure.

The key is in the request's `_meta`, so it works the same in every era and over every transport; the id of a request is never one. It
must be long enough that two clients of one sender do not meet by counting from one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fumehood.canonical import digest_of_json
from fumehood.gateway.exchange import Said
from fumehood.gateway.long import Long
from fumehood.gateway.protocol import IDEMPOTENCY_KEY, INVALID_PARAMS, GatewayError, ServerError
from fumehood.ports import Recall

_KEY = re.compile(r"[!-~]{16,128}")


def key_of(meta: Mapping[str, Any]) -> str | None:
    """The key in a request's `_meta`. Raises `GatewayError` for one that is none: a client that sends it relies on it."""
    key = meta.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        wanted = "16 to 128 visible ASCII characters, such as a UUID"
        raise GatewayError(INVALID_PARAMS, f"Invalid params: {IDEMPOTENCY_KEY} is a text of {wanted}")
    return key


def digest_of(method: str, params: Mapping[str, Any]) -> str:
    """What two requests with one key must have in common: everything but `_meta`. Raises `GatewayError`."""
    asked = {name: value for name, value in params.items() if name != "_meta"}
    try:
        return digest_of_json({"method": method, "params": asked})
    except ValueError as error:
        raise GatewayError(INVALID_PARAMS, f"Invalid params: a request with a key has a canonical form; {error}") from error


def _written(value: Any) -> Any:
    match value:
        case Said():
            long = None if value.long is None else [value.long.offset, value.long.size, value.long.is_error]
            return {"result": value.result, "stray_frames": value.stray_frames, "long": long}
        case ServerError():
            return {"error": [value.code, value.message, value.data]}
        case _:
            return None


def _read(value: Any) -> Any:
    if value is None:
        return None
    if "error" in value:
        return ServerError(*value["error"])
    return Said(value["result"], value["stray_frames"], None if value["long"] is None else Long(*value["long"]))


RECALL = Recall(_written, _read)
