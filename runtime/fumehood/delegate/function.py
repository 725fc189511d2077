"""The work of one function: a conversation with `runner` in the box, every line of which is a stranger's.

A `Function` runs as an `Exchange`: python3 of the image with the runner's text, one line in, lines out. Invariants: a line
counts, and is parsed, only with this call's random token (rule 9), which a program that merely inherited the standard output
does not know; lines, records and progress are bounded in number and size; logger names are the module's own or become so,
levels are those of logging, and text is made printable. What a callback of the host's raises is logged and costs the call nothing.
"""

from __future__ import annotations

import inspect
import logging
import math
import secrets
import string
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import anyio.lowlevel

from fumehood.delegate import runner
from fumehood.delegate.errors import Raised
from fumehood.delegate.signatures import Signature, signature_of
from fumehood.delegate.source import Source, source_of
from fumehood.execution import Exchange, Streams
from fumehood.faults import ExchangeFailed
from fumehood.gateway import strict_json
from fumehood.model import ToolCall
from fumehood.reasons import Reason

MAX_LINES = 100_000
MAX_STRAY = 10_000
MAX_RECORDS = 10_000
MAX_PROGRESS = 10_000
MAX_LOGGERS = 64
REPORT_BYTES = 64 * 1024  # of one log record or report of progress: the runner cuts texts far shorter
REPORTS_BYTES = 64 * 2**20
_LEVELS = ("debug", "info", "warning", "error")
_NAME_LETTERS = frozenset(string.ascii_letters + string.digits + "_.")
_log = logging.getLogger("fumehood")

Progress = Callable[[float, float | None, str | None], Awaitable[None]]
Say = Callable[[str, str], Awaitable[None]]


async def _unheard(*_: object) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One call of one function. `arguments` are JSON values that its signature has judged; the result comes typed.

    `progress` is told (progress, total, message), `say` (level, message), as the function reports them.
    """

    module: str
    name: str
    source: Source
    signature: Signature = field(repr=False)
    arguments: Mapping[str, Any]
    progress: Progress = _unheard
    say: Say = _unheard

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: Mapping[str, Any], **heard: Any) -> Self:
        """A call of a boxed function with JSON values; `heard` may be `progress` and `say`. Raises Refused(ARGUMENTS_INVALID)."""
        inner = inspect.unwrap(function)
        signature = signature_of(inner)
        return cls(
            module=inner.__module__, name=inner.__name__, source=source_of(inner), signature=signature,
            arguments=signature.from_json(arguments), **heard,
        )  # fmt: skip

    def call_with_source(self, call: ToolCall) -> ToolCall:
        """The call under its profile and the mount of this function's source."""
        return replace(call, profile=self.source.added_to(call.profile))

    def exchange(self, call: ToolCall) -> Exchange:
        """The function as what a box runs. The outcome's value is its result, or the `Raised` of its exception."""
        text = Path(runner.__file__).read_text(encoding="utf-8")
        # Isolated: no PYTHON* of the image's, no site of a user's, and no folder of the box's on the path.
        return Exchange(("python3", "-I", "-B", "-c", text), lambda streams: _Conversation(self, call, streams).hold())


class _Conversation:
    """One box's lines."""

    def __init__(self, function: Function, call: ToolCall, streams: Streams) -> None:
        self._function = function
        self._call = call
        self._streams = streams
        self._token = secrets.token_hex(16)
        self._stray = self._records = self._reports = self._report_bytes = 0
        self._loggers: set[str] = set()

    async def hold(self) -> Any:
        """The result as the function's return type. Raises ExchangeFailed."""
        await self._streams.send(strict_json.dumps(self._question()))
        for _ in range(MAX_LINES):
            try:
                line = await self._streams.receive()
            except ExchangeFailed as error:
                if error.reason is Reason.SERVER_DIED:
                    raise ExchangeFailed(Reason.FUNCTION_DIED) from error
                raise
            frame = self._read(line)
            if frame is None:
                self._stray += 1
                if self._stray > MAX_STRAY:
                    break
            elif frame.get("kind") in ("log", "progress", "said"):
                self._report_bytes += len(line)
                if len(line) > REPORT_BYTES or self._report_bytes > REPORTS_BYTES:
                    raise ExchangeFailed(Reason.RESULT_INVALID, "the box reported more than anybody reads")
                await self._hear(frame)
            else:
                return self._answer(frame, len(line))
            # A function that writes without end must not keep others' cancellations waiting.
            await anyio.lowlevel.checkpoint()
        raise ExchangeFailed(Reason.RESULT_INVALID, "the box wrote many lines and no result among them")

    def _question(self) -> dict[str, Any]:
        function, profile = self._function, self._call.profile
        context = function.signature.context
        return {
            "token": self._token,
            "module": function.module,
            "function": function.name,
            "top": function.source.top,
            "folder": function.source.folder,
            "arguments": function.arguments,
            "context": [] if context is None else [context],
            "level": logging.getLogger(function.module).getEffectiveLevel(),
            "result_bytes": profile.limits.result_bytes,
            "image": profile.image,
        }

    def _read(self, line: bytes) -> dict[str, Any] | None:
        """A line of ours, or None. Raises ExchangeFailed for one that is ours and no JSON that everyone reads alike."""
        if self._token.encode() not in line:
            return None  # before it is parsed: noise may be long
        try:
            frame = strict_json.parse(line)
        except strict_json.UnfitError as error:
            # Nobody else knows the token, so this was meant for us, and a better one will not come.
            raise ExchangeFailed(Reason.RESULT_INVALID, f"the box answered with unfit JSON: {error}") from error
        ours = isinstance(frame, dict) and frame.get("token") == self._token
        return frame if ours else None

    def _answer(self, frame: Mapping[str, Any], line_bytes: int) -> Any:
        limit = self._call.profile.limits.result_bytes
        match frame.get("kind"):
            case "result":
                if line_bytes > limit + 256:  # the token and the names around it
                    raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"the result is over the {limit} bytes of `limits.result`")
                try:
                    return self._function.signature.value(self._streams.passing(frame.get("value")))
                except ValueError as error:
                    raise ExchangeFailed(Reason.RESULT_INVALID, f"the result does not fit its type: {error}") from error
            case "raised":
                raised = _raised(frame)
                failed = ExchangeFailed(Reason.FUNCTION_RAISED, f"{raised.name}: {raised.message}"[:500])
                failed.value = raised
                raise failed
            case "unloadable":
                raise ExchangeFailed(Reason.FUNCTION_UNLOADABLE, _text(frame.get("message"), 500))
            case "unfit":
                raise ExchangeFailed(Reason.RESULT_INVALID, f"the result is not JSON: {_text(frame.get('message'), 300)}")
            case "oversize":
                raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"the result is over the {limit} bytes of `limits.result`")
        raise ExchangeFailed(Reason.RESULT_INVALID, "the box answered with something unknown")

    async def _hear(self, frame: Mapping[str, Any]) -> None:
        frame = self._streams.passing(frame)
        match frame:
            case {"kind": "log"}:
                self._records += 1
                if self._records <= MAX_RECORDS:
                    self._record(frame)
            case {"kind": "progress", "progress": progress} if _is_number(progress):
                total, message = frame.get("total"), frame.get("message")
                told = None if message is None else _text(message, runner.TEXT_CHARS)
                await self._tell(self._function.progress, progress, total if _is_number(total) else None, told)
            case {"kind": "said", "level": level} if level in _LEVELS:
                await self._tell(self._function.say, level, _text(frame.get("message"), runner.TEXT_CHARS))

    async def _tell(self, heard: Callable[..., Awaitable[None]], *what: Any) -> None:
        self._reports += 1
        if self._reports > MAX_PROGRESS:
            return
        try:
            await heard(*what)
        except Exception as error:  # noqa: BLE001 - a client that went away must not fail the call
            _log.warning("task %s: a report of its function was not passed on: %s", self._call.task, error)

    def _record(self, frame: Mapping[str, Any]) -> None:
        """Give one record to the logger of the same name here, if it is one of the function's own."""
        name, level = frame.get("logger"), frame.get("level")
        logger = logging.getLogger(self._logger_name(name))
        number = min(max(level, logging.DEBUG), logging.CRITICAL) if type(level) is int else logging.INFO
        if not logger.isEnabledFor(number):
            return
        # No arguments: the text is a stranger's, and formatting it would let it speak of our objects.
        record = logging.LogRecord(logger.name, number, "(box)", 0, _text(frame.get("message"), runner.TEXT_CHARS), None, None)
        record.fumehood_task = self._call.task
        logger.handle(record)

    def _logger_name(self, name: object) -> str:
        """A logger lives for ever, and its name says who speaks: the box gets its own names, and few."""
        own, top = self._function.module, self._function.source.top
        if not isinstance(name, str) or len(name) > 128 or not set(name) <= _NAME_LETTERS:
            return own
        if name != top and not name.startswith(f"{top}."):
            return own
        if name not in self._loggers and len(self._loggers) >= MAX_LOGGERS:
            return own
        self._loggers.add(name)
        return name


def _raised(frame: Mapping[str, Any]) -> Raised:
    kind = frame.get("type")
    parts = kind if isinstance(kind, list) and all(isinstance(part, str) for part in kind) else []
    module, name = parts if len(parts) == 2 else ("", "unnamed")
    trace = frame.get("traceback")
    lines = trace[-runner.TRACE_CHARS :].split("\n") if isinstance(trace, str) else []
    return Raised(
        _text(module, 256), _text(name, 256), _text(frame.get("message"), runner.TEXT_CHARS),
        "\n".join(_text(line, runner.TRACE_CHARS) for line in lines),
    )  # fmt: skip


def _text(value: object, limit: int) -> str:
    """A stranger's text, bounded and printable: escapes and bidi controls would rewrite what is read. Newlines stay."""
    words = value[:limit] if isinstance(value, str) else ""
    return "".join(letter if letter.isprintable() or letter == "\n" else f"\\u{ord(letter):04x}" for letter in words)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 2**53
