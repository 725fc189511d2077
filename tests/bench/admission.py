"""`scripts/bench admission`: what it costs that a call is provable. See docs/benchmarks.md.

Each part is a function that returns figures; `PARTS` names them, and `--only` chooses among them. A *record* is the record of one call:
it is durable when its opening and its closing were both answered, each after a commit with fsync, and has two entries in the chain.
Nothing needs root: the ledger is a real process over a real file, and the boxes are left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
from admitting import ARGUMENTS, admitted
from deciding import decisions
from figures import percentile
from ledgers_kept import STEPS, fill, mark, marked, size_of, write
from measured import Figure, document, table
from screened import screened

from fumehood.keys import KeyFolder
from fumehood.ledger.audit import Audit
from fumehood.store.database import opened
from ledgers import running

_WRITERS = 8
_MILLION = 1_000_000


def main(words: Sequence[str]) -> int:
    """Measure what was asked for and print it; no figure changes the status."""
    wanted = _arguments(words)
    about = {"cores": os.cpu_count(), "kernel": platform.release(), "load": round(os.getloadavg()[0], 2)}
    figures: list[Figure] = []
    for name in wanted.only or [each for each in PARTS if each != "million"]:
        figures += PARTS[name](wanted)
    sys.stdout.write(" · ".join(f"{name} {value}" for name, value in about.items()) + "\n\n")
    for line in table(figures):
        sys.stdout.write(line + "\n")
    if wanted.json is not None:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(document(figures, about))
    return 0


def durable(wanted: argparse.Namespace) -> list[Figure]:
    """Calls that eight writers open and close, through one worker's socket, waiting for every answer."""
    with _folder(wanted) as folder, running(folder) as ledger:
        used = _processor_s(ledger.process.pid)
        calls, opens, closes, all_calls = anyio.run(write, ledger, _WRITERS, wanted.seconds)
        spent = _processor_s(ledger.process.pid) - used
    return [
        Figure("durable records, opened and closed by 8 writers", calls / wanted.seconds, "/s", least=1000),
        Figure("the ledger's processor time for one of them", spent / all_calls * 1e3, "ms"),
        Figure("opening one of them", percentile(opens, 50), f"ms p50 of {calls}"),
        Figure("opening one of them", percentile(opens, 99), "ms p99"),
        Figure("closing one of them", percentile(closes, 50), f"ms p50 of {calls}"),
        Figure("closing one of them", percentile(closes, 99), "ms p99"),
    ]


def verify(wanted: argparse.Namespace) -> list[Figure]:
    """`audit verify` over calls with a whole timeline each."""
    with _folder(wanted) as folder:
        with opened(folder) as database:
            fill(database, folder, wanted.calls, steps=True)
        return _audited(folder, f"of {wanted.calls} calls with {len(STEPS)} steps each")


def million(wanted: argparse.Namespace) -> list[Figure]:
    """Appending to a store with a million records beside an empty one, in turns."""
    store: Path = wanted.store / "ledger" if wanted.store is not None else Path(tempfile.mkdtemp(prefix="fumehood-bench-")) / "ledger"
    store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if marked(store) < _MILLION:
        shutil.rmtree(store, ignore_errors=True)
        with opened(store) as database:
            fill(database, store, _MILLION, steps=False, tell=_progress)
        mark(store, _MILLION)
    times: dict[str, list[float]] = {"an empty store": [], "a million records": []}
    with _folder(wanted) as empty:
        for turn in range(wanted.rounds):
            for name, folder in (("an empty store", empty / str(turn) / "ledger"), ("a million records", store)):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with running(folder, runtime=f"bench{time.time_ns()}") as ledger:
                    _, opens, closes, _ = anyio.run(write, ledger, 1, wanted.seconds / wanted.rounds)
                times[name] += [*opens, *closes]
    p99 = {name: percentile(found, 99) for name, found in times.items()}
    figures = [
        Figure(f"an append to {name}", percentile(found, share), f"ms p{share} of {len(found)}")
        for name, found in times.items()
        for share in (50, 99)
    ]
    ratio = p99["a million records"] / p99["an empty store"]
    figures.append(Figure("an append to a million records against an empty store", ratio, "x at p99", 2))
    figures.append(Figure("the store on disk", size_of(store) / _MILLION, "bytes a call"))
    figures += _audited(store, "of a million calls without steps")
    if wanted.store is None:
        shutil.rmtree(store.parent)
    return figures


def before(wanted: argparse.Namespace) -> list[Figure]:
    """Everything that a signed call of 10 KB goes through before its box, with a ledger that makes nonce and record durable."""
    with _folder(wanted) as folder:
        found = admitted(folder, wanted.requests)
    return [
        Figure("the envelope of a 10 KB call, without its nonce's commit", percentile(found["the envelope alone"], 50), "ms p50", 1),
        Figure("the envelope of a 10 KB call, without its nonce's commit", percentile(found["the envelope alone"], 99), "ms p99"),
        Figure("read, verify, nonce and record of a signed 10 KB call", percentile(found["until it is verified"], 50), "ms p50", 3),
        Figure("read, verify, nonce and record of a signed 10 KB call", percentile(found["until it is verified"], 99), "ms p99", 8),
        Figure("the same, searched for secrets and decided", percentile(found["the whole"], 50), "ms p50", 5),
        Figure("the same, searched for secrets and decided", percentile(found["the whole"], 99), "ms p99"),
    ]


def policies(wanted: argparse.Namespace) -> list[Figure]:
    """One decision: both actions, the call's projection and the answer's reading, with the set parsed already."""
    found = decisions(wanted.requests, ARGUMENTS)
    return [
        Figure(f"one decision, {name}, a 10 KB call", percentile(times, quantile), f"ms p{quantile}", most)
        for name, times in found.items()
        for quantile, most in ((50, 1.5), (99, None))
    ]


def secrets(wanted: argparse.Namespace) -> list[Figure]:
    """What is searched for secrets and hidden characters in every call."""
    most = {"10 KB of arguments, 122 texts": 0.3}
    return [Figure(f"searching {what}", ms, "ms p50", most.get(what)) for what, ms in screened(wanted.rounds * 4).items()]


PARTS: Mapping[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "before": before, "policy": policies, "durable": durable, "verify": verify, "secrets": secrets, "million": million,
}  # fmt: skip


def _processor_s(pid: int) -> float:
    """What a process has used: what it does not depend on is who else runs."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _audited(folder: Path, what: str) -> list[Figure]:
    with opened(folder) as database, database.read() as conn:
        audit = Audit(conn, {key.kid: key for key in KeyFolder(folder).public()})
        began, used = time.perf_counter(), time.process_time()
        faults = sum(1 for _ in audit.faults())
        whole, spent = time.perf_counter() - began, time.process_time() - used
    if faults:
        raise AssertionError(f"{faults} faults in a ledger that nobody edited")
    summary = audit.summary
    return [
        Figure(f"audit verify {what}, entries", summary.entries / whole, "/s", least=20_000),
        Figure(f"audit verify {what}, closed calls", summary.calls / whole, "/s"),
        Figure(f"audit verify {what}, entries by processor time", summary.entries / spent, "/s"),
    ]


@contextmanager
def _folder(wanted: argparse.Namespace) -> Iterator[Path]:
    """A folder on the disk that is to be measured: /tmp may be memory."""
    with tempfile.TemporaryDirectory(prefix="fumehood-bench-", dir=wanted.disk) as folder:
        yield Path(folder) / "ledger"


def _progress(done: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {_MILLION} ")


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench admission", description="What evidence costs a call.")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part; may be repeated; `million` takes half an hour")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long writers write (default 10)")
    parser.add_argument("--requests", type=int, default=500, help="signed requests for `before` (default 500)")
    parser.add_argument("--calls", type=int, default=20_000, help="closed calls for `verify` (default 20,000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of what is compared (default 5)")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on the disk to measure (default /var/tmp)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the store of `million` there, and use one that is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args(words)
