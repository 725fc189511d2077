"""`scripts/bench`: what a call costs here, beside what it would cost without us. See docs/benchmarks.md.

Each contender runs once unmeasured, then once in every round; the order within a round is shuffled (from a fixed seed), so
that drift meets all alike and nobody always follows the same neighbour. A contender that cannot run is named with its reason
and makes the exit status 1; no time ever does. `scripts/bench gateway`, `egress` and `admission` are other benches: see those modules.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from commands import CannotRunError
from contenders import ENTRIES, Contender, contenders
from figures import Figures, Sample, figures

from fumehood.faults import FumehoodError

_SEED = 2026


def main() -> int:
    """Measure, print, and say by the exit status whether every contender could run."""
    wanted = _arguments()
    if os.geteuid() != 0:
        sys.stderr.write("bench: run me as root: boxes need it, bare runtimes too\n")
        return 1
    names = [name for name in ENTRIES if not wanted.only or name in wanted.only]
    try:
        with tempfile.TemporaryDirectory(prefix="fumehood-bench-") as folder, contenders(names, Path(folder)) as taking_part:
            samples, failed = measure(taking_part, wanted.rounds)
    except (CannotRunError, FumehoodError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    import printing  # rich, when nothing is measured any more

    about = printing.machine()
    lines = [_line(name, samples) for name in names if name in samples]
    printing.show(lines, failed, about)
    if wanted.json is not None:
        times = {name: [sample.ms for sample in found] for name, found in samples.items()}
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(printing.document(lines, failed, about, times), indent=1) + "\n")
    return 1 if failed else 0


def measure(taking_part: Sequence[Contender], rounds: int) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """The samples of every contender that could run in all rounds, and why the others could not."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in taking_part}
    failed: dict[str, str] = {}
    order = list(taking_part)
    shuffled = random.Random(_SEED)  # noqa: S311 - an order, no secret
    for number in range(rounds + 1):
        shuffled.shuffle(order)
        for contender in order:
            if contender.name in failed:
                continue
            gc.collect()
            try:
                sample = contender.once()
            except CannotRunError as error:
                failed[contender.name] = str(error)
                continue
            if number > 0:  # the first is the warm-up: caches, connections, compiled filters
                samples[contender.name].append(sample)
        if sys.stderr.isatty():
            sys.stderr.write(f"\rround {number}/{rounds} ")
    return {name: found for name, found in samples.items() if name not in failed}, failed


def _line(name: str, samples: dict[str, list[Sample]]) -> Figures:
    entry = ENTRIES[name]
    theirs = samples.get(entry.peer, ()) if entry.peer is not None else ()
    return figures(name, samples[name], peer=entry.peer, peer_samples=theirs, target=entry.target)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Compare fumehood's calls with their peers.")
    parser.add_argument("--rounds", type=_positive, default=30, help="measured runs of each contender (default 30)")
    parser.add_argument("--only", action="append", choices=list(ENTRIES), help="only this contender; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and samples there as well")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    if sys.argv[1:2] == ["gateway"]:
        import gateway

        sys.exit(gateway.main(sys.argv[2:]))
    if sys.argv[1:2] == ["egress"]:
        import egress

        sys.exit(egress.main(sys.argv[2:]))
    if sys.argv[1:2] == ["admission"]:
        import admission

        sys.exit(admission.main(sys.argv[2:]))
    sys.exit(main())
