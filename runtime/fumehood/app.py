"""The composition root: from running processes to the ports that calls use."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio

from fumehood.asking import asking
from fumehood.brokering import BrokerClient
from fumehood.credentials import sweeping
from fumehood.evidence.client import LedgerClient
from fumehood.faults import FumehoodError
from fumehood.halting import Halting
from fumehood.image.store import ImageStore
from fumehood.launch import Processes
from fumehood.model import Sender, task_id
from fumehood.outward_config import Given
from fumehood.places import Places
from fumehood.ports import Approvals, Ledger, Outward, Ports, Tell
from fumehood.screening.known import KnownSecrets
from fumehood.screening.spellings import MIN_BYTES
from fumehood.settings import Settings

_log = logging.getLogger("fumehood")


class SystemClock:
    """The host's clocks."""

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds of a clock that never steps."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a front door needs: the ports, and who the caller is by the kernel's word."""

    ports: Ports
    sender: Sender

    def new_task(self) -> str:
        """A fresh task id."""
        return task_id(int(self.ports.clock.wall_s() * 1000), os.urandom(10))


@asynccontextmanager
async def open_runtime(processes: Processes[Any]) -> AsyncIterator[Runtime]:
    """Use the running processes for the length of the body. Raises FumehoodError: no broker, a provider that cannot be made."""
    settings = processes.settings
    clock = SystemClock()
    async with asking(processes.ledger) as ledger, asking(processes.privileged) as broker_asker, AsyncExitStack() as stack:
        broker = BrokerClient(broker_asker)
        keeper = LedgerClient(ledger, clock)
        tell = await stack.enter_async_context(_telling(processes.outward, keeper, clock))
        ports = Ports(
            broker=broker,
            ledger=keeper,
            images=ImageStore(settings.images),
            clock=clock,
            owner_uid=settings.caller_uid,
            outward=outward_of(processes.outward),
            policies=processes.policies,
            approvals=_approvals(settings, tell),
            known=known_of(processes.outward),
            places=Places(settings.boxes, wait_s=settings.queue_wait_s, most=settings.queue_most, capacity=broker.capacity),
        )
        async with _ended_by_operators(broker, ports.halting), sweeping(ports.ledger, ports.outward.providers):
            yield Runtime(ports, Sender(uid=settings.caller_uid, name=settings.caller_name))


@asynccontextmanager
async def _ended_by_operators(broker: BrokerClient, halting: Halting) -> AsyncIterator[None]:
    """Let every stop that the broker hears of end all calls under way, for the length of the body."""

    async def listen() -> None:
        heard = 0
        with suppress(FumehoodError):  # a broker that is gone ends every call that has a box
            while True:
                heard, why = await broker.stopped(heard)
                halting.halt(why)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        yield
        tasks.cancel_scope.cancel()


def _approvals(settings: Settings, tell: Tell) -> Approvals:
    """How this runtime asks people."""
    return Approvals(
        approvers=frozenset(name for name, _, _ in settings.approvers),
        wait_s=settings.approval_wait_s,
        expire_s=settings.approval_expire_s,
        keys={name: value for name, kind, value in settings.approvers if kind == "key"},
        audience=settings.approval_audience,
        callback=settings.approval_callback,
        tell=tell,
    )


@asynccontextmanager
async def _telling(given: Given, ledger: Ledger, clock: SystemClock) -> AsyncIterator[Tell]:
    """Have the webhook of the configuration told of what waits, if there is one, for the length of the body."""
    if given.config.webhook is None or given.webhook_secret is None:
        yield Approvals().tell
        return
    from fumehood.approvals.webhook import Webhook, key_of, telling

    webhook = Webhook(given.config.webhook.url, key_of(given.webhook_secret), given.authorities)
    async with telling(webhook, ledger, clock) as found:
        yield found.tell


def known_of(given: Given) -> KnownSecrets:
    """A registry of secrets with the operator's in it."""
    from fumehood.outward_secrets import PUBLIC

    known = KnownSecrets()
    for name, secrets in given.secrets.items():
        texts = [text for option, text in secrets.items() if option not in PUBLIC]
        known.enter_texts(f"credentials.{name}", texts)
        if any(len(text.encode()) < MIN_BYTES for text in texts):
            _log.warning("credentials.%s: a secret under %d bytes is not looked for: it is in any text", name, MIN_BYTES)
    return known


def outward_of(given: Given) -> Outward:
    """What gates and leases use of the operator's. Raises FumehoodError(CONFIG_INVALID | EXTRA_MISSING)."""
    config = given.config
    providers = {}
    if config.credentials:
        from fumehood.credentials import kinds

        for each in config.credentials:
            providers[each.name] = kinds.find(each.provider).make(each.name, each.options, given.secrets[each.name])
    return Outward(
        resolvers=config.resolvers, authorities=given.authorities, proxy=config.proxy, memory_bytes=config.memory_bytes,
        providers=providers,
    )  # fmt: skip
