"""A gate's handler on a loopback port instead of in a box: real clients talk to it, and it dials real servers.

What a box's own gate adds (names, listeners, the lifetime of a call) is tested with boxes; this is for what a handler does with a
connection, in milliseconds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fumehood.egress.dial import dialer_of
from fumehood.egress.handlers import serve_of
from fumehood.egress.limits import Budget, Meter
from fumehood.egress.names import Names, Route
from fumehood.egress.refusals import Rejected
from fumehood.egress.task import GateTask, reset
from fumehood.model import Profile, SeccompPolicy
from fumehood.ports import Outward
from fumehood.reach import EgressRule, Network, Secret, Supplies


@dataclass
class Holding:
    """Leases that a test sets."""

    secrets: dict[str, Secret] = field(default_factory=dict, repr=False)
    supplies: Supplies = field(default_factory=Supplies)

    def secret(self, credential: str) -> Secret | None:
        return self.secrets.get(credential)

    async def suspend(self) -> None:
        self.secrets.clear()

    async def renew(self) -> None:
        """Nothing to renew."""


@dataclass
class Listed:
    """An egress log that a test reads."""

    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, kind: str, facts: dict[str, Any]) -> None:
        self.entries.append((kind, dict(facts)))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The facts of each entry of this kind."""
        return [facts for each, facts in self.entries if each == kind]


@dataclass
class Gated:
    """One rule, served at `port` of loopback."""

    port: int
    leases: Holding
    log: Listed
    task: GateTask
    route: Route


@contextmanager
def gated(rule: EgressRule, outward: Outward, secret: Secret | None = None) -> Iterator[Gated]:
    """Serve what a rule allows, as a gate would, from a thread with its own loop. `secret` is for the rule's credential."""
    loop = asyncio.new_event_loop()
    leases, log = Holding({} if secret is None else {rule.credential or "": secret}), Listed()
    policy = SeccompPolicy(name="none", default_errno=1, rules=())
    network = Network(rules=(rule,))
    profile = Profile(name="p", digest="d", image="i", seccomp=policy, network=network)
    names = Names(network.rules)
    task: Any = GateTask(
        task="task", box="task", profile=profile, leases=leases, outward=outward, names=names, dialer=dialer_of(outward),
        meter=Meter(network.limits), budget=Budget(2**26), log=log, holdings={},  # type: ignore[arg-type]
    )  # fmt: skip
    route = names.route(rule.name, rule.ports[0])
    assert route is not None
    serve = serve_of(rule.kind)
    running: set[asyncio.Task[None]] = set()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.setblocking(False)

        async def one(connection: socket.socket) -> None:
            try:
                await serve(connection, route, task)
            except Rejected as error:
                task.refuse(error.why, route, **error.facts)
            except (OSError, TimeoutError) as error:
                task.log("close", route, error=type(error).__name__)
            finally:
                reset(connection)

        async def accept() -> None:
            while True:
                connection, _ = await loop.sock_accept(listener)
                each = asyncio.create_task(one(connection))
                running.add(each)
                each.add_done_callback(running.discard)

        accepting = loop.create_task(accept())

        async def finish() -> None:
            accepting.cancel()
            for each in running:
                each.cancel()
            await asyncio.gather(accepting, *running, return_exceptions=True)
            for _ in range(10):  # a transport that was aborted closes a few rounds later, one with TLS yet later
                await asyncio.sleep(0)
            loop.stop()

        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield Gated(listener.getsockname()[1], leases, log, task, route)
        finally:
            asyncio.run_coroutine_threadsafe(finish(), loop)
            thread.join()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


def eventually(check: Any, timeout_s: float = 5.0) -> None:
    """Wait until something is true, and fail when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.01)
