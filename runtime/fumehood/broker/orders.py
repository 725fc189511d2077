"""What the operator process tells the broker while it runs: which directories may be given to boxes from now on.

On a socket of their own, of which the worker has no end, so that only somebody with the operator's rights can widen it
(security rule 7). A box keeps what was allowed when it was made: `Box` takes the settings of that moment.
"""

from __future__ import annotations

import dataclasses
import socket

from fumehood import wire
from fumehood.broker import requests
from fumehood.broker.host import Host
from fumehood.faults import FumehoodError

DIRECTORIES = 1024


def take_orders(orders: socket.socket, host: Host) -> None:
    """Do what the operator process says until it is gone, or says what it never would."""
    try:
        while (got := wire.receive(orders)) is not None:
            message, fds = got
            wire.close_all(fds)
            try:
                allow(host, message)
            except FumehoodError as error:
                wire.send(orders, {"id": message.get("id"), **wire.reply_of_error(error)})
            else:
                wire.send(orders, {"id": message.get("id"), "ok": {}})
    except (wire.WireError, OSError):
        pass  # the runtime ends, or that was not our operator process
    finally:
        orders.close()


def allow(host: Host, message: dict[str, object]) -> None:
    """Replace the roots of workspaces and mounts. Raises `Refused` for anything but two lists of absolute paths."""
    args = message.get("args")
    if message.get("verb") != "allow" or not isinstance(args, dict):
        raise requests.refuse("expected `allow`")
    workspaces, mounts = (tuple(requests.strings_of(args, name, DIRECTORIES)) for name in ("workspaces", "mounts"))
    if not all(path.startswith("/") for path in (*workspaces, *mounts)):
        raise requests.refuse("expected absolute paths")
    # One assignment: a box that is made meanwhile sees all of the old or all of the new.
    host.settings = dataclasses.replace(host.settings, workspace_roots=workspaces, mount_roots=mounts)
