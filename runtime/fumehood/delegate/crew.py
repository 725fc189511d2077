"""The fresh process between a server and its broker and ledger, which are forked from it.

It runs as root and is what they hold in memory, so it imports what forking needs and no more: nothing of the worker's, and no
library. It keeps no descriptor of the server's but its standard error and one socket.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import NoReturn

from fumehood import confine, launch, wire

BOOTSTRAP_FD = 3


def gather(filters: str) -> NoReturn:
    """Fork the others, hand over their sockets and the worker's filter (from the folder `filters`), wait for their end."""
    os.closerange(BOOTSTRAP_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(BOOTSTRAP_FD, False)
    sock = socket.socket(fileno=BOOTSTRAP_FD)
    crew = launch.assemble(broker=True)
    if crew.orders is not None:
        crew.orders.close()  # a server's author gives no orders: what it was started with stays
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the worker decides; its end is theirs, and theirs is ours
    ends = [crew.ledger, crew.broker, crew.briefings["ledger"], crew.briefings["broker"]]
    wire.send(sock, {"filter": confine.worker_filter(Path(filters)).hex()}, [end.fileno() for end in ends if end is not None])
    for end in (sock, *ends):
        if end is not None:
            end.close()
    for child in crew.children:
        os.waitpid(child, 0)
    os._exit(0)
