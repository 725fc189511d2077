"""`scripts/bench egress`: what a box's way out costs. See docs/benchmarks.md.

Each part is a function that returns figures; `PARTS` names them, and `--only` chooses among them. The parts here are about the gate's
end inside a box: how long it takes to make in a network namespace that is there, and what memory an idle one holds in the kernel.
`way_parts.py` has those that go through a whole gate.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from commands import CannotRunError
from figures import percentile
from measured import Figure, document, table
from namespaces import close_all, namespaces, pid_of
from way_parts import bulk, connecting, idle, leasing, relaying, terminating

from fumehood.broker import network
from fumehood.ports import Listen

_LISTENS = (Listen(v4="198.18.0.2", v6="fd53::2", port=443),)


def main(words: Sequence[str]) -> int:
    """Measure what was asked for and print it. Status 1 when something could not run; no figure changes it."""
    wanted = _arguments(words)
    if os.geteuid() != 0:
        sys.stderr.write("bench: run me as root: boxes need it\n")
        return 1
    about = {"cores": os.cpu_count(), "kernel": platform.release(), "load": round(os.getloadavg()[0], 2)}
    figures: list[Figure] = []
    try:
        for name in wanted.only or PARTS:
            figures += PARTS[name](wanted)
    except CannotRunError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    sys.stdout.write(" · ".join(f"{name} {value}" for name, value in about.items()) + "\n\n")
    for line in table(figures):
        sys.stdout.write(line + "\n")
    if wanted.json is not None:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(document(figures, about))
    return 0


def preparation(wanted: argparse.Namespace) -> list[Figure]:
    """How long the broker needs for a gate in a namespace that is there, and to read it back."""
    whole: list[float] = []
    spent: list[float] = []
    look: list[float] = []
    held: list[int] = []
    with namespaces(wanted.namespaces) as pidfds:
        for pidfd in pidfds:
            began, used = time.perf_counter(), time.process_time()
            held += network.open_gate(pidfd, _LISTENS)[1]
            whole.append((time.perf_counter() - began) * 1e6)
            spent.append((time.process_time() - used) * 1e6)
        for pidfd in pidfds:
            began = time.perf_counter()
            network.gather_gate(pid_of(pidfd), pidfd)
            look.append((time.perf_counter() - began) * 1e6)
        close_all(held)
    count = len(whole)
    return [
        Figure("a gate's end in a namespace that is there", percentile(whole, 50), f"us p50 of {count}", 600),
        Figure("a gate's end in a namespace that is there", percentile(whole, 99), f"us p99 of {count}"),
        Figure("a gate's end in a namespace that is there, the fastest", min(whole), "us"),
        Figure("its processor time", percentile(spent, 50), f"us p50 of {count}"),
        Figure("its read-back", percentile(look, 50), f"us p50 of {count}"),
    ]


def memory(wanted: argparse.Namespace) -> list[Figure]:
    """What the kernel holds for an idle gate, and for the namespace that the box has without one."""
    bare = _kernel_kib()
    with namespaces(wanted.namespaces) as pidfds:
        with_namespaces = _kernel_kib()
        held: list[int] = []
        for pidfd in pidfds:
            held += network.open_gate(pidfd, _LISTENS)[1]
        with_gates = _kernel_kib()
        close_all(held)
    count = wanted.namespaces
    return [
        Figure("kernel memory of a namespace and its idle gate", (with_gates - bare) / count, f"KiB of {count}", 300),
        Figure("of that, the gate", (with_gates - with_namespaces) / count, "KiB"),
    ]


PARTS: Mapping[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "preparation": preparation, "memory": memory, "idle": idle, "connecting": connecting, "relaying": relaying,
    "terminating": terminating, "bulk": bulk, "leasing": leasing,
}  # fmt: skip


def _kernel_kib() -> float:
    """What the kernel holds for itself: slabs, per-processor memory, what it mapped."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    told = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return sum(told[name] for name in ("Slab", "Percpu", "VmallocUsed"))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench egress", description="What a box's way out costs.")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--namespaces", type=int, default=100, help="namespaces for preparation and memory (default 100)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of what is compared (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args(words)
