"""The client of one request, as every transport describes it: who it is, how it speaks, and how to talk back to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fumehood.gateway.protocol import Era
from fumehood.model import Proof, Sender

Progress = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The asking side of one request.

    `sender` is the transport's word (the process's own uid, SO_PEERCRED, a bearer token) or a verified signature's, never the
    client's. `connection` is
    an unguessable name of ours for what lasts between requests: a stdio or unix connection, an older client's HTTP
    session; None where nothing does. `capabilities` are as it declared them. `request_digest` and `proof` are this very request's:
    what it asks, and what it showed of its origin (`proofs.Origin`, or the transport's). `has_left` tells of a request that is over
    unanswered whether its stream ended, or the client cancelled it; `withdraws` that its client said so, in as many words.
    """

    era: Era
    capabilities: Mapping[str, Any]
    sender: Sender
    connection: str | None = None
    request_digest: str | None = None
    proof: Proof | None = None
    has_left: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)
    withdraws: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)


class Channel(Protocol):
    """What a request under way can say to its client before it is answered."""

    @property
    def can_ask(self) -> bool:
        """Whether the client can be sent requests of ours: an older one, with a way back."""
        ...

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification that belongs to this request. Lost without a word when the client is gone."""
        ...

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its result. Raises `GatewayError`: no way back, or the client's own error."""
        ...
