"""The servers of one upstream that stand by: started ahead, frozen, each for one call (rule 27).

A server that stands by was started under the profile of the calls it waits for, in a box that was read back and fence-tested before
its first instruction; it holds nothing of any call, sender or credential, and its gate is shut. Starting one is a task of its own, and
its record has the box and its end; the call that gets the box has its own record, decision, leases and open gate.

Invariants: no box serves two calls; one that was made from another image, or for a client that declares something else, is never
taken; how many there are is bounded by the profile; without calls there are none after a while; a server that cannot stand by is not
tried for ever. Who finds none ready starts a box as if there were no pool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import anyio.abc

from fumehood.execution import Hosting, Streams
from fumehood.model import Kind, Outcome, Profile, Result, Sender, ToolCall
from fumehood.ports import Ports
from fumehood.residence import Standby

FRONT_DOOR = "pool"
MOST_FAILURES = 3
ENDING_S = 5.0
_log = logging.getLogger("fumehood")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a server that stands by is started as. `key` stands for whatever of its client's is told to it at its start."""

    key: str
    argv: tuple[str, ...]
    greet: Callable[[Streams], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Place:
    key: str
    standby: Standby


class Pool:
    """Those of one upstream."""

    def __init__(
        self, name: str, profile: Profile, *, tasks: anyio.abc.TaskGroup, run: Callable[[ToolCall, Hosting], Awaitable[Outcome]],
        new_task: Callable[[], str], ports: Ports,
    ) -> None:  # fmt: skip
        """Start them in `tasks`, each by `run`, which is `run_call`; none before the first `fill`."""
        self._name = name
        self._profile = profile
        self._tasks = tasks
        self._run = run
        self._new_task = new_task
        self._ports = ports
        self._places: list[_Place] = []
        self._hosts: set[Standby] = set()
        self._retired = False
        self._filling = False
        self._watching = False
        self._failures = 0
        self._used_s = 0.0

    def take(self, key: str) -> Standby | None:
        """One that is ready, for one call; whoever takes it ends it. None when there is none."""
        self._used_s = time.monotonic()
        for place in [place for place in self._places if place.key == key and place.standby.is_ready]:
            self._places.remove(place)
            image = self._ports.images.resolve(self._profile.image)
            if image is not None and image.digest == place.standby.frame_image:
                place.standby.take()
                return place.standby
            place.standby.end()  # the image was built anew meanwhile
        return None

    def fill(self, order: Order) -> None:
        """Have as many as the profile says stand by, as this client's server. Returns at once."""
        if self._filling or self._retired or self._failures >= MOST_FAILURES or not self._profile.pool.started:
            return
        self._used_s = time.monotonic()
        self._filling = True
        self._tasks.start_soon(self._fill, order)
        if not self._watching:
            self._watching = True
            self._tasks.start_soon(self._watch)

    def drain(self) -> None:
        """End those that wait: what they were started as is no more what calls want."""
        for place in self._places:
            place.standby.end()
        self._places.clear()

    def retire(self) -> None:
        """Drain it for good."""
        self._retired = True
        self.drain()

    async def close(self) -> None:
        """Retire it, and return when its boxes are removed in order, or not in time."""
        self.retire()
        with anyio.move_on_after(ENDING_S):
            while self._hosts:
                await next(iter(self._hosts)).ended.wait()

    async def _fill(self, order: Order) -> None:
        most = self._profile.pool.started
        try:
            while not self._retired:
                others = [place for place in self._places if place.key != order.key]
                if len(self._places) >= most:
                    if not others:
                        return
                    self._places.remove(others[0])
                    others[0].standby.end()
                # One after the other: each takes a core while it starts, and calls need it too.
                if not await self._start(order):
                    return
        finally:
            self._filling = False

    async def _start(self, order: Order) -> bool:
        """Start one and wait until it stands by. False when it does not."""
        sender = Sender(uid=self._ports.owner_uid, name="fumehood")
        call = ToolCall(
            task=self._new_task(), tool=None, kind=Kind.STANDBY, arguments={}, sender=sender, profile=self._profile,
            front_door=FRONT_DOOR,
        )  # fmt: skip
        place = _Place(order.key, Standby(call.task))
        self._places.append(place)
        self._hosts.add(place.standby)
        self._ports.residences.add(place.standby)
        self._tasks.start_soon(self._keep, place, call, Hosting(order.argv, order.greet, place.standby))
        await place.standby.opened()
        return not place.standby.is_over

    async def _keep(self, place: _Place, call: ToolCall, work: Hosting) -> None:
        try:
            outcome = await self._run(call, work)
        finally:
            place.standby.end()
            place.standby.ended.set()
            self._hosts.discard(place.standby)
            self._ports.residences.forget(place.standby.task)
            if place in self._places:
                self._places.remove(place)
        if place.standby.stood_by:
            self._failures = 0
        if place.standby.stood_by or outcome.result is Result.REFUSED:
            return  # what could not begin (no box is free, everything is stopped) is not the server's doing
        self._failures += 1
        end = "; none is started any more" if self._failures >= MOST_FAILURES else ""
        told = outcome.detail or (outcome.reason.meaning if outcome.reason is not None else "")
        _log.warning("task %s: the server %s cannot stand by: %s%s", call.task, self._name, told, end)

    async def _watch(self) -> None:
        """End those that wait once nobody has called for `pool.idle`."""
        idle_s = self._profile.pool.idle_s
        try:
            while self._places or self._filling:
                left_s = self._used_s + idle_s - time.monotonic()
                if left_s <= 0:
                    self.drain()
                    return
                await anyio.sleep(left_s)
        finally:
            self._watching = False
