"""What the box stage needs of a record's log."""

from __future__ import annotations

from typing import Any, Protocol

from fumehood.lifecycle import Event


class Log(Protocol):
    """The part of a record's log that a box writes to."""

    async def event(self, event: Event, **facts: Any) -> None:
        """Note one step."""
        ...
