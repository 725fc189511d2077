"""Run every approved MCP tool call in its own container, used once. The public names; each is imported when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fumehood.app import Runtime, open_runtime
    from fumehood.call import run_call
    from fumehood.execution import Command, Exchange
    from fumehood.faults import FumehoodError
    from fumehood.model import Outcome, Profile, Result, ToolCall
    from fumehood.reasons import Reason

__version__ = "0.1.0"
__all__ = [
    "Command", "Exchange", "FumehoodError", "Outcome", "Profile", "Reason", "Result", "Runtime", "ToolCall",
    "open_runtime", "run_call",
]  # fmt: skip
_HOMES = {
    "app": ("Runtime", "open_runtime"),
    "call": ("run_call",),
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
