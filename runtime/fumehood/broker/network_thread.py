"""The one way in which Python of ours enters a box's network: a thread that is used once and ends inside.

A thread of the broker's that came back would have to be trusted to have come back: one that failed to would open the broker's next
sockets in a stranger's box, and one that failed to enter would make every address of the host local. So nobody comes back. The thread
enters through init's pidfd (which cannot name a reused pid), checks that it is no longer where it was, does its work, and ends;
the kernel's only other way to switch a thread's network is the same call again, which is nowhere in this program.

Only the network namespace is entered, never a mount namespace (rule 2): what the thread opens by path is the broker's own view, and
`/proc/sys/net` shows the network of whoever opens it. The work imports nothing. It must not start threads or processes.

One thread always waits, because on a busy machine starting one takes longer than all the rest. Invariant: each visit starts a thread,
from where the visitor is not, and one is started before the first; so there are never more orders than threads that wait.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from fumehood.broker import processes
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
Made = TypeVar("Made")


class _Visits:
    """The orders of this process, and whether a thread was started to wait for the first."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._pid = 0

    def order(self, visit: Callable[[], None]) -> None:
        """Have a thread do it, and start the next. Raises RuntimeError when none can be started, and then it is not done."""
        with self._starting:
            if self._pid != os.getpid():  # no thread of our parent's is ours
                self._orders = queue.SimpleQueue()
                _thread.start_new_thread(self._wait, (self._orders,))
                self._pid = os.getpid()
            self._orders.put(visit)
            try:
                _thread.start_new_thread(self._wait, (self._orders,))
            except RuntimeError:
                self._pid = 0  # this one is served by who waits; the next begins anew

    @staticmethod
    def _wait(orders: queue.SimpleQueue[Callable[[], None]]) -> None:
        orders.get()()


_visits = _Visits()


def inside_network(pidfd: int, work: Callable[[], Made]) -> Made:
    """What `work` returns in the network of the process that the pidfd names, which must live until then.

    Raises BoxFailed, and what `work` raises.
    """
    returned: list[Made] = []
    raised: list[BaseException] = []
    done = _thread.allocate_lock()

    def visit() -> None:
        try:
            _enter(pidfd)
            returned.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            raised.append(error)
        finally:
            done.release()

    done.acquire()
    _visits.order(visit)
    done.acquire()
    if raised:
        raise raised[0]
    if not processes.alive(pidfd):
        raise BoxFailed(Reason.BOX_DIED, "the box ended while its network was made")
    return returned[0]


def own_network() -> str:
    """The calling thread's network namespace, as `net:[NUMBER]`."""
    return f"net:[{os.stat('/proc/thread-self/ns/net').st_ino}]"  # noqa: PTH116 - three of these a gate, and a Path takes 30 us


def _enter(pidfd: int) -> None:
    before = own_network()
    if _libc.setns(pidfd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise BoxFailed(Reason.BOX_FAILED, f"the box's network cannot be entered: {os.strerror(number)}")
    if own_network() == before:
        # An engine that gave the box the host's network: what is done next must not be done to the host.
        raise BoxFailed(Reason.READBACK_MISMATCH, "the box has the broker's own network")
