"""How many boxes this host bears at once, by what their limits add up to.

A box's limits are a promise that it may use so much, not that it will: memory is promised once, because there is no swap to give way,
processor time `CPU_SHARES` times over, because who does not get it only waits. What is kept back is for everybody else on the host.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fumehood.turns import Capacity

CPU_SHARES = 64
_KEPT_BACK = 8  # an eighth of the memory and of the pids


def capacity(boxes: int) -> Capacity:
    """Of this host, where `boxes` are configured."""
    import psutil  # only who makes two boxes at once needs it

    memory_bytes = int(psutil.virtual_memory().total)
    pids = min(_number("/proc/sys/kernel/pid_max"), _number("/proc/sys/kernel/threads-max"))
    return Capacity(
        boxes=boxes,
        memory_bytes=memory_bytes - memory_bytes // _KEPT_BACK,
        cpu=float(CPU_SHARES * (psutil.cpu_count() or 1)),
        pids=max(0, pids - pids // _KEPT_BACK - len(psutil.pids())),
    )


def fields(boxes: int) -> dict[str, Any]:
    """For the worker."""
    return asdict(capacity(boxes))


def _number(path: str) -> int:
    return int(Path(path).read_text())
