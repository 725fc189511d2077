"""A tool's work for FastMCP, as `wordtools` for the MCP SDK. Imports only what the image `python` has.

A plain function may leave out the `await` of the context's methods: in a box they wait for nothing.
"""

from __future__ import annotations

import difflib
from typing import Literal

from fastmcp import Context
from fastmcp.exceptions import ToolError

from fumehood import boxed


@boxed(failure=ToolError)
def compare(old: list[str], new: list[str], style: Literal["short", "full"] = "short", ctx: Context | None = None) -> list[str]:
    """The lines in which two texts differ."""
    if ctx is not None:
        ctx.info(f"comparing {len(old)} lines with {len(new)}")
        ctx.report_progress(0, len(old) + len(new))
    if old == new:
        raise ToolError("they are equal")
    lines = list(difflib.ndiff(old, new))
    return lines if style == "full" else [line for line in lines if line[:1] in "+-"]
