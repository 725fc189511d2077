"""The calls that are under way in one runtime, so that all of them can be ended at once, as an operator's `stop --all` does.

A call is ended like one that is cancelled: gate, leases and box are left in that order and its record is closed, but as ended by an
operator. What has no box ends here alone: a call to a remote server, one that waits for another, one between two boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason


class Halting:
    """The calls under way."""

    def __init__(self) -> None:
        """Begin with none."""
        self._scopes: set[anyio.CancelScope] = set()
        self._why = ""
        self.stops = 0

    @contextmanager
    def under_way(self, since: int) -> Iterator[None]:
        """Be one of them for the body, begun when there had been so many `stops`. Raises FumehoodError(OPERATOR) when it was ended."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            if self.stops != since:
                scope.cancel()  # between its record's opening and now
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise FumehoodError(Reason.OPERATOR, self._why)

    def halt(self, why: str) -> None:
        """End all that are under way now."""
        self._why = why
        self.stops += 1
        for scope in self._scopes:
            scope.cancel()
