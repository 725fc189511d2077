"""`scripts/chaos`: rounds of calls in which something is killed, and what came of them. Exit status 0 only if nothing was wrong.

A dockerd is only restarted where it is one of our own, which is made for this run and taken away after it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chaotic import Chaos
from lab import close_lab, docker_answers, open_lab
from own_docker import own_docker

# Piped output has no width of its own: wide enough for whole lines.
console = Console() if sys.stdout.isatty() else Console(width=130)


def main() -> int:
    wanted = _arguments()
    if os.geteuid() != 0:
        sys.stderr.write("chaos: run me as root: boxes need it\n")
        return 1
    engines = [wanted.engine] if wanted.engine else ["oci", *(["docker"] if docker_answers() else [])]
    found = [_run(engine, wanted.rounds, wanted.seed) for engine in engines]
    for chaos in found:
        console.print(_table(chaos))
        for problem in chaos.problems:
            console.print(problem, markup=False, highlight=False)
    if wanted.json is not None:
        wanted.json.write_text(json.dumps([chaos.summary() for chaos in found], indent=1) + "\n")
    return 1 if any(chaos.problems for chaos in found) else 0


def _run(engine: str, rounds: int, seed: int) -> Chaos:
    console.print(f"{engine}: {rounds} rounds, seed {seed}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        lab = open_lab(f"c{engine[0]}")
        docker = stack.enter_context(own_docker("python")) if engine == "docker" else None
        chaos = Chaos(lab, engine, seed, docker)
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task(engine, total=rounds)
            try:
                for done in chaos.rounds(rounds):
                    progress.update(bar, completed=done, description=f"{engine}: {len(chaos.problems)} problems")
            except KeyboardInterrupt:
                console.print("interrupted: what was done until then is judged")
        chaos.judge()
    if chaos.problems:
        console.print(f"what was found lies in {lab.folder}")
    else:
        close_lab(lab)
    return chaos


def _table(chaos: Chaos) -> Table:
    table = Table("what", "how often", title=f"{chaos.engine}, seed {chaos.seed}", title_justify="left")
    for name, count in sorted(chaos.killed.items()):
        table.add_row(f"killed: {name}", str(count))
    for name, count in sorted(chaos.missed.items()):
        table.add_row(f"nothing to kill: {name}", str(count))
    for name, count in chaos.ended.most_common():
        table.add_row(f"told: {name}", str(count))
    table.add_row("not answered, the gateway was killed", str(chaos.unanswered))
    table.add_row("rounds", str(chaos.done))
    table.add_row("gateways", str(chaos.gateways))
    table.add_row("problems", str(len(chaos.problems)), style="green" if not chaos.problems else "red")
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["oci", "docker"], help="one engine; default: both, if a Docker engine answers")
    parser.add_argument("--rounds", type=int, default=200, help="rounds on each engine (200)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="where all chance comes from")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was counted as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
