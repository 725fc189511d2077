"""Waiting for a box: the tasks of one runtime behind `turns.Turns`, with a deadline and a bound on how many wait.

A call that waits is an entry in a table and a task that sleeps: it has no box, no lease and no descriptor of its own. It is
refused as `busy`, with how long to stay away, when too many wait already or its turn has not come in time. Nobody is asked what the
host has before two calls want a box at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.turns import Capacity, Need, Turns

MAX_BOXES = 4095
WAIT_S = 30.0
MOST = 1024
_HELD_S = 1.0  # how long a box lives, before any has ended
_LONGEST_HINT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A box that may be made. `waited_s` is None for one that nobody had to wait for."""

    waited_s: float | None


class Places:
    """The places of one runtime. Without `capacity` only the number of boxes bounds them."""

    def __init__(
        self, boxes: int = MAX_BOXES, *, wait_s: float = WAIT_S, most: int = MOST,
        capacity: Callable[[], Awaitable[Capacity]] | None = None,
    ) -> None:  # fmt: skip
        """Have so many, all of them free."""
        self._turns = Turns(Capacity(boxes=boxes))
        self._wait_s = wait_s
        self._most = most
        self._capacity = capacity
        self._asking = anyio.Lock()
        self._bells: dict[int, anyio.Event] = {}
        self._held_s = _HELD_S

    @asynccontextmanager
    async def hold(self, sender: Hashable, need: Need) -> AsyncIterator[Place]:
        """Have a place for the body. Raises Refused(BUSY)."""
        if self._capacity is not None and (self._turns.live or self._turns.waiting):
            await self._know()
        if self._turns.waiting >= self._most:
            raise Refused(self._busy("queue.most", f"{self._turns.waiting} calls wait for a box already"))
        number = self._turns.ask(sender, need)
        began_s = time.monotonic()
        try:
            self._ring()
            waited_s = None
            if number not in self._turns.live:
                await self._wait(number)
                waited_s = time.monotonic() - began_s
            began_s = time.monotonic()
            yield Place(waited_s=waited_s)
        finally:
            if number in self._turns.live:
                self._held_s += (time.monotonic() - began_s - self._held_s) / 8
            self._turns.leave(number)
            self._ring()

    async def _wait(self, number: int) -> None:
        self._bells[number] = bell = anyio.Event()
        try:
            with anyio.move_on_after(self._wait_s):
                await bell.wait()
        finally:
            del self._bells[number]
        if number not in self._turns.live:
            raise Refused(self._busy("queue.wait", f"no box was free for {self._wait_s:g} s"))

    def _ring(self) -> None:
        for number in self._turns.grant():
            if (bell := self._bells.get(number)) is not None:
                bell.set()

    async def _know(self) -> None:
        async with self._asking:
            if (ask := self._capacity) is not None:
                known = await ask()
                self._turns.capacity = replace(known, boxes=min(known.boxes, self._turns.capacity.boxes))
                self._capacity = None

    def _busy(self, rule: str, detail: str) -> Deny:
        # When those before have had a box each, if boxes live on as long as they did lately.
        turns = (self._turns.waiting + 1) / max(1, len(self._turns.live))
        hint_s = min(_LONGEST_HINT_S, max(1, math.ceil(turns * self._held_s)))
        remedy = f"Try again in {hint_s} s, or raise `boxes` or `queue` in fumehood.yaml."
        return Deny(reason=Reason.BUSY, rule=rule, detail=detail, remedy=remedy, retry_after_s=hint_s)
