"""A call's result against the tool's `outputSchema`: one that does not fit is a failure of the call, not something for its client.

As the protocol has it (2025-06-18 and later, server/tools): a server that names an output schema MUST give structured results that
conform to it. An error is exempt: it says in words what went wrong. So is a result that is kept because it is too long: its client is
told that it is a link, and no success. What is passed on is what was judged; nothing is added or mended.
"""

from __future__ import annotations

from typing import Any

from fumehood.execution import Streams
from fumehood.faults import ExchangeFailed
from fumehood.gateway import exchange
from fumehood.gateway.catalogue import Tool
from fumehood.gateway.exchange import Greeting, Said
from fumehood.reasons import Reason

# A result may be larger than any arguments, and its server has been paid for with a box.
JUDGE_CPU_S = 0.5
FIRST_STRUCTURED = "2025-06-18"


async def request(streams: Streams, *, greeting: Greeting, tool: Tool | None, **asked: Any) -> Said:
    """`exchange.request` of a tool, with its result judged. Raises `ExchangeFailed`."""
    said = await exchange.request(streams, greeting=greeting, **asked)
    if tool is not None and greeting.era.version >= FIRST_STRUCTURED and (unfit := misfit(tool, said)) is not None:
        raise ExchangeFailed(Reason.RESULT_UNFIT, unfit)
    return said


def misfit(tool: Tool, said: Said) -> str | None:
    """Why a result is none that the tool may give, with the place, or None."""
    if tool.output is None or said.long is not None or said.result.get("isError") is True:
        return None
    if "structuredContent" not in said.result:
        return "it has no structuredContent, which the tool's output schema is for"
    fault = tool.output.fault(said.result["structuredContent"], JUDGE_CPU_S)
    return None if fault is None else f"structuredContent {fault.detail}"
