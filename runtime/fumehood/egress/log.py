"""A task's egress log: every question, connection and refusal, as long as there is room; after that, only how many.

Invariants: one task writes at most 1 MiB of entries (rule 18), so a box that asks a million questions fills neither the ledger nor
this process; entries go to the ledger in order, in batches of bounded size, soon after they are made, and the last of them with the
counters when the gate is shut. A log that can no longer be written says so, and the gate lets nothing more through.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fumehood.faults import FumehoodError
from fumehood.ports import Clock, EgressEntry, Ledger

MOST_BYTES = 2**20
BATCH_BYTES = 96 * 2**10  # a message to the ledger holds 128 KiB
FLUSH_S = 2.0
_MOST_CHARS = 300
_FRAME_BYTES = 64  # what an entry takes beside its facts


class EgressLog:
    """One task's. Used from one event loop."""

    def __init__(self, task: str, ledger: Ledger, clock: Clock) -> None:
        """Begin empty."""
        self.task = task
        self.counters: Counter[str] = Counter()
        self.is_broken = False
        self._ledger = ledger
        self._clock = clock
        self._pending: list[tuple[EgressEntry, int]] = []
        self._written_bytes = 0
        self._flushed: Mapping[str, int] = {}
        self._writing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None

    def add(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Note one thing. `facts` are short JSON values."""
        self.counters[kind] += 1
        short = {name: _short(value) for name, value in facts.items()}
        size = _FRAME_BYTES + len(json.dumps(short))
        if self._written_bytes + size > MOST_BYTES:
            self.counters["not_logged"] += 1
            return
        self._written_bytes += size
        self._pending.append((EgressEntry(at_s=self._clock.wall_s(), kind=kind, facts=short), size))

    def keep_flushing(self) -> None:
        """Write what there is every two seconds, until `finish`."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(FLUSH_S)
                await self.flush()

        self._flusher = asyncio.get_running_loop().create_task(keep())

    async def finish(self) -> None:
        """Write all that is left, and no more after it."""
        async with self._writing:  # so it sleeps, or waits for us: what is being written is not cut off, to be written again
            if self._flusher is not None:
                self._flusher.cancel()
        await self.flush()

    async def flush(self) -> None:
        """Write what there is. A ledger that does not take it breaks the log."""
        async with self._writing:
            while (self._pending or dict(self.counters) != self._flushed) and not self.is_broken:
                taken, size = 0, 0
                while taken < len(self._pending) and size + self._pending[taken][1] <= BATCH_BYTES:
                    size += self._pending[taken][1]
                    taken += 1
                counters = dict(self.counters)
                try:
                    await self._ledger.egress(self.task, [entry for entry, _ in self._pending[:taken]], counters)
                except FumehoodError:
                    self.is_broken = True
                del self._pending[:taken]
                self._flushed = counters


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_MOST_CHARS]
    if isinstance(value, Mapping):
        return {str(name)[:_MOST_CHARS]: _short(each) for name, each in list(value.items())[:8]}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value[:8]]
    return value
