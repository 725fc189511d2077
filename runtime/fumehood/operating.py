"""The operator process: keeps the caller's rights when the worker gives them up, so that a configuration can be read again.

It is forked by `launch` and speaks to two others. The worker asks it to read again, and can ask nothing else: whatever
arrives means that, so a worker that was taken over gains nothing by asking. The broker hears from it, on a socket that the
worker has no end of, which directories may be given to boxes: that is how a new configuration can name a new workspace, and
why the worker cannot.

Reading is done by a child, anew each time: what parses the operator's files is gone afterwards, with everything it
imported or opened. A configuration that cannot be read, or is wrong anywhere, changes nothing at all.

In order: the broker allows the old directories and the new, then the worker is given what is served now, and `GRACE_S`
later the broker allows only the new ones. A call that was taken up before the change can so still make its box, and a
box keeps the directories that were allowed when it was made.

Standard library only; what is read, and by which parser, is the caller's (`reread`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fumehood import confine, wire
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

GRACE_S = 5.0
READING_S = 30.0
_TELLING_S = 5.0


class Part(NamedTuple):
    """One message to the worker; its descriptors are sent along and stay the sender's to close."""

    fields: Mapping[str, Any]
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowed:
    """Directories that boxes may be given, with everything below them: workspaces, and sources of read-only mounts."""

    workspaces: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()

    def __or__(self, other: Allowed) -> Allowed:
        """What either allows."""
        return Allowed(_either(self.workspaces, other.workspaces), _either(self.mounts, other.mounts))


@dataclass(frozen=True, slots=True)
class Revision:
    """A configuration that was read: what the broker may then allow, and what the worker is told."""

    allowed: Allowed
    parts: tuple[Part, ...]

    def __enter__(self) -> Self:
        """Use it; its descriptors are closed afterwards."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptors."""
        for part in self.parts:
            wire.close_all(part.fds)


Reread = Callable[[], Revision]


def serve(worker: socket.socket, broker: socket.socket, allowed: Allowed, reread: Reread) -> None:
    """Read again as often as the worker asks, until it is gone. `allowed` is what the broker was started with."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the worker decides; its end is ours
    confine.hide_memory()
    narrowing: float | None = None
    with contextlib.suppress(wire.WireError):
        try:
            while True:
                if not _readable(worker, None if narrowing is None else narrowing - time.monotonic()):
                    _allow(broker, allowed)
                    narrowing = None
                    continue
                if not _asked(worker):
                    return
                try:
                    with _read_apart(reread, (worker, broker)) as revision:
                        # Before the worker: its first call under the new configuration must not come too early.
                        _allow(broker, allowed | revision.allowed)
                        allowed, narrowing = revision.allowed, time.monotonic() + GRACE_S
                        _tell(worker, revision.parts)
                except FumehoodError as error:
                    _tell(worker, [Part({"refused": str(error)})])
        finally:
            # A worker that does not listen any more must not keep what was taken from it.
            _allow(broker, allowed)


def _asked(worker: socket.socket) -> bool:
    """Take every request that waits: one reading answers them all. False when the worker is gone."""
    while _readable(worker, 0):
        got = wire.receive(worker)
        if got is None:
            return False
        wire.close_all(got[1])
    return True


def _allow(broker: socket.socket, allowed: Allowed) -> None:
    wire.request(broker, "allow", {"workspaces": list(allowed.workspaces), "mounts": list(allowed.mounts)})


def _tell(worker: socket.socket, parts: Sequence[Part]) -> None:
    """Send what belongs together. A worker that does not read is not waited for: the broker must still hear from us."""
    worker.settimeout(_TELLING_S)
    try:
        for number, part in enumerate(parts, 1):
            wire.send(worker, {"part": part.fields, "last": number == len(parts)}, part.fds)
    except TimeoutError as error:
        raise wire.WireError("the worker does not read") from error
    finally:
        worker.settimeout(None)


def _read_apart(reread: Reread, ends: tuple[socket.socket, ...]) -> Revision:
    """What a child of ours reads. Raises FumehoodError."""
    ours, childs = wire.pair()
    pid = os.fork()
    if pid == 0:
        _read_and_end(reread, childs, (ours, *ends))
    childs.close()
    pidfd = os.pidfd_open(pid)
    try:
        return _received(ours, time.monotonic() + READING_S)
    except (wire.WireError, KeyError, TypeError) as error:
        raise FumehoodError(Reason.INTERNAL, f"the configuration could not be read again: {error}") from error
    finally:
        ours.close()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(pid, 0)


def _read_and_end(reread: Reread, out: socket.socket, others: tuple[socket.socket, ...]) -> None:
    """The child's whole life."""
    try:
        for end in others:
            end.close()
        try:
            revision = reread()
            for part in revision.parts:
                wire.send(out, {"part": part.fields}, part.fds)
            allowed = revision.allowed
            wire.send(out, {"workspaces": allowed.workspaces, "mounts": allowed.mounts})
        except FumehoodError as error:
            fault = {"reason": error.reason.value, "detail": error.detail, "remedy": error.remedy}
            wire.send(out, {"refused": fault})
    except Exception:  # noqa: BLE001 - the last words of a process of ours
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
    finally:
        os._exit(0)


def _received(ours: socket.socket, deadline_s: float) -> Revision:
    parts: list[Part] = []
    try:
        while True:
            if not _readable(ours, deadline_s - time.monotonic()):
                raise wire.WireError(f"it took over {READING_S:g} s")
            got = wire.receive(ours)
            if got is None:
                raise wire.WireError("its reader died")
            fields, fds = got
            if "part" not in fields:
                break
            parts.append(Part(fields["part"], tuple(fds)))
        if (refused := fields.get("refused")) is not None:
            raise FumehoodError(Reason(refused["reason"]), refused["detail"], remedy=refused["remedy"])
        return Revision(Allowed(tuple(fields["workspaces"]), tuple(fields["mounts"])), tuple(parts))
    except BaseException:
        for part in parts:
            wire.close_all(part.fds)
        raise


def _readable(sock: socket.socket, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


def _either(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return (*ours, *(each for each in theirs if each not in ours))
