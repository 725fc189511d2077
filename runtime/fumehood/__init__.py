"""Run every approved MCP tool call in its own container, used once. The public names; each is imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fumehood.app import open_runtime
    from fumehood.call import run_call
    from fumehood.delegate.boxed import boxed
    from fumehood.delegate.errors import CallFailed, Raised, RemoteError
    from fumehood.delegate.function import Function
    from fumehood.delegate.runtime import Runtime
    from fumehood.execution import Command, Exchange
    from fumehood.faults import FumehoodError
    from fumehood.model import Outcome, Profile, Result, ToolCall
    from fumehood.reasons import Reason

__version__ = "0.1.0"
__all__ = [
    "CallFailed",
    "Command",
    "Exchange",
    "FumehoodError",
    "Function",
    "Outcome",
    "Profile",
    "Raised",
    "Reason",
    "RemoteError",
    "Result",
    "Runtime",
    "ToolCall",
    "boxed",
    "open_runtime",
    "run_call",
]  # fmt: skip
_HOMES = {
    "app": ("open_runtime",),
    "call": ("run_call",),
    "delegate.boxed": ("boxed",),
    "delegate.errors": ("CallFailed", "Raised", "RemoteError"),
    "delegate.function": ("Function",),
    "delegate.runtime": ("Runtime",),
    "execution": ("Command", "Exchange"),
    "faults": ("FumehoodError",),
    "model": ("Outcome", "Profile", "Result", "ToolCall"),
    "reasons": ("Reason",),
}


def __getattr__(name: str) -> Any:
    """Import a public name's module only now: the privileged processes import this package too."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"fumehood.{home}"), name)
    raise AttributeError(name)
