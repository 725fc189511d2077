"""The table for people and the document for machines."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contenders import ENTRIES
from figures import Figures, bar
from rich.console import Console
from rich.table import Table

SCHEMA = 1
_BAR_WIDTH = 16
_WIDTH = 160


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "system": release.get("PRETTY_NAME", "").strip('"'),
        "python": platform.python_version(),
        "crun": _first_line("crun", "--version"),
        "runc": _first_line("runc", "--version"),
        "docker": _first_line("docker", "version", "--format", "{{.Server.Version}}"),
        "load": round(os.getloadavg()[0], 2),
    }


def document(
    lines: Sequence[Figures], failed: Mapping[str, str], about: Mapping[str, Any], samples: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The object that --json writes: figures, and the samples they were made from, in the order of the rounds."""
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": dict(about),
        "contenders": [asdict(line) for line in lines],
        "samples_ms": {name: [round(value, 3) for value in values] for name, values in samples.items()},
        "could_not_run": dict(failed),
    }


def show(lines: Sequence[Figures], failed: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Print everything. A figure that a narrow terminal would cut off is worth a wrapped line."""
    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    console.print(" · ".join(f"{name} {value}" for name, value in about.items()), style="dim")
    console.print(_comparison(lines))
    if any(line.stages_ms for line in lines):
        console.print(_stages([line for line in lines if line.stages_ms]))
    for name, why in failed.items():
        console.print(f"could not run: {name}: {why}", style="bold red", markup=False)


def _comparison(lines: Sequence[Figures]) -> Table:
    table = Table(title="One call from start to removed (ms)", title_justify="left")
    for heading in ("contender", "what"):
        table.add_column(heading, no_wrap=True)
    for heading in ("n", "min", "p50", "p99", "peer", "ratio", "paired", "at p99", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    longest = max((line.p50_ms for line in lines), default=0.0)
    for line in lines:
        table.add_row(
            line.name, ENTRIES[line.name].what, str(line.n), f"{line.min_ms:.1f}", f"{line.p50_ms:.1f}", f"{line.p99_ms:.1f}",
            line.peer or "", _times(line.ratio_p50), _times(line.ratio_paired), _times(line.ratio_p99), _verdict(line),
            bar(line.p50_ms, longest, _BAR_WIDTH),
        )  # fmt: skip
    return table


def _stages(lines: Sequence[Figures]) -> Table:
    names = list(dict.fromkeys(name for line in lines for name in line.stages_ms))
    table = Table(title="Where our calls spend it (median ms of each stage)", title_justify="left")
    table.add_column("contender", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(line.name, *(f"{line.stages_ms[name]:.1f}" if name in line.stages_ms else "" for name in names))
    return table


def _verdict(line: Figures) -> str:
    if line.target is None:
        return ""
    if line.met is None:
        return f"{line.target} ?"
    added = f" ({line.more_ms:+.0f})" if line.target.startswith("<= +") and line.more_ms is not None else ""
    return f"{line.target}{added} {'[green]yes[/]' if line.met else '[red]no[/]'}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _first_line(*argv: str) -> str | None:
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.splitlines()[0].removeprefix(f"{argv[0]} version ") if said.strip() else None
