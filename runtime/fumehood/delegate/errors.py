"""What a handed-over function's caller sees when there is no result.

An exception of the function's comes back as the same type only when that type is known here beforehand: a builtin of
`BUILTIN`, one that the decorator was given, or the SDK's own `ToolError`. The box names the type in text; a name is looked
up among these and nowhere else, so it can neither import anything nor pick a type that means something to whoever catches
it. Everything else is `RemoteError`.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fumehood.faults import FumehoodError
from fumehood.model import Outcome
from fumehood.reasons import Reason

# Exceptions that mean nothing to an event loop, an iterator or an interpreter, and that take one string.
BUILTIN = (
    "ArithmeticError", "AssertionError", "AttributeError", "BufferError", "ConnectionError", "EOFError", "Exception",
    "FileExistsError", "FileNotFoundError", "FloatingPointError", "ImportError", "IndexError", "IsADirectoryError", "KeyError",
    "LookupError", "MemoryError", "ModuleNotFoundError", "NameError", "NotADirectoryError", "NotImplementedError", "OSError",
    "OverflowError", "PermissionError", "RecursionError", "RuntimeError", "TimeoutError", "TypeError", "ValueError",
    "ZeroDivisionError",
)  # fmt: skip
SDK_ERRORS = (("mcp.server.mcpserver.exceptions", "ToolError"), ("fastmcp.exceptions", "ToolError"))


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception as the box told it, its text made printable: what an `Outcome` with `function_raised` has as its value."""

    module: str
    name: str
    message: str
    traceback: str


class CallFailed(FumehoodError):
    """The call was refused, killed, or failed without an exception of the function's. `outcome` says how."""

    def __init__(self, outcome: Outcome) -> None:
        """Carry the outcome of the call."""
        super().__init__(outcome.reason or Reason.INTERNAL, outcome.detail, remedy=outcome.remedy)
        self.outcome = outcome


class RemoteError(Exception):
    """The function raised an exception whose type is not known here. `raised` has its name, message and traceback."""

    def __init__(self, raised: Raised) -> None:
        """Carry what the box told."""
        super().__init__(f"{raised.module}.{raised.name}: {raised.message}")
        self.raised = raised


def exception_of(raised: Raised, known: Sequence[type[Exception]]) -> Exception:
    """The exception to raise, with the box's traceback as a note."""
    error: Exception = RemoteError(raised)
    kind = _kind_of(raised, known)
    if kind is not None:
        with contextlib.suppress(Exception):  # a type whose maker wants more than a message: RemoteError says it all
            error = kind(raised.message)
    error.add_note(f"In the box:\n{raised.traceback}")
    return error


def _kind_of(raised: Raised, known: Sequence[type[Exception]]) -> type[Exception] | None:
    named = (raised.module, raised.name)
    for kind in known:
        if named == (kind.__module__, kind.__qualname__):
            return kind
    if raised.module == "builtins" and raised.name in BUILTIN:
        found: type[Exception] = getattr(builtins, raised.name)
        return found
    if named in SDK_ERRORS and raised.module in sys.modules:
        theirs = getattr(sys.modules[raised.module], raised.name, None)
        return theirs if isinstance(theirs, type) and issubclass(theirs, Exception) else None
    return None
