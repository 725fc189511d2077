"""The unix socket: newline-delimited JSON-RPC as on stdio, one client a connection, known by the kernel's word (SO_PEERCRED).

Invariants: the socket is never open to others, not even for the moment between bind and chmod; it lies in a folder where
nobody else can make names, and is bound below that folder's descriptor, so the folder that was checked is the folder
that is used; what is replaced is a dead gateway's socket of ours, and nothing else. Mode 0600, and an access list where
the operator named further users, keeps others out where the kernel heeds it, and the peer's uid is checked besides.

A further user acts on the operator's behalf, as a sender over HTTP does, and is somebody else: his sessions, tasks and results are
nobody else's, and he cannot take all connections for himself.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import anyio
import anyio.abc

from fumehood.gateway import adapter, strict_json
from fumehood.gateway.answering import Answering
from fumehood.gateway.proofs import Proofs
from fumehood.gateway.protocol import INVALID_REQUEST, TOO_MANY_REQUESTS
from fumehood.model import Sender

MAX_CONNECTIONS = 32
MAX_USER_CONNECTIONS = 8
_CREDENTIALS = struct.Struct("=iII")
_log = logging.getLogger("fumehood")


def senders(owner: Sender, users: Sequence[tuple[str, int]]) -> Mapping[int, Sender]:
    """Who is served, by uid: the owner as ever, and each user under the name that the operator gave."""
    return {uid: replace(owner, name=f"unix:{name}") for name, uid in users} | {owner.uid: owner}


async def serve(
    gateway: Answering, listener: socket.socket, known: Callable[[int], Sender | None], proofs: Proofs
) -> None:
    """Serve every client of a listening socket whose uid is `known`, until cancelled."""
    async with anyio.create_task_group() as tasks:
        open_: Counter[Sender] = Counter()
        while True:
            await anyio.wait_readable(listener)
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                # Out of descriptors, or the client is gone already: never a reason to stop serving the others.
                _log.warning("a connection was lost: %s", error.strerror)
                await anyio.sleep(0.1)
                continue
            uid = peer_uid(connection)
            sender = known(uid)
            if sender is None:
                _log.warning("uid %d was refused on the unix socket", uid)
                _turn_away(connection, INVALID_REQUEST, f"uid {uid} may not connect")
            elif open_[sender] >= (most := MAX_USER_CONNECTIONS if sender.name.startswith("unix:") else MAX_CONNECTIONS):
                _turn_away(connection, TOO_MANY_REQUESTS, f"{most} connections are open")
            else:
                open_[sender] += 1
                tasks.start_soon(_client, gateway, connection, sender, proofs, open_)


async def _client(
    gateway: Answering, connection: socket.socket, sender: Sender, proofs: Proofs, open_: Counter[Sender]
) -> None:
    fd = connection.fileno()
    try:
        await adapter.serve(gateway, fd, fd, sender, proofs)
    except Exception:  # noqa: BLE001 - one client's end must not be the others'
        _log.exception("a fault in the gateway")
    finally:
        open_[sender] -= 1
        connection.close()


def peer_uid(connection: socket.socket) -> int:
    """Whose process connected, by the kernel's word at that time."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(packed)[1])


def _turn_away(connection: socket.socket, code: int, message: str) -> None:
    """Say why, if that fits at once, and close."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": f"fumehood: {message}"}}
    with connection, contextlib.suppress(OSError):
        connection.send(strict_json.dumps(error) + b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
