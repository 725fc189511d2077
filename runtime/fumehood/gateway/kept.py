"""What clients come back for: results over `limits.result`, and how tasks ended, kept by the ledger beside the records.

Invariants: only the sender of a call reads what is kept of it, whichever process carried it; to anybody else, of a task
that never was, and under an address that is none of ours there is the same nothing. Reading runs no server's code and
touches no box, so it is no call and makes no record. What is read at once is bounded.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio

from fumehood.evidence.facts import text
from fumehood.faults import ExchangeFailed, FumehoodError
from fumehood.gateway import strict_json
from fumehood.gateway.long import Long
from fumehood.gateway.protocol import CALL_FAILED, INTERNAL_ERROR, INVALID_PARAMS, GatewayError
from fumehood.memory import Memory
from fumehood.model import Keeping, Result, Sender
from fumehood.ports import Kept, Ledger
from fumehood.reasons import Reason

SCHEME = "fumehood://"
MAX_READ_BYTES = 8 * 2**20
KEEP_S = 60.0
FIND_S = 10.0
NAME_CHARS = 256
# A task's own front door; a session or the reading of a list is none that a client began.
FRONT_DOOR = "gateway"
_URI = re.compile(r"fumehood://task/([0-9a-hjkmnp-tv-z]{26})/result(?:\?offset=([0-9]{1,10})&length=([0-9]{1,10}))?")


def uri_of(task: str) -> str:
    """The address of a task's kept result."""
    return f"{SCHEME}task/{task}/result"


class KeptResults:
    """The kept results of a gateway's clients."""

    def __init__(self, ledger: Ledger) -> None:
        """Keep them in this ledger."""
        self._ledger = ledger

    async def keep_result(self, task: str, memory: Memory, found: Long) -> None:
        """Keep a server's long result. Raises `ExchangeFailed`."""
        try:
            with anyio.fail_after(KEEP_S):
                await self._ledger.keep(task, Keeping.RESULT, memory.fd, found.offset, found.size)
        except FumehoodError as error:
            detail = f"a result of {found.size} bytes is over `limits.result` and could not be kept: {error.detail}"
            raise ExchangeFailed(Reason.RESULT_NOT_KEPT, detail) from error
        except TimeoutError as error:
            raise ExchangeFailed(Reason.RESULT_NOT_KEPT, f"it was not on disk within {KEEP_S:g} s") from error

    async def keep_answer(self, task: str, answer: Mapping[str, Any]) -> bool:
        """Keep what the client of a task is told at its end; whether that was possible."""
        try:
            with Memory(strict_json.dumps(answer)) as memory, anyio.fail_after(KEEP_S):
                memory.seal()
                await self._ledger.keep(task, Keeping.ANSWER, memory.fd, 0, memory.size)
        except (FumehoodError, TimeoutError):
            return False
        return True

    async def read(self, sender: Sender, uri: str) -> dict[str, Any]:
        """The contents at an address of ours. Raises `GatewayError`."""
        match = _URI.fullmatch(uri)
        kept = await self._of(sender, match[1], Keeping.RESULT) if match is not None else None
        if match is None or kept is None or kept.fd is None:
            raise GatewayError(INVALID_PARAMS, "Invalid params: there is no such resource")
        try:
            if match[2] is None:
                if kept.size_bytes > MAX_READ_BYTES:
                    detail = f"it has {kept.size_bytes} bytes: read it in parts, {uri_of(match[1])}?offset=0&length={MAX_READ_BYTES}"
                    raise GatewayError(INVALID_PARAMS, detail, {"bytes": kept.size_bytes})
                found = {"text": _read(kept.fd, 0, kept.size_bytes).decode()}
            else:
                part = _read(kept.fd, int(match[2]), min(int(match[3]), MAX_READ_BYTES))
                found = {"blob": base64.b64encode(part).decode()}
        finally:
            os.close(kept.fd)
        return {"contents": [{"uri": uri, "mimeType": "application/json", **found}]}

    async def task(self, sender: Sender, task: str) -> dict[str, Any] | None:
        """How a task of an earlier request, or process, ended, as the extension shows it; None when there is none."""
        kept = await self._of(sender, task, Keeping.ANSWER)
        if kept is None:
            return None
        try:
            answer = None if kept.fd is None else json.loads(_read(kept.fd, 0, kept.size_bytes))
        finally:
            if kept.fd is not None:
                os.close(kept.fd)
        ended_s = kept.closed_at_s or kept.opened_at_s
        shown: dict[str, Any] = {
            "taskId": task,
            "status": "working",
            "createdAt": iso(kept.opened_at_s),
            "lastUpdatedAt": iso(ended_s),
            "ttlMs": max(0, int((kept.until_s - kept.opened_at_s) * 1000)) if answer is not None else None,
        }
        if answer is not None:
            return {**shown, "status": "failed" if "error" in answer else "completed", **answer}
        if kept.is_open:
            return shown
        if kept.result == Result.LOST:
            reason = Reason.RUNTIME_DIED
            data = {"task": task, "result": kept.result, "reason": reason.value, "rule": None, "remedy": reason.remedy}
            error = {"code": CALL_FAILED, "message": f"fumehood: {reason.value}: {reason.meaning}. {reason.remedy}", "data": data}
            return {**shown, "status": "failed", "error": error}
        return {**shown, "status": "cancelled"} if kept.reason == Reason.CANCELLED else None

    async def _of(self, sender: Sender, task: str, kind: Keeping) -> Kept | None:
        """What the ledger knows of a task of this sender's."""
        try:
            with anyio.fail_after(FIND_S):
                kept = await self._ledger.kept(task, kind)
        except FumehoodError as error:
            if error.reason is Reason.BAD_REQUEST:
                return None  # no task id
            raise GatewayError(INTERNAL_ERROR, "the ledger does not answer") from error
        except TimeoutError as error:
            raise GatewayError(INTERNAL_ERROR, "the ledger does not answer") from error
        if kept is None:
            return None
        asking = Sender(uid=sender.uid, name=text(sender.name, NAME_CHARS), tenant=text(sender.tenant, NAME_CHARS))
        if kept.sender != asking or kept.front_door != FRONT_DOOR:
            if kept.fd is not None:
                os.close(kept.fd)
            return None
        return kept


def iso(seconds: float) -> str:
    """A time as the protocol writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")



def _read(fd: int, offset: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (part := os.pread(fd, size - len(data), offset + len(data))):
        data += part
    return bytes(data)
