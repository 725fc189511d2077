"""A server's streams as a conversation has them: heard, and with a box that can stand still for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fumehood.execution.pipes import Heard
from fumehood.execution.screening import cleaned
from fumehood.faults import ExchangeFailed
from fumehood.memory import Memory
from fumehood.reasons import Reason
from fumehood.residence import ServerStreams
from fumehood.screening.judging import Screen


class Heeding:
    """A session's streams as one visit hears them."""

    def __init__(self, streams: ServerStreams, heard: Heard) -> None:
        self._streams = streams
        self._heard = heard
        self.send = streams.send

    async def receive(self) -> bytes:
        """The next line, noted."""
        line = await self._streams.receive()
        self._heard.now()
        return line

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        """The next line, however long, noted."""
        line = await self._streams.receive_long(most_bytes)
        self._heard.now()
        return line


class Parkable:
    """A server's streams, and its box to park."""

    def __init__(
        self,
        streams: ServerStreams,
        park: Callable[[float], Awaitable[None]],
        resume: Callable[[], Awaitable[None]],
        heard: Heard,
        screen: Screen,
    ) -> None:
        self.send = streams.send
        self.receive = streams.receive
        self.passing = screen.passing
        self._streams = streams
        self._screen = screen
        self._park = park
        self._resume = resume
        self._heard = heard

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        """The next line; one that is to be kept as it is comes without secrets."""
        line = await self._streams.receive_long(most_bytes)
        return await cleaned(line, self._screen) if isinstance(line, Memory) else line

    @asynccontextmanager
    async def parked(self, seconds: float) -> AsyncIterator[None]:
        """Let the box stand still for the body."""
        await self._park(seconds)
        self._heard.parked = True
        try:
            yield
        except ExchangeFailed as error:
            if error.reason is not Reason.PARKED:  # then its box has been ended
                await self._resume()  # without an answer: what that means to the server is its own affair
            raise
        else:
            await self._resume()
        finally:
            self._heard.parked = False
            self._heard.now()
