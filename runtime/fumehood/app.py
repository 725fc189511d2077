"""The composition root: from running processes to the ports that calls use."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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
from fumehood.ports import Outward, Ports


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
    async with asking(processes.ledger) as ledger, asking(processes.privileged) as broker_asker:
        broker = BrokerClient(broker_asker)
        ports = Ports(
            broker=broker,
            ledger=LedgerClient(ledger, clock),
            images=ImageStore(settings.images),
            clock=clock,
            owner_uid=settings.caller_uid,
            outward=outward_of(processes.outward),
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
