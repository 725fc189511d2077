"""The broker's memory under what grew it: a table of the interpreter's that each thread in turn has to renew."""

from __future__ import annotations

import subprocess
import sys

_BEHAVE = """
import queue, sys, threading
from fumehood.broker.heap import keep_small

def resident_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

def renew(number):
    for each in range(60_000):
        sys.intern(f"task-{number}-{each}")
    renewed.put(number)
    ended.wait()  # alive, so that nobody else is given its heap

if sys.argv[1] == "kept small":
    keep_small()
renewed, ended, sizes = queue.SimpleQueue(), threading.Event(), []
held = [sys.intern(f"kept {each}") for each in range(25_000)]  # the table has the size of a broker's
for number in range(10):
    threading.Thread(target=renew, args=(number,)).start()
    renewed.get()
    sizes.append(resident_kib())
ended.set()
print(sizes[-1] - sizes[1])
"""


def _grown_kib(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _BEHAVE, how], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def test_what_threads_renew_in_turn_leaves_nothing_behind() -> None:
    assert _grown_kib("kept small") < 1024
    assert _grown_kib("as it comes") > 4096, "and the C library by itself leaves much, or this test shows nothing"
