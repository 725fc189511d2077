"""Calls one function inside a box. This file's text is given to the image's own python3: the standard library and nothing of ours.

One JSON line comes in on stdin: what to call, and a token. JSON lines go out on a private duplicate of stdout, each
with the token: `log`, `progress`, `said`, and at last one of `result`, `raised`, `unfit`, `unloadable`. The descriptor 1 that the
function sees is stderr, so nothing it prints can pass for a line of ours, and a child that it forks cannot speak for it. The host
believes none of this: whoever runs here may write anything there, so every line is bounded and judged anew on the host.

`plain` and `MAX_DEPTH` are used on the host too: what counts as JSON is said once.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import dataclasses
import enum
import importlib
import importlib.machinery
import inspect
import json
import logging
import math
import os
import sys
import threading
import traceback
import types
import typing
from collections.abc import Callable, Generator, Sequence
from typing import Any

MAX_DEPTH = 60
TEXT_CHARS = 4096
TRACE_CHARS = 16_384
# What a module may import for its annotations and errors where the image has no SDK: names only, nothing behind them.
STAND_INS = {
    "mcp": ("Context", "ToolError"),
    "mcp.server": (),
    "mcp.server.mcpserver": ("Context",),
    "mcp.server.mcpserver.exceptions": ("ToolError",),
    "fastmcp": ("Context",),
    "fastmcp.exceptions": ("ToolError",),
    "fumehood": ("boxed",),
}


class UnfitError(ValueError):
    """A value that JSON cannot carry as it is."""


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it: dataclasses as objects, enums as their values. Raises UnfitError."""
    if depth > MAX_DEPTH:
        raise UnfitError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, enum.Enum):
        return plain(value.value, depth)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitError(f"{value} is no number of JSON")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise UnfitError("a key that is no string")
        return {str(plain(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth + 1) for item in value]
    raise UnfitError(f"a {type(value).__name__}")


def build(hint: Any, value: Any) -> Any:
    """A JSON value as the type that an annotation names; the host has validated it, so only its form is looked at."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Annotated, typing.Required, typing.NotRequired}:
        return build(args[0], value)
    if origin in {typing.Union, types.UnionType}:
        arm = next((arm for arm in args if fits(arm, value)), None)
        return value if arm is None else build(arm, value)
    if origin in {list, set, frozenset} or origin is collections.abc.Sequence:
        items = [build(args[0], item) for item in value]
        return items if origin in {list, collections.abc.Sequence} else origin(items)
    if origin is tuple:
        inner = [args[0]] * len(value) if args[-1:] == (...,) else list(args)
        return tuple(build(one, item) for one, item in zip(inner, value, strict=True))
    if origin in {dict, collections.abc.Mapping}:
        return {key: build(args[1], item) for key, item in value.items()}
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        fields = {name: build(hints[name], item) for name, item in value.items()}
        return hint(**fields)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    return float(value) if hint is float else value


def kind_of(hint: Any) -> str:
    """Which kind of JSON value stands for a type; "any" for what may be several."""
    origin = typing.get_origin(hint) or hint
    if origin in {typing.Annotated, typing.Required, typing.NotRequired}:
        return kind_of(typing.get_args(hint)[0])
    if origin is typing.Literal:
        kinds = {kind_of(type(choice)) for choice in typing.get_args(hint)}
        return kinds.pop() if len(kinds) == 1 else "any"
    if origin is None or origin is type(None):
        return "null"
    if origin is bool:
        return "boolean"
    if origin in {int, float}:
        return "number"
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        kinds = {kind_of(type(member.value)) for member in origin}
        return kinds.pop() if len(kinds) == 1 else "any"
    if origin is str:
        return "string"
    if origin in {list, set, frozenset, tuple, collections.abc.Sequence}:
        return "array"
    if origin in {dict, collections.abc.Mapping} or typing.is_typeddict(origin) or dataclasses.is_dataclass(origin):
        return "object"
    return "any"


def fits(hint: Any, value: Any) -> bool:
    """Whether a JSON value is of the kind that stands for a type."""
    return kind_of(hint) in {"any", kind_of(type(value))}


class Wire:
    """The private way out. Threads of the function may log at the same time; a process that it forks has no voice."""

    def __init__(self, token: str, fd: int) -> None:
        self.token, self.fd, self.pid, self.lock = token, fd, os.getpid(), threading.Lock()

    def send(self, kind: str, **fields: Any) -> None:
        """Write one line, if we are the process that was started."""
        if os.getpid() != self.pid:
            return
        line = json.dumps({"token": self.token, "kind": kind, **fields}, allow_nan=False).encode() + b"\n"
        with self.lock:
            view = memoryview(line)
            while view:
                view = view[os.write(self.fd, view) :]

    def end(self, kind: str, **fields: Any) -> typing.NoReturn:
        """Say the last word and end, whatever threads or exit handlers the function left."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        try:
            self.send(kind, **fields)
        finally:
            os._exit(0)


class Records(logging.Handler):
    """Carries log records out, told as text."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; one that cannot be formatted is the function's own affair."""
        try:
            self.wire.send("log", logger=record.name, level=record.levelno, message=self.format(record)[:TEXT_CHARS])
        except Exception:  # noqa: BLE001 - what logging does with any record that it cannot tell
            self.handleError(record)


class Told:
    """What `await` takes where nothing is to be waited for: a plain function may leave the `await` out."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value] # an empty iterator awaits as one


class Context:
    """Stands for the SDK's context inside the box: progress and log messages, and nothing else."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> Told:
        """Report progress to the client."""
        text = None if message is None else str(message)[:TEXT_CHARS]
        self._wire.send("progress", progress=progress, total=total, message=text)
        return Told()

    def _say(self, level: str, message: object) -> Told:
        self._wire.send("said", level=level, message=str(message)[:TEXT_CHARS])
        return Told()

    def debug(self, message: object, **_: Any) -> Told:
        """Tell the client."""
        return self._say("debug", message)

    def info(self, message: object, **_: Any) -> Told:
        """Tell the client."""
        return self._say("info", message)

    def warning(self, message: object, **_: Any) -> Told:
        """Tell the client."""
        return self._say("warning", message)

    def error(self, message: object, **_: Any) -> Told:
        """Tell the client."""
        return self._say("error", message)


class ToolError(Exception):
    """Stands for the SDK's error of the same name."""


def boxed(function: Callable[..., Any] | None = None, /, **_: Any) -> Any:
    """Inside the box a boxed function is the function."""
    return function if function is not None else lambda inner: inner


class SourceFinder:
    """Finds the function's own package or module in its mount, and nothing else there."""

    def __init__(self, top: str, folder: str) -> None:
        self.top, self.folder = top, folder

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: Any = None) -> Any:
        """The spec of the one top-level name; what is below it is found as ever."""
        return importlib.machinery.PathFinder.find_spec(name, [self.folder]) if name == self.top else None


class StandInFinder:
    """Serves `STAND_INS` where the image has no such package. Anything else of them is missing, and says so."""

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: Any = None) -> Any:
        """The spec of a stand-in; asked only when nothing else knows the name."""
        return importlib.machinery.ModuleSpec(name, typing.cast("Any", self), is_package=True) if name in STAND_INS else None

    def create_module(self, _spec: Any) -> None:
        """An ordinary module."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Give it its names."""
        for name in STAND_INS[module.__name__]:
            found = globals()[name]
            if name == "ToolError":
                found = type(name, (Exception,), {"__module__": module.__name__})
            setattr(module, name, found)


def missing(error: ImportError, image: str) -> str:
    """One line that names what could not be imported."""
    top = (error.name or "").split(".")[0]
    what = f"`{error.name}`" if error.name else str(error)[:200]
    if top in sys.modules and top in {name.split(".")[0] for name in STAND_INS}:
        what = f"{error} (inside a box `{top}` is a stand-in)"
    return f"the image {image} has no {what}; keep boxed functions in a module that imports only what the image has"


def told(error: BaseException) -> dict[str, Any]:
    """An exception as text."""
    try:
        # The text of a KeyError is its key's repr, which a new one would quote again.
        message = error.args[0] if type(error) is KeyError and isinstance(error.args[0], str) else str(error)
    except Exception:  # noqa: BLE001 - a hostile __str__ must not cost the exception
        message = "(its message cannot be told)"
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
        trace = trace.tb_next
    try:
        lines = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # noqa: BLE001 - likewise
        lines = ""
    kind = type(error)
    return {
        "type": [str(kind.__module__)[:256], str(kind.__qualname__)[:256]],
        "message": message[:TEXT_CHARS],
        "traceback": lines[-TRACE_CHARS:],
    }


def load(call: dict[str, Any], wire: Wire) -> Callable[..., Any]:
    """The function, its module imported from the mount."""
    sys.meta_path.insert(0, typing.cast("Any", SourceFinder(call["top"], call["folder"])))
    sys.meta_path.append(typing.cast("Any", StandInFinder()))
    try:
        found = getattr(importlib.import_module(call["module"]), call["function"])
    except ImportError as error:
        wire.end("unloadable", message=missing(error, call["image"]), traceback=told(error)["traceback"])
    except AttributeError as error:
        wire.end("unloadable", message=str(error)[:TEXT_CHARS], traceback=told(error)["traceback"])
    if not inspect.isfunction(found):
        wire.end("unloadable", message=f"`{call['function']}` is no function in there", traceback="")
    return found


def main() -> typing.NoReturn:
    """Call the function once."""
    call = json.loads(sys.stdin.buffer.readline())
    wire = Wire(call["token"], os.dup(1))
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    logging.root.addHandler(Records(wire))
    logging.root.setLevel(call["level"])
    try:
        function = load(call, wire)
        hints = typing.get_type_hints(function, include_extras=True)
        arguments = {name: build(hints.get(name, Any), value) for name, value in call["arguments"].items()}
        arguments.update(dict.fromkeys(call["context"], Context(wire)))
        result = function(**arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it is the host that says how this ends
        wire.end("raised", **told(error))
    try:
        text = json.dumps(plain(result), allow_nan=False)
    except (ValueError, RecursionError) as error:
        wire.end("unfit", message=str(error)[:TEXT_CHARS])
    if len(text) > call["result_bytes"]:
        wire.end("oversize", bytes=len(text))
    wire.end("result", value=json.loads(text))


if __name__ == "__main__":
    main()
