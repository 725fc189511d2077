"""What the client is told of an outcome. Pure.

A refusal, a kill or a failure goes back inside the tool's result, where the model that asked can read it and do better;
`_meta` carries it once more for programs. A server's own result passes as its call gave it, without secrets and with nothing
hidden in it: its unknown members stay. Only `_meta` is touched: members under our prefix are ours alone, or a server could forge an
outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fumehood.denial import Asked, Denial
from fumehood.gateway.kept import uri_of
from fumehood.gateway.long import Long
from fumehood.gateway.protocol import (
    CALL_FAILED,
    CALL_KILLED,
    CALL_REFUSED,
    INVALID_PARAMS,
    NAME,
    OUTCOME_KEY,
    OWN_PREFIX,
    RETURNS_KEY,
    SERVER_INFO_KEY,
    TASK_KEY,
    GatewayError,
    ServerError,
    printable,
)
from fumehood.model import Outcome, Result
from fumehood.reasons import Reason

SERVER_INFO = {"name": NAME, "version": "1"}
_CODES = {Result.REFUSED: CALL_REFUSED, Result.KILLED: CALL_KILLED}


def denial(outcome: Outcome, asked: Asked) -> Denial:
    """What there is to tell of an outcome that has nothing of the server's to pass on."""
    reason = outcome.reason or Reason.INTERNAL
    return Denial(
        task=outcome.task, result=outcome.result.value, reason=reason, rule=outcome.rule, detail=printable(outcome.detail, 1000),
        remedy=outcome.remedy or reason.remedy, asked=asked, retry_after_s=outcome.retry_after_s,
    )  # fmt: skip


def unsuccessful(told: Denial, *, modern: bool) -> dict[str, Any]:
    """The tool result that tells of a refusal, a kill or a failure."""
    return finished(
        {"content": [{"type": "text", "text": told.sentence()}], "isError": True},
        {TASK_KEY: told.task, OUTCOME_KEY: told.fields()},
        modern=modern,
    )


def linked(task: str, found: Long, limit_bytes: int) -> dict[str, Any]:
    """What stands for a tool's result over `limits.result`: where it is kept."""
    said = f"{NAME}: the result has {found.size} bytes, over `limits.result` of {limit_bytes}; it can be read as a resource"
    link = {"type": "resource_link", "uri": uri_of(task), "name": "result", "mimeType": "application/json", "size": found.size}
    return {"content": [{"type": "text", "text": said}, link], "isError": found.is_error}


def labelled(ours: Mapping[str, Any], returns: str | None) -> dict[str, Any]:
    """Our members of a result's `_meta`, with the label that the profile gives to what this tool returns (`untrusted`), if any.

    For `finished`, which lets no server write it: whoever feeds the result to a model can keep it apart from what the user said.
    """
    return dict(ours) if returns is None else {**ours, RETURNS_KEY: returns}


def finished(result: Mapping[str, Any], ours: Mapping[str, Any], *, modern: bool) -> dict[str, Any]:
    """A result with our `_meta` members, shaped for the client's era."""
    given = result.get("_meta")
    meta = {k: v for k, v in given.items() if not k.startswith(OWN_PREFIX)} if isinstance(given, dict) else {}
    made = {**result, "_meta": {**meta, **ours}}
    if modern:
        made["resultType"] = "complete"
        made["_meta"].setdefault(SERVER_INFO_KEY, SERVER_INFO)
        return made
    if not made["_meta"]:
        del made["_meta"]  # an older client's empty result is empty
    made.pop("resultType", None)
    # Before 2026-07-28 this is an object or absent, and a client that checks would lose the whole result.
    if not isinstance(made.get("structuredContent", {}), dict):
        del made["structuredContent"]
    return made


def error_of(outcome: Outcome, asked: Asked) -> GatewayError:
    """The JSON-RPC error for an outcome that has no tool result to go into: the server's own, or ours.

    A name that is not to be had is the client's mistake, whoever says so.
    """
    if isinstance(outcome.value, ServerError):
        error = outcome.value
        return GatewayError(error.code, printable(error.message, 1000), error.data)
    named = outcome.reason in (Reason.TOOL_UNKNOWN, Reason.TOOL_NOT_ALLOWED, Reason.NOT_KNOWN, Reason.NOT_ALLOWED)
    code = INVALID_PARAMS if named else _CODES.get(outcome.result, CALL_FAILED)
    told = denial(outcome, asked)
    return GatewayError(code, told.sentence(), told.fields())
