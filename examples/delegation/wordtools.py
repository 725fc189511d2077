"""The tools' work: plain functions, each call of which runs in a box. Imports only what the image `python` has.

In a box `fumehood` and the SDK are stand-ins, of which there are `boxed`, `Context` and `ToolError`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from fumehood import boxed

log = logging.getLogger(__name__)


@dataclass
class Word:
    """A word and how often it was seen."""

    text: str
    count: int


@boxed(failure=ToolError)
def count_words(text: str, at_most: int = 3) -> list[Word]:
    """The most frequent words of a text, most frequent first."""
    log.info("counting in %d characters", len(text))
    found = Counter(re.findall(r"\w+", text.lower()))
    return [Word(word, count) for word, count in found.most_common(at_most)]


@boxed(failure=ToolError)
async def match_lines(pattern: str, lines: list[str], ctx: Context) -> list[str]:
    """The lines in which a regular expression matches. One that never ends costs a box its `limits.wall`, not the server."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ToolError(f"no regular expression: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if compiled.search(line):
            found.append(line)
        await ctx.report_progress(number, len(lines))
    return found
