"""How much processor time the judging of one sender's calls may take. Pure but for the clock that it is given.

Attack: one judgement is limited to a tenth of a second, and stops everybody else for as long. A sender that has found a slow pattern
in some tool's schema could send one such call after the other. So slow judgements are counted, by sender: `BURST_S` at once and
`RATE` of the processor on average; whoever has spent that is refused before anything is judged. Quick ones are free.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fumehood.model import Sender

BURST_S = 1.0
RATE = 0.05
SLOW_S = 0.01
MOST_SENDERS = 1024


class Patience:
    """What each sender owes."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Nobody owes anything."""
        self._now_s = now_s
        self._debts: dict[Sender, tuple[float, float]] = {}

    def is_spent(self, sender: Sender) -> bool:
        """Whether this sender has to wait."""
        return self._debt(sender) >= BURST_S

    def charge(self, sender: Sender, cost_s: float) -> None:
        """Count a judgement that has taken so much processor time."""
        if cost_s < SLOW_S:
            return
        if len(self._debts) >= MOST_SENDERS:
            self._debts = {known: debt for known, debt in self._debts.items() if self._debt(known) > 0}
        self._debts[sender] = (self._debt(sender) + cost_s, self._now_s())

    def _debt(self, sender: Sender) -> float:
        owed_s, at_s = self._debts.get(sender, (0.0, 0.0))
        return max(0.0, owed_s - RATE * (self._now_s() - at_s))
