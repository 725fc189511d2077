"""The sessions of stateful servers: which box belongs to which client (rule 10).

A session belongs to one sender, one server under one profile, and one thing that lasts: a connection, or a handle of
ours that the client sends back in `_meta`. Invariants: it never serves two senders; a handle cannot be guessed, and
says nothing to anybody else; how many there are is bounded; when a connection ends, its sessions end.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.abc

from fumehood.execution import Hosting
from fumehood.gateway import exchange
from fumehood.gateway.exchange import ClientFacts, Greeting
from fumehood.gateway.protocol import INVALID_PARAMS, TOO_MANY_REQUESTS, GatewayError
from fumehood.model import Outcome, Sender, ToolCall
from fumehood.residence import Residence, Residences

MAX_SESSIONS_OF_A_SENDER = 16
ENDING_S = 10.0

Host = Callable[[ToolCall, Hosting], Awaitable[Outcome]]


@dataclass(slots=True, eq=False)
class Session:
    """One session: its residence, and how it ended once it has."""

    sender: Sender
    server: str
    profile_digest: str
    image_digest: str | None
    place: str
    residence: Residence
    outcome: Outcome | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def task(self) -> str:
        """The task id of the session itself."""
        return self.residence.task


class Sessions:
    """The sessions of one gateway."""

    def __init__(self, tasks: anyio.abc.TaskGroup, host: Host, residences: Residences) -> None:
        """Host sessions in `tasks`, each by `host`, which is `run_call`."""
        self._tasks = tasks
        self._host = host
        self._residences = residences
        self._sessions: dict[str, Session] = {}
        self._opening = anyio.Lock()

    async def of(
        self, call: ToolCall, server: str, *, connection: str | None, handle: str | None, argv: tuple[str, ...],
        greeting: Greeting, facts: ClientFacts,
    ) -> tuple[Session, str | None]:
        """The session that serves `call`, a call to host one, and the handle to give out for a new one without a connection.

        Raises `GatewayError`: the handle is not this sender's, or there are too many.
        """  # fmt: skip
        if connection is None and handle is not None:
            found = self._sessions.get(handle)
            if found is None or found.residence.is_over or not _belongs(found, call, server):
                raise GatewayError(INVALID_PARAMS, "Invalid params: there is no such session; leave its handle out to begin one")
            return found, None
        async with self._opening:  # two first calls at once are of one session
            place = connection if connection is not None else secrets.token_urlsafe(32)
            for known in self._sessions.values():
                if known.place == place and not known.residence.is_over and _belongs(known, call, server):
                    return known, None
            if sum(known.sender == call.sender for known in self._sessions.values()) >= MAX_SESSIONS_OF_A_SENDER:
                raise GatewayError(TOO_MANY_REQUESTS, f"{MAX_SESSIONS_OF_A_SENDER} sessions are open; end one first")
            session = Session(call.sender, server, call.profile.digest, call.image_digest, place, Residence(call.task))
            key = place if connection is None else call.task
            self._sessions[key] = session
            self._residences.add(session.residence)
            greet = partial(exchange.greet, client=facts, era=greeting.era)
            self._tasks.start_soon(self._keep, key, session, call, Hosting(argv, greet, session.residence))
            await session.residence.opened()
        if session.residence.is_over:
            await session.ended.wait()  # it did not come up: its outcome says why
        return session, place if connection is None else None

    async def ended(self, connection: str) -> None:
        """End what belongs to a connection that is over, and return when it is gone."""
        mine = [session for session in self._sessions.values() if session.place == connection]
        for session in mine:
            session.residence.end()
        with anyio.move_on_after(ENDING_S):
            for session in mine:
                await session.ended.wait()

    async def end_all(self) -> None:
        """End every session, in order: what they changed is committed."""
        for place in {session.place for session in self._sessions.values()}:
            await self.ended(place)

    async def _keep(self, key: str, session: Session, call: ToolCall, work: Hosting) -> None:
        try:
            session.outcome = await self._host(call, work)
        finally:
            session.residence.end()
            self._residences.forget(session.task)
            self._sessions.pop(key, None)
            session.ended.set()


def _belongs(session: Session, call: ToolCall, server: str) -> bool:
    # The image too: a call judged by a newer one's list must not reach the server of an older.
    theirs = (call.sender, server, call.profile.digest, call.image_digest)
    return (session.sender, session.server, session.profile_digest, session.image_digest) == theirs
