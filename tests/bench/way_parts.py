"""The parts of `scripts/bench egress` that go through a whole gate: connecting, relaying, TLS, bodies, memory, leases.

Each takes the arguments and returns figures. What is compared is measured in turns; a ratio is the median of each round's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from commands import CannotRunError
from figures import percentile
from measured import Figure, quantiles
from namespaces import namespaces
from way_client import PAUSE_S
from way_out import BUSY_S, Place, WayOut, call_of, leases, ports_for, process, way_out

from fumehood.app import SystemClock
from fumehood.credentials.kinds import find
from fumehood.credentials.leasing import lease
from fumehood.egress import gating
from fumehood.ports import Outward
from fumehood.reach import CredentialUse
from ledgers import client, running
from netbox import FakeBox, plan, rule
from postgres_server import postgres_server

CLIENTS = 8
_STREAM_BYTES = 2**28
_BULK_BYTES = 2**30
_WARM_BYTES = 2**26
_REFILL_S = 0.7  # a task may have 64 new connections a second, and 128 at once


def connecting(wanted: argparse.Namespace) -> list[Figure]:
    """What the gate adds to a connection until the first byte is back, beside haproxy: one after the other, and out of rest."""
    taken: dict[tuple[str, float], list[float]] = {}
    with way_out() as way:
        for _ in range(wanted.rounds):
            for pause_s in (0.0, PAUSE_S):
                time.sleep(_REFILL_S)
                for who in ("direct", "haproxy", "gate"):
                    found = way.client(who).ask("connects", way.plain[who], 40, pause_s)
                    taken[who, pause_s] = taken.get((who, pause_s), []) + found
    figures = []
    for (who, pause_s), found in taken.items():
        what = f"connect and one byte back{f', after {pause_s * 1e3:.0f} ms of rest' if pause_s else ''}"
        haproxy, direct = taken["haproxy", pause_s], taken["direct", pause_s]
        figures += quantiles(f"{what}, {who}", found)
        if who == "gate":
            more = percentile(found, 50) - percentile(haproxy, 50)
            note = f"{max(0.0, more - 0.2):.2f} ms to the goal of 0.2"
            figures += [
                Figure(f"{what}, gate more than direct", percentile(found, 50) - percentile(direct, 50), "ms at p50"),
                Figure(f"{what}, gate more than haproxy", more, "ms at p50", 0.6, note),
                Figure(f"{what}, gate more than haproxy", percentile(found, 99) - percentile(haproxy, 99), "ms at p99"),
                Figure(f"{what}, gate against haproxy", percentile(found, 50) / percentile(haproxy, 50), "x at p50"),
            ]
    return figures


def relaying(wanted: argparse.Namespace) -> list[Figure]:
    """One stream through the relay, against none and against haproxy with one thread."""
    figures = []
    with way_out() as way:
        for name, direction in (("down", "d"), ("up", "u")):
            rates: dict[str, list[float]] = {"direct": [], "haproxy": [], "gate": []}
            for number in range(wanted.rounds + 1):
                for who, found in rates.items():
                    rate = way.client(who).ask(
                        "stream", way.plain[who], _STREAM_BYTES if number else _WARM_BYTES, direction
                    )
                    if number:
                        found.append(rate)
            figures += [
                Figure(
                    f"one stream {name}, {who}", statistics.median(found) / 2**20, f"MiB/s, median of {wanted.rounds}"
                )
                for who, found in rates.items()
            ]
            for peer, least in (("direct", 0.45), ("haproxy", 1.0)):
                each = sorted(ours / theirs for ours, theirs in zip(rates["gate"], rates[peer], strict=True))
                figures.append(
                    Figure(f"one stream {name}, gate against {peer}", statistics.median(each), "x", least=least)
                )
                figures.append(
                    Figure(f"one stream {name}, gate against {peer}", each[0], f"x, the worst of {wanted.rounds}")
                )
    return figures


def terminating(wanted: argparse.Namespace) -> list[Figure]:
    """TLS that ends at the gate: handshakes, and requests that it judges and writes a credential into.

    Of a server that answers at once, where all that is measured is processor time, and of one that takes as long as most do.
    """
    busy = f"request of {CLIENTS} clients, of a server that takes {BUSY_S * 1e3:.0f} ms"
    names = ("handshake", f"request of {CLIENTS} clients", busy)
    taken: dict[str, dict[str, list[float]]] = {name: {"direct": [], "gate": []} for name in names}
    with way_out() as way:
        for number in range(wanted.rounds + 1):
            for who in ("direct", "gate"):
                on, place, pem = way.client(who), way.web[who], way.pem[who]
                told = (
                    on.ask("handshakes", place, pem, 20),
                    on.ask("requests", place, pem, way.web_port, "small", CLIENTS, 40),
                    on.ask("requests", place, pem, way.web_port, "busy", CLIENTS, 20),
                )
                for name, found in zip(names, told, strict=True):
                    if number:
                        taken[name][who] += found
    figures = []
    for name, both in taken.items():
        figures += quantiles(f"{name}, direct", both["direct"])
        figures += quantiles(f"{name}, gate", both["gate"], 6.0 if name == "handshake" else None)
        for percent, most in ((50, None), (99, None if name == "handshake" else 1.5)):
            times = percentile(both["gate"], percent) / percentile(both["direct"], percent)
            figures.append(Figure(f"{name}, gate against direct", times, f"x at p{percent}", most))
    return figures


def bulk(wanted: argparse.Namespace) -> list[Figure]:
    """1 GiB up and down, and what the gate's process grew by."""
    del wanted
    figures = []
    with way_out() as way:
        for name, direction in (("down", "d"), ("up", "u")):
            for what, ask in (("relayed", _relayed), ("in TLS, with a credential", _in_tls)):
                ask(way, _WARM_BYTES, direction)
                _forget_peak(way.gate_pid)
                before = _resident_mib(way.gate_pid, "VmHWM")
                rate = ask(way, _BULK_BYTES, direction)
                grown = _resident_mib(way.gate_pid, "VmHWM") - before
                figures.append(Figure(f"1 GiB {name}, {what}", rate / 2**20, "MiB/s"))
                figures.append(Figure(f"1 GiB {name}, {what}: the gate's memory grew by", grown, "MiB at its most", 4))
    return figures


def _relayed(way: WayOut, size: int, direction: str) -> float:
    rate: float = way.inside.ask("stream", way.plain["gate"], size, direction)
    return rate


def _in_tls(way: WayOut, size: int, direction: str) -> float:
    place: Place = way.web["gate"]
    rate: float = way.inside.ask("body", place, way.pem["gate"], way.web_port, size, direction)
    return rate


def idle(wanted: argparse.Namespace) -> list[Figure]:
    """What a task that does nothing costs the worker's process: of relayed rules, and of rules whose TLS ends at the gate."""
    figures = []
    for what, kind, most in (("a tcp rule", "tcp", 16.0), ("an http rule", "http", None)):
        with namespaces(wanted.namespaces) as pidfds, process(_stand, pidfds, kind) as (told, _):
            kib, taken_ms = told.recv()
            figures.append(Figure(f"our memory of an idle task with {what}", kib, f"KiB of {len(pidfds)}", most))
            figures += quantiles(f"its whole gate, from nothing to open, {what}", taken_ms)
    return figures


def _stand(pipe: Connection, pidfds: Sequence[int], kind: str) -> None:
    async def main() -> None:
        outward = Outward()
        planned = call_of(rule(kind, "api.example", 443))
        taken = []
        async with contextlib.AsyncExitStack() as stack:
            before = 0.0
            for number, pidfd in enumerate(pidfds):
                if number == len(pidfds) // 10:  # what all share is there by then
                    gc.collect()
                    before = _resident_mib("self", "VmRSS")
                begun = time.perf_counter()
                await stack.enter_async_context(gating.gate(planned, leases(), FakeBox(), ports_for(pidfd, outward)))
                taken.append((time.perf_counter() - begun) * 1e3)
            gc.collect()
            grown = _resident_mib("self", "VmRSS") - before
            pipe.send((grown * 1024 / (len(pidfds) - len(pidfds) // 10), taken))
            await asyncio.sleep(3600)

    asyncio.run(main())


def leasing(wanted: argparse.Namespace) -> list[Figure]:
    """A role of one call: journalled and made, and dropped and journalled, on a PostgreSQL that is there."""
    with contextlib.suppress(pytest.skip.Exception), _postgres() as server:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as ledger:
            issued, revoked = asyncio.run(_lease(server, ledger, 20 * wanted.rounds))
        return [
            *quantiles("a PostgreSQL lease, issue", issued, 40),
            *quantiles("a PostgreSQL lease, revoke", revoked, 30),
        ]
    raise CannotRunError("PostgreSQL 15 is not installed; ./scripts/counterparts installs it")


@contextlib.contextmanager
def _postgres() -> Iterator[Any]:
    with postgres_server(fsync="on") as server:
        server.sql("CREATE ROLE reporting")
        server.sql("CREATE ROLE keeper LOGIN CREATEROLE PASSWORD 'keeper'")
        yield server


async def _lease(server: Any, ledger: Any, count: int) -> tuple[list[float], list[float]]:
    options = {
        "host": "127.0.0.1", "port": server.port, "admin_user": "keeper", "sslmode": "disable", "allow": {"roles": ["reporting"]},
    }  # fmt: skip
    outward = Outward(providers={"db": find("postgres").make("db", options, {"admin_password": "keeper"})})
    use = CredentialUse(name="db", source="db", scope={"roles": ["reporting"]})
    issued, revoked = [], []
    async with client(ledger) as ours:
        for number in range(count + 2):
            planned = plan()
            verified = planned.grant.verdict.verified
            call = replace(verified.call, profile=replace(verified.call.profile, credentials=(use,)))
            verdict = replace(planned.grant.verdict, verified=replace(verified, call=call))
            planned = replace(planned, grant=replace(planned.grant, verdict=verdict))
            await ours.open(call)
            ports = replace(ports_for(-1, outward), ledger=ours, clock=SystemClock())
            holding = lease(planned, ports, _Remarks())
            begun = time.perf_counter()
            await holding.__aenter__()
            held = time.perf_counter()
            await holding.__aexit__(None, None, None)
            if number >= 2:  # the provider's own connection is there by then
                issued.append((held - begun) * 1e3)
                revoked.append((time.perf_counter() - held) * 1e3)
    return issued, revoked


class _Remarks:
    def remark(self, text: str) -> None:
        raise CannotRunError(text)


def _resident_mib(pid: int | str, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
