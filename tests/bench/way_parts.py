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
from measured import Figure
from namespaces import namespaces
from way_out import Place, WayOut, call_of, leases, ports_for, process, way_out

from fumehood.app import SystemClock
from fumehood.credentials.kinds import find
from fumehood.credentials.leasing import lease
from fumehood.egress import gating
from fumehood.model import CredentialUse
from fumehood.ports import Outward
from ledgers import client, running
from netbox import FakeBox, plan, rule
from postgres_server import postgres_server

CLIENTS = 8
_STREAM_BYTES = 2**28
_BULK_BYTES = 2**30
_WARM_BYTES = 2**26


def connecting(wanted: argparse.Namespace) -> list[Figure]:
    """What the gate adds to a connection until the first byte is back, beside haproxy."""
    taken: dict[str, list[float]] = {"direct": [], "haproxy": [], "gate": []}
    with way_out() as way:
        for _ in range(wanted.rounds):
            for who, found in taken.items():
                found += way.client(who).ask("connects", way.plain[who], 40)
    found_ms = {who: percentile(found, 50) for who, found in taken.items()}
    last_ms = {who: percentile(found, 99) for who, found in taken.items()}
    count = len(taken["gate"])
    figures = [
        Figure(f"connect and one byte back, {who}", of, f"ms {name} of {count}")
        for who, found in taken.items()
        for name, of in (("p50", percentile(found, 50)), ("p99", percentile(found, 99)))
    ]
    more = found_ms["gate"] - found_ms["haproxy"]
    return [
        *figures,
        Figure("the gate, more than direct", found_ms["gate"] - found_ms["direct"], "ms at p50"),
        Figure("the gate, more than haproxy", more, "ms at p50", 0.6, note=f"{more - 0.2:+.2f} ms to the goal of 0.2"),
        Figure("the gate, more than haproxy", last_ms["gate"] - last_ms["haproxy"], "ms at p99"),
        Figure("the gate, against haproxy", found_ms["gate"] / found_ms["haproxy"], "x at p50"),
    ]


def relaying(wanted: argparse.Namespace) -> list[Figure]:
    """One stream through the relay, against none and against haproxy with one thread."""
    figures = []
    with way_out() as way:
        for name, direction in (("down", "d"), ("up", "u")):
            rates: dict[str, list[float]] = {"direct": [], "haproxy": [], "gate": []}
            for number in range(wanted.rounds + 1):
                for who, found in rates.items():
                    rate = way.client(who).ask("stream", way.plain[who], _STREAM_BYTES if number else _WARM_BYTES, direction)
                    if number:
                        found.append(rate)
            figures += [
                Figure(f"one stream {name}, {who}", statistics.median(found) / 2**20, f"MiB/s, median of {wanted.rounds}")
                for who, found in rates.items()
            ]
            for peer, least in (("direct", 0.45), ("haproxy", 1.0)):
                each = sorted(ours / theirs for ours, theirs in zip(rates["gate"], rates[peer], strict=True))
                figures.append(Figure(f"one stream {name}, gate against {peer}", statistics.median(each), "x", least=least))
                figures.append(Figure(f"one stream {name}, gate against {peer}", each[0], f"x, the worst of {wanted.rounds}"))
    return figures


def terminating(wanted: argparse.Namespace) -> list[Figure]:
    """TLS that ends at the gate: handshakes, and requests that it judges and writes a credential into."""
    shaken: dict[str, list[float]] = {"direct": [], "gate": []}
    asked: dict[str, list[float]] = {"direct": [], "gate": []}
    with way_out() as way:
        for number in range(wanted.rounds + 1):
            for who in shaken:
                on, place, pem = way.client(who), way.web[who], way.pem[who]
                taken = on.ask("handshakes", place, pem, 20)
                answered = on.ask("requests", place, pem, way.web_port, CLIENTS, 40)
                if number:
                    shaken[who] += taken
                    asked[who] += answered
    figures = []
    for what, taken_of, most in ((("handshake"), shaken, 6.0), (f"request of {CLIENTS} clients", asked, None)):
        for who, found in taken_of.items():
            target = most if who == "gate" else None
            figures.append(Figure(f"{what}, {who}", percentile(found, 50), f"ms p50 of {len(found)}", target))
            figures.append(Figure(f"{what}, {who}", percentile(found, 99), f"ms p99 of {len(found)}"))
        for percent, ratio in ((50, None), (99, None if what == "handshake" else 1.5)):
            times = percentile(taken_of["gate"], percent) / percentile(taken_of["direct"], percent)
            figures.append(Figure(f"{what}, gate against direct", times, f"x at p{percent}", ratio))
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
            kib, cpu_ms = told.recv()
            figures.append(Figure(f"our memory of an idle task with {what}", kib, f"KiB of {len(pidfds)}", most))
            figures.append(Figure(f"its gate from `await` to open, {what}", percentile(cpu_ms, 50), f"ms p50 of {len(pidfds)}"))
            figures.append(Figure(f"its gate from `await` to open, {what}", percentile(cpu_ms, 99), f"ms p99 of {len(pidfds)}"))
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
            Figure("a PostgreSQL lease, issue", percentile(issued, 50), f"ms p50 of {len(issued)}", 40),
            Figure("a PostgreSQL lease, issue", percentile(issued, 99), f"ms p99 of {len(issued)}"),
            Figure("a PostgreSQL lease, revoke", percentile(revoked, 50), f"ms p50 of {len(revoked)}", 30),
            Figure("a PostgreSQL lease, revoke", percentile(revoked, 99), f"ms p99 of {len(revoked)}"),
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
