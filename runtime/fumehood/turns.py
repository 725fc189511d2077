"""Who of those that wait for a box gets the next one. Pure: tables and random histories in the tests, no clock and no tasks.

* Never more boxes at once than the host, or a profile for its own, is to bear. A call that is alone goes, whatever it needs.
* Round robin over senders, first come first served within one. A sender with a thousand calls is one sender.
* Whose turn it is waits for the host and nobody overtakes, so a large box is not starved by small ones. Who waits only for the bound
  of its own profile is passed over: others' calls are none of that profile's business.
* Leaving frees the place, whether it was held or waited for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one box may take at most, by its limits. `profile` has a bound of its own where `most` is not None."""

    memory_bytes: int = 0
    cpu: float = 0.0
    pids: int = 0
    profile: str = ""
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What all live boxes together may take; None where nobody knows."""

    boxes: int
    memory_bytes: int | None = None
    cpu: float | None = None
    pids: int | None = None

    def bears(self, taken: Need, more: Need, boxes: int) -> bool:
        """Whether one more box fits beside those that are live."""
        return (
            boxes < self.boxes
            and _fits(taken.memory_bytes + more.memory_bytes, self.memory_bytes)
            and _fits(taken.cpu + more.cpu, self.cpu)
            and _fits(taken.pids + more.pids, self.pids)
        )


@dataclass(slots=True)
class Turns:
    """Those that wait and those that have a box, by number."""

    capacity: Capacity
    waiting: int = 0
    live: dict[int, Need] = field(default_factory=dict)
    _queues: OrderedDict[Hashable, OrderedDict[int, Need]] = field(default_factory=OrderedDict)
    _of: dict[int, Hashable] = field(default_factory=dict)
    _numbers: int = 0

    def ask(self, sender: Hashable, need: Need) -> int:
        """Wait for a box, behind what this sender waits for already; the number to be known by."""
        self._numbers += 1
        self._queues.setdefault(sender, OrderedDict())[self._numbers] = need
        self._of[self._numbers] = sender
        self.waiting += 1
        return self._numbers

    def leave(self, number: int) -> None:
        """Give the place up. Idempotent."""
        self.live.pop(number, None)
        if number in self._of:
            self._take(number)

    def grant(self) -> Iterator[int]:
        """Those whose turn it is now, each of which has a box from then on."""
        while (number := self._next()) is not None:
            sender = self._of[number]
            self.live[number] = self._take(number)
            if sender in self._queues:
                self._queues.move_to_end(sender)
            yield number

    def _next(self) -> int | None:
        for queue in self._queues.values():
            for number, need in queue.items():
                if need.most is not None and sum(each.profile == need.profile for each in self.live.values()) >= need.most:
                    continue
                fits = not self.live or self.capacity.bears(self._taken(), need, len(self.live))
                return number if fits else None
        return None

    def _take(self, number: int) -> Need:
        sender = self._of.pop(number)
        queue = self._queues[sender]
        need = queue.pop(number)
        if not queue:
            del self._queues[sender]
        self.waiting -= 1
        return need

    def _taken(self) -> Need:
        return Need(
            memory_bytes=sum(each.memory_bytes for each in self.live.values()),
            cpu=sum(each.cpu for each in self.live.values()),
            pids=sum(each.pids for each in self.live.values()),
        )


def _fits(wanted: float, there: float | None) -> bool:
    # Sums of fractions of a CPU: 0.1 ten times over is 1.
    return there is None or wanted <= there + 1e-9
