"""Tells approvers of what waits: one POST of JSON for each new approval, signed as Standard Webhooks has it.

    webhook-id, webhook-timestamp, webhook-signature: v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"))

Nobody waits for it: the queue works without, and what became of it is noted with the approval. The worker does it, which has no
rights; neither ledger nor broker speaks to the network. Invariants: one URL, of the operator's; no redirect is followed, no proxy or
netrc of the environment used; of the answer nothing but its status is read; what waits to be told is bounded, and so are the tries.

Attack: whoever asks chooses the arguments. They are sent as the escaped text of the prompt, and as fields in JSON, never as a URL or a
header; an approval's id is not a secret, and an answer needs an approver's key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio

from fumehood.approvals.prompt import lines
from fumehood.faults import FumehoodError
from fumehood.ports import Clock, Ledger

MOST_WAITING = 256
TRIES = 5
FIRST_PAUSE_S = 1.0
TIMEOUT_S = 10.0
SHOWN_ARGUMENTS = 4 * 1024
_PREFIX = "whsec_"
_log = logging.getLogger("fumehood")


def key_of(secret: str) -> bytes:
    """A webhook's secret as Standard Webhooks writes it (`whsec_` and base64), or any other text as it is."""
    if secret.startswith(_PREFIX):
        with suppress(ValueError, binascii.Error):
            return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    return secret.encode()


def signed(key: bytes, name: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver knows that we sent it, and when."""
    digest = hmac.new(key, b".".join((name.encode(), str(at_s).encode(), body)), hashlib.sha256).digest()
    return {
        "webhook-id": name, "webhook-timestamp": str(at_s), "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        "content-type": "application/json",
    }  # fmt: skip


def body_of(waiting: Mapping[str, Any]) -> bytes:
    """What is posted: the approval's fields, and the prompt as a person reads it."""
    question = {name: value for name, value in waiting["question"].items() if name != "arguments"}
    text = "\n".join(lines(waiting, SHOWN_ARGUMENTS))
    said = {name: waiting[name] for name in ("id", "binding", "until", "need")}
    return json.dumps({"type": "approval.asked", **said, "question": question, "text": text}).encode()


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where approvers are told. `authorities` is PEM to trust beside the system's."""

    url: str
    key: bytes
    authorities: str | None = None

    async def post(self, name: str, at_s: int, body: bytes) -> str | None:
        """Post it once: None when it was taken, else why not."""
        import httpx2

        context = ssl.create_default_context()
        if self.authorities:
            context.load_verify_locations(cadata=self.authorities)
        try:
            async with (
                httpx2.AsyncClient(verify=context, trust_env=False, timeout=TIMEOUT_S, follow_redirects=False) as client,
                client.stream("POST", self.url, headers=signed(self.key, name, at_s, body), content=body) as response,
            ):
                return None if 200 <= response.status_code < 300 else f"the answer was {response.status_code}"
        except Exception as error:  # noqa: BLE001 - whatever it is must not end what else this runtime does
            return type(error).__name__  # its text may have the URL, which may be a secret


class Telling:
    """What is still to be told. `tell` never waits."""

    def __init__(self, webhook: Webhook, ledger: Ledger, clock: Clock) -> None:
        """Tell nobody yet."""
        self._webhook = webhook
        self._ledger = ledger
        self._clock = clock
        self._queue, self._waiting = anyio.create_memory_object_stream[tuple[Mapping[str, Any], str]](MOST_WAITING)

    def tell(self, waiting: Mapping[str, Any], task: str) -> None:
        """Have approvers told of it."""
        try:
            self._queue.send_nowait((waiting, task))
        except anyio.WouldBlock:
            _log.warning("the webhook is not told of approval %s: %d wait to be told", waiting["id"], MOST_WAITING)

    async def run(self) -> None:
        """Tell one after the other, for ever."""
        with self._queue, self._waiting:
            async for waiting, task in self._waiting:
                told = await self._told(waiting)
                if told != "told":
                    _log.warning("the webhook was not told of approval %s: %s", waiting["id"], told)
                with suppress(FumehoodError):  # its call is over: then it is for the log alone
                    await self._ledger.approval_told(waiting["id"], task, told)

    async def _told(self, waiting: Mapping[str, Any]) -> str:
        body = body_of(waiting)
        pause_s, problem = FIRST_PAUSE_S, ""
        for left in reversed(range(TRIES)):
            problem = await self._webhook.post(waiting["id"], int(self._clock.wall_s()), body) or ""
            if not problem:
                return "told"
            if left:
                await anyio.sleep(pause_s)
                pause_s *= 3
        return problem


@asynccontextmanager
async def telling(webhook: Webhook, ledger: Ledger, clock: Clock) -> AsyncIterator[Telling]:
    """Tell approvers by this webhook, for the length of the body."""
    found = Telling(webhook, ledger, clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.run)
        yield found
        tasks.cancel_scope.cancel()
