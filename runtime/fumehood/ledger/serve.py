"""The ledger's loop: one thread, several sockets, what arrived together committed together.

Invariants: a reply to `open`, `close`, `close_lost`, `spend` and what changes a lease is sent when the commit is on disk; `event` is
answered when it is queued (or not at all: a request without an id), before its commit, and commits without an fsync of its own.
The order of one socket's requests is kept, except that a `keep` is answered when it is on disk, a step at a time. The process ends
when all its peers have. What it did is attested in the same transaction (`calls.py`); signing waits until nobody waits for a reply.

It must never parse anything but JSON of a checked shape (`peers.py`).
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fumehood.ledger.approving import Approving
from fumehood.ledger.book import Book
from fumehood.ledger.outside import Outside
from fumehood.ledger.peers import BATCH, Request, receive
from fumehood.ledger.pinning import Pinning

# How long an event may wait for others. Should this process be killed meanwhile, the timeline of a call lacks its last steps; its
# record is there, and says that it was never closed.
LINGER_S = 0.004
RESULTS_KEPT_S = 24 * 3600.0


def serve(
    socks: Sequence[socket.socket],
    folder: Path,
    runtime_id: str,
    results_kept_s: float = RESULTS_KEPT_S,
    outside: Outside | None = None,
    how_pins: Pinning | None = None,
    how_approved: Approving | None = None,
    *,
    takes_senders: bool = False,
) -> None:
    """Be the ledger until every socket has ended; the first is the worker's. Call it in the main thread of a process of its own.

    With `takes_senders` who asks is an operator's own command, and may say who sends.
    """
    # Ctrl-C and a service manager's stop reach the whole group; the worker still has records to close then.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with ExitStack() as stack:
        outside = outside or Outside(None, ())
        book = Book(
            folder, runtime_id, results_kept_s, stack, worker=socks[0], outside=outside, how_pins=how_pins or Pinning(),
            how_approved=how_approved or Approving(), takes_senders=takes_senders,
        )  # fmt: skip
        selector = stack.enter_context(_selector(socks, outside))
        peers = len(socks)
        held: list[Request] = []
        until = 0.0
        while peers:
            ready = selector.select(_patience(book, until if held else None))
            if not held:
                until = time.monotonic() + LINGER_S
            for key, _ in ready:
                if key.data is outside:
                    if not book.standing.hear():
                        selector.unregister(key.fileobj)
                elif not receive(key.data, held):
                    selector.unregister(key.data)
                    key.data.close()
                    peers -= 1
                    if key.data is socks[0]:
                        book.handle(held)
                        held = []
                        book.abandon_leases()
            # Nobody waits for an event, and a transaction costs more than what is in it.
            if len(held) >= BATCH or time.monotonic() >= until or any(request.verb != "event" for request in held):
                book.handle(held)
                held = []
            book.copy_on()
            book.standing.go_on(quiet=not ready)
        book.handle(held)
        book.standing.end()


def _selector(socks: Sequence[socket.socket], outside: Outside) -> selectors.BaseSelector:
    """Everything that can speak to a ledger."""
    selector = selectors.DefaultSelector()
    for sock in socks:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, sock)
    if outside.sock is not None:
        selector.register(outside.sock, selectors.EVENT_READ, outside)
    return selector


def _patience(book: Book, until: float | None) -> float | None:
    """How long nothing need be done if nothing arrives; None when that is for ever."""
    if book.is_copying:
        return 0
    waits = [] if until is None else [max(0.0, until - time.monotonic())]
    return min(waits if (due_s := book.standing.due_in_s) is None else [*waits, due_s], default=None)
