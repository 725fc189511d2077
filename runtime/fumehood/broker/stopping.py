"""Ending everything of this runtime at once, on an operator's word, whether the worker helps or not (rule 25).

In order: every box's processes are killed; the worker is told, and has `GRACE_S` to leave its calls as they should be left, which
revokes their leases, shuts their gates and closes their records; a worker that then still has a box or an open record is killed (it
may be stopped, or taken over), its boxes are removed here and its records closed as lost. Nothing here believes the worker: what boxes
there are the broker knows, and what records are open the ledger says.

Nothing new can begin meanwhile: the file was written before we were asked, and is looked at before each box, and once more before
each start of a tool.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fumehood import stopping
from fumehood.broker import sweep
from fumehood.broker.box import Box
from fumehood.broker.host import Host
from fumehood.faults import Refused
from fumehood.reasons import Reason

GRACE_S = 2.0
HEAD_START_S = 0.5
_STEP_S = 0.02


class Bell:
    """Tells the worker of each stop. A stop that comes while nobody waits is told to the next who does."""

    def __init__(self) -> None:
        """Be silent."""
        self._rung = 0
        self._closed = False
        self._changed = threading.Condition()

    def ring(self) -> None:
        """Tell of a stop."""
        with self._changed:
            self._rung += 1
            self._changed.notify_all()

    def wait(self, heard: int) -> int:
        """How often it has rung, when that is more than was heard, or when nothing is to come any more."""
        with self._changed:
            while self._rung <= heard and not self._closed:
                self._changed.wait()
            return self._rung

    def close(self) -> None:
        """Let everybody go who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Stopping:
    """What ends the boxes of one broker. `under_way` is held while that happens: the process must not end before."""

    def __init__(
        self, host: Host, ledger: socket.socket, worker: int, boxes: Callable[[], Sequence[Box]], remove_all: Callable[[], None]
    ) -> None:
        """`worker` is a pidfd; `boxes` are those that there are now."""
        self._host = host
        self._ledger = ledger
        self._worker = worker
        self._boxes = boxes
        self._remove_all = remove_all
        self.under_way = threading.Lock()
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
        with self.under_way:
            killed, calls = self._boxes(), self._open_calls()
            for box in killed:
                box.kill(Reason.OPERATOR)
            began_s = time.monotonic()
            # A call whose box has ended leaves it by itself, and then its record says what it used.
            while self._boxes() and time.monotonic() < began_s + HEAD_START_S:
                time.sleep(_STEP_S)
            self.bell.ring()
            while (left := self._open_calls()) or self._boxes():
                if time.monotonic() >= began_s + GRACE_S:
                    self._end_worker()
                    self._remove_all()
                    for task in left:
                        sweep.close_lost(self._ledger, task, {"stopped": True})
                    return {"boxes": len(killed), "calls": len(calls), "lost": len(left), "worker_killed": True}
                time.sleep(_STEP_S)
            return {"boxes": len(killed), "calls": len(calls), "lost": 0, "worker_killed": False}

    def _open_calls(self) -> list[str]:
        return [row["task"] for row in sweep.open_tasks(self._ledger, self._host.settings.runtime_id) or []]

    def _end_worker(self) -> None:
        """By its pidfd, which is of no other process whatever happens."""
        signal.pidfd_send_signal(self._worker, signal.SIGKILL)
