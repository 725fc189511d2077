"""What the ledger accepts, checked field by field before anything of it reaches SQL. Pure.

The worker parses attackers' bytes; once it is taken over it may send anything. So every field has a type and a
largest size, an unknown or missing field is refused, and what the ledger knows better (runtime id, boot id, the time
of opening and closing) is not asked for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from fumehood.faults import Refused
from fumehood.lifecycle import State
from fumehood.model import Deny, Keeping, Result
from fumehood.policies.known import PRIVATE, UNTRUSTED, Unit
from fumehood.reasons import Reason
from fumehood.thumbprint import bytes_of

FACTS_BYTES = 32 * 1024
FILES_BYTES = 96 * 1024
HANDLE_BYTES = 4 * 1024
SEALED_CHARS = 8 * 1024
ENTRY_BYTES = 2 * 1024
COUNTERS_BYTES = 4 * 1024
ENTRIES = 1024
DEFINITIONS = 2048
DEFINITION_BYTES = 64 * 1024
QUESTION_BYTES = 96 * 1024
ANSWER_CHARS = 8 * 1024
APPROVERS = 32
TOOL_CHARS = 128
TEXT_CHARS = 1024
DETAIL_CHARS = 4096
NAMES = 32
CHARGES = 32
TASK_CHARS = 26
PREFIX_CHARS = 6
SENDER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TASK_LETTERS = frozenset("0123456789abcdefghjkmnpqrstvwxyz")

Check = Callable[[Any], Any]


class Action(StrEnum):
    """What an operator does to all calls at once."""

    STOP = "stop"
    START = "start"


class Taint(StrEnum):
    """What a conversation or a workspace can hold."""

    UNTRUSTED = UNTRUSTED
    PRIVATE = PRIVATE


class Lives(StrEnum):
    """Which leases a reader wants."""

    OPEN = "open"
    CLOSED = "closed"


def _text(limit: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise ValueError(f"must be a text of at most {limit} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a lone surrogate: SQLite would fail the whole batch on it
            raise ValueError("must be valid Unicode") from error
        return value

    return check


def _task(least: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= TASK_CHARS or not _TASK_LETTERS.issuperset(value):
            raise ValueError(f"must be a task id of {least} to {TASK_CHARS} characters")
        return value

    return check


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**63:
        raise ValueError("must be a whole number")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**31:
        raise ValueError("must be a number of bytes")
    return value


def _inode(value: Any) -> int:
    # Some file systems use all 64 bits, and SQLite has a sign.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise ValueError("must be the number of an inode")
    return value


def _amount(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError("must not be negative")
    return number


def _list_of(check: Check, most: int) -> Check:
    def checked_list(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"must be an array of at most {most}")
        return [check(each) for each in value]

    return checked_list


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - every check raises the same error
    return value


def _one_of(values: type[StrEnum]) -> Check:
    def check(value: Any) -> str:
        return values(value).value

    return check


def _step(value: Any) -> str:
    state = State(value)
    if state in {State.OPEN, State.CLOSED}:  # what makes and ends a record is a verb of its own
        raise ValueError("is not a step of a call")
    return state.value


def _sender_name(value: Any) -> str:
    if not isinstance(value, str) or not SENDER_NAME.fullmatch(value):
        raise ValueError("must be a name of at most 64 of a-z, 0-9, `.`, `_`, `-`")
    return value


def _public_key(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")  # noqa: TRY004 - as above
    bytes_of(value)
    return value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > NAMES:
        raise ValueError(f"must be an array of at most {NAMES} names")
    return [_NAME(name) for name in value]


def _json(kind: type, limit: int) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"must be a JSON {'object' if kind is dict else 'array'}")  # noqa: TRY004 - as above
        if len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) > limit:
            raise ValueError(f"is over {limit} bytes")
        return value

    return check


def _maybe(check: Check) -> Check:
    def maybe(value: Any) -> Any:
        return None if value is None else check(value)

    return maybe


def _fields(shape: Mapping[str, Check]) -> Check:
    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or set(value) != set(shape):
            raise ValueError(f"must be an object of {', '.join(shape)}")
        return {name: of(value[name]) for name, of in shape.items()}

    return check


def _entries(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > ENTRIES:
        raise ValueError(f"must be an array of at most {ENTRIES} entries")
    return [_ENTRY(entry) for entry in value]


def _definitions(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > DEFINITIONS:
        raise ValueError(f"must be an array of at most {DEFINITIONS} definitions")
    return [_DEFINITION(each) for each in value]


def _definition_text(value: Any) -> str:
    text: str = _text(DEFINITION_BYTES)(value)
    if len(text.encode()) > DEFINITION_BYTES:
        raise ValueError(f"is over {DEFINITION_BYTES} bytes")
    return text


def _need(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _fields({"approvers": _maybe(_names), "count": _whole, "requester": _flag})(value)
    if not 1 <= found["count"] <= APPROVERS:
        raise ValueError(f"must be of 1 to {APPROVERS} approvers")
    return found


def _counters(value: Any) -> dict[str, int]:
    counters: dict[str, int] = _json(dict, COUNTERS_BYTES)(value)
    return {name: _whole(count) for name, count in counters.items()}


_NAME = _text(256)
_ID = _task(TASK_CHARS)
_FACTS = _json(dict, FACTS_BYTES)
_ENTRY = _fields({"at": _number, "kind": _text(16), "facts": _json(dict, ENTRY_BYTES)})
_DEFINITION = _fields({"tool": _text(TOOL_CHARS), "text": _definition_text, "trusted": _flag})
_PIN = {"server": _NAME, "profile": _NAME, "tool": _text(TOOL_CHARS), "pin": _NAME}
_PROOF = _fields({"method": _NAME, "key": _NAME, "nonce": _NAME, "until": _number})
_SEEN = _fields({"path": _text(4096), "device": _whole, "inode": _inode, "writes": _flag})
_CHARGE = _fields({
    "budget": _NAME, "key": _text(TEXT_CHARS), "unit": _one_of(Unit), "ask": _flag,
    **dict.fromkeys(("amount", "most", "per_s"), _amount),
})  # fmt: skip
_ACCOUNT = _fields({
    "kept_s": _amount, "tool": _text(2 * TEXT_CHARS), "taints": _list_of(_one_of(Taint), 2), "workspace": _maybe(_SEEN),
    "charges": _list_of(_CHARGE, CHARGES),
})  # fmt: skip
_REVOKED = _fields({"gone": _flag, "asked": _text(TEXT_CHARS), "answer": _text(TEXT_CHARS)})
_USAGE = {
    **dict.fromkeys(("cpu_user_s", "cpu_system_s", "cpu_throttled_s"), _maybe(_number)),
    **dict.fromkeys(("memory_peak_bytes", "pids_peak", "oom_kills", "pids_limit_hits"), _maybe(_whole)),
    **dict.fromkeys(("io_read_bytes", "io_write_bytes"), _maybe(_whole)),
}
SHAPES: dict[str, dict[str, Check]] = {
    "ping": {},
    "open": {
        "task": _ID,
        "tenant": _NAME,
        "sender": _NAME,
        "sender_uid": _whole,
        "front_door": _NAME,
        "tool": _maybe(_text(TEXT_CHARS)),
        "session": _maybe(_ID),
        "command": _maybe(_text(TEXT_CHARS)),
        "profile": _NAME,
        "profile_digest": _NAME,
        "image": _text(TEXT_CHARS),
        "request_digest": _maybe(_NAME),
        "pin": _maybe(_NAME),
        "pin_of": _maybe(_fields({"server": _NAME, "capabilities": _NAME})),
        "proof": _maybe(_PROOF),
        "idempotency_key": _maybe(_NAME),
        "account": _maybe(_ACCOUNT),
    },
    "conversations": {},
    "conversation_forget": {"sender": _NAME},
    "claim": {"task": _ID, "policy": _NAME},
    "event": {"task": _ID, "state": _step, "at": _number, "facts": _FACTS},
    "close": {
        "task": _ID,
        "result": _one_of(Result),
        "reason": _maybe(_one_of(Reason)),
        "detail": _text(DETAIL_CHARS),
        "rule": _maybe(_NAME),
        "repeats": _maybe(_ID),
        "exit_code": _maybe(_whole),
        "signal": _maybe(_whole),
        "engine": _maybe(_NAME),
        "container": _maybe(_NAME),
        **_USAGE,
        "stdout_bytes": _whole,
        "stderr_bytes": _whole,
        "stdout_truncated": _flag,
        "stderr_truncated": _flag,
        "files": _json(list, FILES_BYTES),
        "files_total": _whole,
        "pending": _flag,
        "timings": _json(dict, FACTS_BYTES // 8),
    },
    "operated": {
        "action": _one_of(Action),
        "who": _NAME,
        "uid": _whole,
        "why": _text(TEXT_CHARS),
        "facts": _json(dict, HANDLE_BYTES),
    },
    "operations": {},
    "close_lost": {"task": _ID, "facts": _FACTS},
    "open_tasks": {"runtime_id": _maybe(_NAME), "after_task": _maybe(_ID)},
    "runtimes_open": {},
    "tasks": {
        "limit": _whole,
        "tool": _maybe(_text(TEXT_CHARS)),
        "result": _maybe(_text(16)),
        "profile": _maybe(_NAME),
        "session": _maybe(_ID),
        "front_door": _maybe(_NAME),
        "since": _maybe(_number),
        "until": _maybe(_number),
        "before_task": _maybe(_ID),
    },
    "task": {"task": _task(PREFIX_CHARS), "after_seq": _maybe(_whole)},
    # With one descriptor beside it, the only verb that has any.
    "keep": {"task": _ID, "kind": _one_of(Keeping), "offset": _size, "bytes": _size},
    "kept": {"task": _ID, "kind": _one_of(Keeping)},
    "prune": {"older_than_s": _maybe(_number)},
    "lease_opened": {
        "lease": _ID,
        "task": _ID,
        "credential": _NAME,
        "provider": _NAME,
        "handle": _json(dict, HANDLE_BYTES),
        "until": _maybe(_number),
    },
    "lease_issued": {
        "lease": _ID,
        "until": _maybe(_number),
        "sealed": _maybe(_text(SEALED_CHARS)),
        "facts": _json(dict, HANDLE_BYTES),
    },
    "lease_closed": {"lease": _ID, "revoked": _maybe(_REVOKED), "error": _maybe(_text(TEXT_CHARS))},
    "leases": {"task": _maybe(_ID), "state": _maybe(_one_of(Lives)), "after": _maybe(_ID), "limit": _maybe(_whole)},
    "leases_claim": {
        "lease": _maybe(_ID),
        "task": _maybe(_ID),
        "after": _maybe(_ID),
        "orphaned": _flag,
        "limit": _whole,
    },
    "sealing_key": {},
    "sender": {"kid": _NAME},
    "senders": {"after": _maybe(_NAME)},
    "sender_add": {"name": _sender_name, "key": _public_key, "tenant": _sender_name, "groups": _names, "audiences": _names},
    "sender_revoke": {"named": _NAME},
    "spend": {"key": _NAME, "nonce": _NAME, "until": _number},
    "pins_seen": {
        "server": _NAME,
        "profile": _NAME,
        "capabilities": _NAME,
        "declared": _text(TEXT_CHARS),
        "definitions": _definitions,
    },
    "pins_of": {"server": _NAME, "profile": _NAME, "capabilities": _NAME, "after": _maybe(_text(TOOL_CHARS))},
    "pins": {"after": _maybe(_fields(dict.fromkeys(("server", "profile", "tool", "capabilities"), _NAME)))},
    "pin_text": {"server": _NAME, "pin": _NAME},
    "pin_accept": _PIN,
    "pin_reject": _PIN,
    "pins_forget": {"server": _NAME, "profile": _NAME},
    "approval_ask": {"task": _ID, "binding": _NAME, "need": _need, "question": _json(dict, QUESTION_BYTES), "until": _number},
    "approval_spend": {"approval": _ID, "binding": _NAME, "task": _ID},
    "approval_confirm": {"approval": _ID, "task": _ID},
    "approval_withdraw": {"approval": _ID, "task": _ID},
    "approval_told": {"approval": _ID, "task": _ID, "told": _NAME},
    "approval_vote": {
        "approval": _ID, "binding": _NAME, "approves": _flag, "reason": _text(TEXT_CHARS), "at_terminal": _flag,
    },
    "approval_answer": {"answer": _text(ANSWER_CHARS)},
    "approvals_expire": {},
    "approval_state": {"approval": _ID},
    "approval": {"approval": _task(PREFIX_CHARS)},
    "approvals": {"after": _maybe(_ID), "everything": _maybe(_flag)},
    "egress": {"task": _ID, "entries": _entries, "counters": _counters},
    "egress_of": {"task": _ID, "after_seq": _maybe(_whole)},
}
# A reader may leave out what it does not want; a record leaves nothing out.
_LENIENT = frozenset({"open_tasks", "tasks", "task", "leases", "egress_of", "senders", "approvals"})


def checked(verb: object, args: object) -> tuple[str, dict[str, Any]]:
    """The verb and its arguments, every field as its shape says. Raises Refused."""
    if not isinstance(verb, str) or verb not in SHAPES:
        raise bad_request("the ledger has no such verb")
    if not isinstance(args, Mapping):
        raise bad_request(f"{verb}: the arguments must be an object")
    shape = SHAPES[verb]
    if unknown := sorted(set(args) - set(shape)):
        raise bad_request(f"{verb}: unknown field {unknown[0][:TEXT_CHARS]!r}")
    fields: dict[str, Any] = {}
    for name, check in shape.items():
        if name not in args and verb not in _LENIENT:
            raise bad_request(f"{verb}: {name} is missing")
        try:
            fields[name] = check(args.get(name))
        except (ValueError, RecursionError) as error:
            raise bad_request(f"{verb}: {name} {error}") from error
    return verb, fields


def bad_request(detail: str) -> Refused:
    """A refusal of what was asked of the ledger."""
    return Refused(Deny(reason=Reason.BAD_REQUEST, rule="ledger.request", detail=detail))
