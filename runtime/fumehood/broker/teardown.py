"""What was taken away of one box, in which order, how long each took, and whether a look afterwards found it gone.

`gone` is never what a removal says of itself: the pidfd has ended, the engine no longer knows the container, no tree has the cgroup,
nothing is mounted there, the folder does not exist. What was never made is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Teardown:
    """Made for one removal. Names are the record's: init, runtime, container, cgroup, processes, root, workspace, folder, id_range."""

    def __init__(self) -> None:
        """Begin the clock."""
        self._began_s = self._last_s = time.monotonic()
        self._taken: dict[str, dict[str, Any]] = {}

    @property
    def is_clean(self) -> bool:
        """Whether all of it is gone so far."""
        return all(each["gone"] for each in self._taken.values())

    def take(self, what: str, is_gone: Callable[[], bool]) -> bool:
        """Take something away, by a function that does and then looks. Gives what it gives."""
        gone = is_gone()
        now_s = time.monotonic()
        self._taken[what] = {"gone": gone, "ms": round((now_s - self._last_s) * 1000, 2)}
        self._last_s = now_s
        return gone

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {"taken": self._taken, "clean": self.is_clean, "removed_in_ms": round((time.monotonic() - self._began_s) * 1000, 2)}
