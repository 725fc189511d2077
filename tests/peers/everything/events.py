"""Events of response streams, kept in memory, so that a client of 2025-11-25 can resume one that was closed."""

from mcp.server.streamable_http import EventMessage, EventStore


class Events(EventStore):
    """Every event of every stream; ids are places in one list."""

    def __init__(self) -> None:
        self._kept: list[tuple] = []

    async def store_event(self, stream_id, message) -> str:
        self._kept.append((stream_id, message))
        return str(len(self._kept))

    async def replay_events_after(self, last_event_id, send_callback):
        after = int(last_event_id)
        stream = self._kept[after - 1][0]
        for number, (found, message) in enumerate(self._kept[after:], after + 1):
            if found == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream
