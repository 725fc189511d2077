"""`scripts/bench gateway`: what the gateway itself adds to a call, and how it stands under many. See docs/benchmarks.md.

The gateway's own share of a call is what the client waited, less the stages of the record in which the box is made, the server
in it runs, and the box is removed. What is left: reading and judging the frame, the SDK, the durable record, the answer. The
time in which the gateway waits for a processor that boxes use is its share, too; so on a busy machine look at the processor time
of a call, which is each process's own.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from commands import CannotRunError
from figures import percentile
from gateway_client import Answered, GatewayClient, connected, cpu_ms, joined, listening, usage
from measured import Figure, document, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from lab import FUMEHOOD, Lab, children, close_lab, open_lab

_BOX_STAGES = ("make", "bind", "start", "run", "settle", "remove")
_BARE = """\
image: python
command: [python3, -I, -S, /workspace/bare_server.py]
tools: {allow: "*"}
filesystem: {workspace: ro}
limits: {memory: 64MiB, pids: 16, wall: 120s}
"""
_ROUNDS_TO_SETTLE = 5
# The same real server, kept for a client's calls, and started ahead for one call each.
_KINDS = {
    "kept in a session": "scope: session\n",
    "that stood by": "pool: {started: 2}\n",
}
_READY_S = 4.0
# A connection may have 64 requests under way.
_SLOW_OF_A_CONNECTION = 60


def main(words: Sequence[str]) -> int:
    """Measure what was asked for and print it. Status 1 when something could not run; no figure changes it."""
    wanted = _arguments(words)
    if os.geteuid() != 0:
        sys.stderr.write("bench: run me as root: boxes need it\n")
        return 1
    lab = open_lab("b")
    try:
        files = lab.workspace("bench")
        shutil.copy(Path(__file__).parent / "bare_server.py", files)
        (lab.folder / "bare.yaml").write_text(_BARE)
        with (lab.folder / "fumehood.yaml").open("a") as file:
            file.write(f"boxes: {wanted.slow + 16}\n")
        figures = anyio.run(_measure, lab, files, wanted)
    except CannotRunError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    finally:
        close_lab(lab)
    for line in table(figures):
        sys.stdout.write(line + "\n")
    if wanted.json is not None:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(document(figures))
    return 0


async def _measure(lab: Lab, files: Path, wanted: argparse.Namespace) -> list[Figure]:
    gateway = [str(FUMEHOOD), "gateway", "--engine", wanted.engine]
    bare = [*gateway, "--profile", str(lab.folder / "bare.yaml"), "--workspace", str(files)]
    environment = {**lab.env, **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {})}
    figures: list[Figure] = []
    one: list[Answered] = []
    eight: list[Answered] = []
    async with connected(bare, environment) as client:
        for _ in range(_ROUNDS_TO_SETTLE):
            await client.call("echo", text="warm")
        await anyio.sleep(1)
        figures.append(Figure("resident, idle worker", usage(client.pid)[0], "MiB", 110))
        ours = _processes(client)
        before = {name: cpu_ms(pid) for name, pid in ours.items()}
        one = await _calls(client, 1, wanted.calls, "echo", {"text": "x"})
        spent = {name: (cpu_ms(pid) - before[name]) / len(one) for name, pid in ours.items()}
        figures += [Figure(f"processor time of a call, {name}", ms, "ms") for name, ms in spent.items()]
        eight = await _calls(client, 8, wanted.calls, "echo", {"text": "x"})
        lists = [(await client.request("tools/list", {})).ms for _ in range(wanted.calls)]
        figures += _quantiles("a listing, nothing else under way", lists)
    place = lab.folder / "gateway.sock"
    async with listening(bare, environment, place) as pid, joined(place, pid) as client:
        for _ in range(_ROUNDS_TO_SETTLE):
            await client.call("echo", text="warm")
        async with AsyncExitStack() as stack:
            connections = math.ceil(wanted.slow / _SLOW_OF_A_CONNECTION)
            others = [await stack.enter_async_context(joined(place, pid)) for _ in range(connections)]
            figures += await _under_slow_calls(client, others, wanted.slow)
        figures += await _many(client, wanted.soak)
    async with connected([*gateway, "--profile", "mcp-server-time"], environment) as client:
        real = await _calls(client, 1, max(5, wanted.calls // 5), "get_current_time", {"timezone": "UTC"})
    figures += await _started(lab, _p50([each.ms for each in real]), gateway, environment, wanted.calls // 5)
    shares = _shares(lab, [*one, *eight, *real])
    for name, samples, targets in (
        ("own share, 1 client, bare server", one, (10.0, None)),
        ("own share, 8 clients, bare server", eight, (None, 25.0)),
        ("own share, 1 client, mcp-server-time", real, (10.0, None)),
    ):
        figures += _quantiles(name, [shares[each.task].own_ms for each in samples], targets)
        whole = _p50([each.ms for each in samples])
        figures.append(Figure(f"the whole call, {name.removeprefix('own share, ')}", whole, "ms p50"))
        figures += [
            Figure(f"of the share, {stage}", _p50([shares[each.task].stages_ms.get(stage, 0) for each in samples]), "ms p50")
            for stage in ("open", "verify", "close")
        ]
    return figures


async def _started(lab: Lab, fresh_ms: float, gateway: Sequence[str], environment: Mapping[str, str], calls: int) -> list[Figure]:
    """Calls of mcp-server-time whose server runs already, with rests in which another is started."""
    figures = [Figure("a call of mcp-server-time, started for it", fresh_ms, "ms p50")]
    for name, more in _KINDS.items():
        profile = lab.folder / f"time-{more[:4]}.yaml"
        profile.write_text(f"extends: mcp-server-time\n{more}")
        samples: list[float] = []
        async with connected([*gateway, "--profile", str(profile)], environment) as client:
            await client.request("tools/list", {})
            await client.call("get_current_time", timezone="UTC")
            for _ in range(max(5, calls)):
                await anyio.sleep(_READY_S)
                samples.append((await client.call("get_current_time", timezone="UTC")).ms)
        figures += _quantiles(f"a call of mcp-server-time, {name}", samples)
    return figures


def _processes(client: GatewayClient) -> dict[str, int]:
    """The pids of the three processes, told apart by their uids."""
    found = {"broker" if os.stat(f"/proc/{pid}").st_uid == 0 else "ledger": pid for pid in children(client.pid)}
    return {"worker": client.pid, **found}


async def _calls(
    client: GatewayClient, clients: int, calls: int, tool: str, arguments: Mapping[str, Any]
) -> list[Answered]:
    """`calls` calls of each of `clients` callers, who ask again as soon as they are answered."""
    found: list[Answered] = []

    async def caller() -> None:
        for _ in range(calls):
            found.append(await client.call(tool, **arguments))  # noqa: PERF401 - one after the other

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(caller)
    return found


async def _under_slow_calls(client: GatewayClient, others: Sequence[GatewayClient], count: int) -> list[Figure]:
    """A client's listings while `count` calls of the others' are under way, every one of which has begun in its box."""
    begun = [anyio.Event() for _ in range(count)]
    refused: list[str] = []

    async def slow(number: int, event: anyio.Event) -> None:
        try:
            await others[number % len(others)].call("wait", event, seconds=110)
        except CannotRunError as error:
            refused.append(str(error))
            event.set()

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number, event in enumerate(begun):
            tasks.start_soon(slow, number, event)
        with anyio.move_on_after(100) as waiting:
            for event in begun:
                await event.wait()
        spent_s = time.perf_counter() - started
        lists: list[float] = []
        while len(lists) < 100:
            lists += [(await client.request("tools/list", {})).ms]
            await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    if waiting.cancelled_caught:
        raise CannotRunError(f"{sum(not event.is_set() for event in begun)} of {count} slow calls had not begun after 100 s")
    running = count - len(refused)
    note = f"{len(refused)} more did not run: {refused[0][:120]}" if refused else ""
    found = _quantiles(f"a listing under {running} slow calls", lists, (None, 50.0), note)
    return [*found, Figure(f"{running} slow calls until all had begun", spent_s, "s")]


async def _many(client: GatewayClient, count: int) -> list[Figure]:
    """What `count` calls leave behind in each process: growth from after the first fifth to the end."""
    ours = _processes(client)
    first: dict[str, tuple[float, int]] = {}
    # Cancelled calls may still be on their way out.
    await anyio.sleep(3)
    started = time.perf_counter()
    for part in range(5):
        await _soak(client, count // 5)
        if part == 0:
            first = {name: usage(pid) for name, pid in ours.items()}
    spent_s = time.perf_counter() - started
    await anyio.sleep(1)
    figures = [Figure(f"{count} calls, 4 at a time", count / spent_s, "calls/s")]
    for name, pid in ours.items():
        resident, descriptors = usage(pid)
        figures.append(Figure(f"{name}: memory grown over the last {count * 4 // 5} calls", resident - first[name][0], "MiB"))
        figures.append(Figure(f"{name}: descriptors grown", descriptors - first[name][1], "", 0))
    return figures


async def _soak(client: GatewayClient, count: int) -> None:
    async def caller() -> None:
        for _ in range(count // 4):
            await client.call("echo", text="x")

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(caller)


@dataclass(frozen=True, slots=True)
class _Share:
    own_ms: float
    stages_ms: Mapping[str, float]


def _shares(lab: Lab, samples: Sequence[Answered]) -> dict[str, _Share]:
    """Each call's own share, by its task. Read when the gateways have ended."""
    done = lab.fumehood("tasks", "--json", "--limit", "1000000", timeout=120)
    if done.status != 0:
        raise CannotRunError(done.stderr)
    records = {record["task"]: record["timings_ms"] for record in done.said}
    shares = {}
    for sample in samples:
        timings = records[sample.task]
        box_ms = sum(timings.get(stage, 0.0) for stage in _BOX_STAGES)
        shares[sample.task] = _Share(sample.ms - box_ms, {**timings, "close": sample.ms - timings["total"]})
    return shares


def _quantiles(
    name: str, values: Sequence[float], targets: tuple[float | None, float | None] = (None, None), note: str = ""
) -> list[Figure]:
    return [
        Figure(name, percentile(values, 50), f"ms p50 of {len(values)}", targets[0], note),
        Figure(name, percentile(values, 99), f"ms p99 of {len(values)}", targets[1], note),
    ]


def _p50(values: Sequence[float]) -> float:
    return statistics.median(values)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench gateway", description="What the gateway adds to a call.")
    parser.add_argument("--calls", type=int, default=60, help="measured calls of one client (default 60)")
    parser.add_argument("--slow", type=int, default=60, help="slow calls at once, 60 of a connection (default 60)")
    parser.add_argument("--soak", type=int, default=200, help="calls that must leave nothing behind (default 200; 10000)")
    parser.add_argument("--engine", choices=("oci", "docker"), default="oci")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args(words)
