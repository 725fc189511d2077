"""What the ledger's loop owes the evidence while nobody asks: checkpoints when they are due, and witnesses that hear of them.

Nothing here raises to the loop: a key that cannot be read or a full disk costs a checkpoint, which is told in the log, and no call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fumehood.faults import FumehoodError, LedgerGone
from fumehood.ledger.attesting import Chain
from fumehood.ledger.outside import Outside
from fumehood.store.database import Database

_log = logging.getLogger("fumehood.ledger")


class Standing:
    """A runtime's chain, and how far others know of it. `database` opens it when it is first wanted, and raises LedgerGone."""

    def __init__(self, chain: Chain, outside: Outside, database: Callable[[], Database]) -> None:
        """Owe nothing yet."""
        self._chain = chain
        self._outside = outside
        self._database = database

    @property
    def due_in_s(self) -> float | None:
        """How long what was written may stay unsigned, or a witness untold; None when there is nothing to do."""
        return min((due_s for due_s in (self._chain.due_in_s, self._outside.due_in_s) if due_s is not None), default=None)

    def go_on(self, *, quiet: bool) -> None:
        """Sign the chain's head if that is due, in a moment when nobody asks for anything, or when it cannot wait for one."""
        try:
            if self._chain.due_in_s == 0 and (quiet or self._chain.is_overdue):
                self._outside.tell(self._chain.sign(self._database()), self._database())
            if self._outside.due_in_s == 0:
                self._outside.go_on(self._database())
        except FumehoodError as error:
            _log.error("ledger: no checkpoint could be made, or told: %s", error)

    def hear(self) -> bool:
        """Take what a witness answered. False when there is nobody to hear any more."""
        try:
            self._outside.receive(self._database())
        except FumehoodError as error:
            _log.error("ledger: what became of a checkpoint is not known: %s", error)
        return self._outside.sock is not None

    def refusal(self) -> LedgerGone | None:
        """Why no call may begin as far as witnesses are concerned."""
        try:
            return self._outside.refusal(self._database())
        except LedgerGone as error:
            return error

    def end(self) -> None:
        """Close the chain, and have its end witnessed: everybody is gone."""
        try:
            if self._chain.has_begun:
                self._outside.tell(self._chain.end(self._database()), self._database())
                self._outside.end(self._database())
        except FumehoodError as error:
            _log.error("ledger: the chain could not be closed: %s", error)
