"""Ending everything of this runtime at once, on an operator's word, whether the worker helps or not (rule 25).

In order: the worker is told, so that it knows why its calls end; a moment later every box's processes are killed; the worker has
`GRACE_S` to leave its calls as they should be left, which revokes their leases, shuts their gates and closes their records; a worker
that then still has a box or an open record is killed (it may be stopped, or taken over), its boxes are removed here and its records
closed as lost. Nothing here believes the worker: what boxes there are the broker knows, and what records are open the ledger says.

Nothing new can begin meanwhile: the file was written before we were asked, and is looked at before each box, and once more before
each start of a tool.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fumehood import stopping
from fumehood.broker import sweep
from fumehood.broker.box import Box
from fumehood.broker.host import Host
from fumehood.faults import Refused
from fumehood.reasons import Reason

HEARING_S = 0.2
GRACE_S = 1.5
REMOVING_S = 1.0
_STEP_S = 0.02


class Bell:
    """Tells the worker of each stop. A stop that comes while nobody waits is told to the next who does."""

    def __init__(self) -> None:
        """Be silent."""
        self._rung = 0
        self._heard = 0
        self._closed = False
        self._changed = threading.Condition()

    def ring(self) -> None:
        """Tell of a stop."""
        with self._changed:
            self._rung += 1
            self._changed.notify_all()

    def wait_heard(self, seconds: float) -> None:
        """Wait until whoever is told has asked for the next, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._heard >= self._rung or self._closed, seconds)

    def wait(self, heard: int) -> int:
        """How often it has rung, when that is more than was heard, or when nothing is to come any more."""
        with self._changed:
            self._heard = max(self._heard, heard)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._rung > heard or self._closed)
            return self._rung

    def close(self) -> None:
        """Let everybody go who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Stopping:
    """What ends the boxes of one broker."""

    def __init__(
        self, host: Host, ledger: socket.socket, worker: int, boxes: Callable[[], Sequence[Box]], remove_all: Callable[[], None]
    ) -> None:
        """`worker` is a pidfd; `boxes` are those that there are now."""
        self._host = host
        self._ledger = ledger
        self._worker = worker
        self._boxes = boxes
        self._remove_all = remove_all
        self._under_way = threading.Lock()
        self._removing: threading.Thread | None = None
        self.bell = Bell()
        found = stopping.read(host.settings.state)
        if found is not None and found.at_s >= (host.settings.state.run / host.settings.runtime_id / "lock").stat().st_mtime:
            self.bell.ring()  # since we were started: calls to remote servers need no broker, and may have begun before

    def check(self) -> None:
        """Raises Refused while everything is stopped."""
        if (deny := stopping.denied(self._host.settings.state)) is not None:
            raise Refused(deny)

    def wait(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Answer the worker at the next stop that it has not heard of."""
        heard = args.get("heard")
        rung = self.bell.wait(heard if isinstance(heard, int) else 0)
        found = stopping.read(self._host.settings.state)
        return {"heard": rung, "why": "" if found is None else found.line()}

    def stop(self) -> dict[str, Any]:
        """End everything; what there was, and what the worker did not end itself."""
        with self._under_way:
            killed, calls = self._boxes(), self._open_calls()
            self.bell.ring()
            self.bell.wait_heard(HEARING_S)
            for box in killed:
                box.kill(Reason.OPERATOR)
            until_s = time.monotonic() + GRACE_S
            while (left := self._open_calls()) or self._boxes():
                if time.monotonic() >= until_s:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(self._worker, signal.SIGKILL)
                    self._removing = threading.Thread(target=self._remove_all)
                    self._removing.start()
                    for task in left:
                        sweep.close_lost(self._ledger, task, {"stopped": True})
                    self._removing.join(REMOVING_S)
                    return {**_told(killed, calls), "lost": len(left), "worker_killed": True, "removing": self._removing.is_alive()}
                time.sleep(_STEP_S)
            return _told(killed, calls)

    def finish(self) -> None:
        """Let nobody wait for a stop any more, and return when none is under way."""
        self.bell.close()
        with self._under_way:
            if self._removing is not None:
                self._removing.join()

    def _open_calls(self) -> list[str]:
        return [row["task"] for row in sweep.open_tasks(self._ledger, self._host.settings.runtime_id) or []]


def _told(killed: Sequence[Box], calls: Sequence[str]) -> dict[str, Any]:
    return {"boxes": len(killed), "calls": len(calls), "lost": 0, "worker_killed": False, "removing": False}
