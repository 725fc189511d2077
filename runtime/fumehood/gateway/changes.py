"""The worker's end of the operator process: asks it to read the configuration again, and hears of each that was taken.

Invariants: a set of which anything is missing or malformed is none, and its directories are closed; a refused configuration
is one line in the log; when the operator process is gone the gateway goes on with what it has.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio

from fumehood import wire
from fumehood.gateway.served import ServedSet, set_of
from fumehood.operating import Part

_log = logging.getLogger("fumehood")


class Operator:
    """Made by `operator`."""

    def __init__(self, sock: socket.socket) -> None:
        """Use `sock`, which must be non-blocking."""
        self._sock = sock

    def reload(self) -> None:
        """Ask for the configuration to be read again. What comes of it is told by `changes`, or in the log."""
        try:
            wire.send(self._sock, {"verb": "reload"})
        except BlockingIOError:
            pass  # so many requests wait already
        except wire.WireError:
            _log.warning("the configuration cannot be read again: the operator process is gone")

    async def changes(self) -> AsyncGenerator[ServedSet, None]:
        """Each new set, from the moment it is in force; the directories in it are the taker's. Ends with the process."""
        parts: list[Part] = []
        try:
            while (got := await self._receive()) is not None:
                message, fds = got
                fields = message.get("part")
                parts.append(Part(fields if isinstance(fields, dict) else {}, tuple(fds)))
                if message.get("last") is not True:
                    continue
                whole, parts = parts, []
                if (served := _taken(whole)) is not None:
                    yield served
        except wire.WireError as error:
            _log.warning("the configuration cannot be read again: %s", error)
        finally:
            _close(parts)

    async def _receive(self) -> tuple[dict[str, object], list[int]] | None:
        while True:
            await anyio.wait_readable(self._sock)
            try:
                return wire.receive(self._sock)
            except BlockingIOError:
                continue


@asynccontextmanager
async def operator(sock: socket.socket) -> AsyncIterator[Operator]:
    """Speak to the operator process for the length of the body; the socket is closed with it."""
    sock.setblocking(False)
    with sock:
        yield Operator(sock)


def _taken(parts: list[Part]) -> ServedSet | None:
    if (refused := parts[0].fields.get("refused")) is not None:
        _log.warning("the configuration was not read again, the old one stays: %s", refused)
        _close(parts)
        return None
    try:
        served = set_of(parts)
    except ValueError as error:
        _log.warning("the configuration was not read again, the old one stays: %s", error)
        _close(parts)
        return None
    _log.warning("the configuration was read again; served now: %s", ", ".join(each.name for each in served.servers))
    return served


def _close(parts: list[Part]) -> None:
    for part in parts:
        wire.close_all(part.fds)
