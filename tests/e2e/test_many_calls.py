"""Calls, one behind the other and several at a time, leave a gateway's three processes as they were. `scripts/soak calls` has 10,000."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, children, lab_for, needs_oci, status
from live_gateway import LiveGateway, configure, live_gateway

pytestmark = pytest.mark.root
CALLS = int(os.environ.get("FUMEHOOD_SOAK_CALLS", "200"))
AT_A_TIME = 4
# However many calls: it was 11 MiB after 10,000. The broker's table of interned strings doubles once, by 940, and then stays; the ledger's pages of the database
# are kept up to 2 MiB.
MOST_KIB = {"broker": 3072, "worker": 3072, "ledger": 3072, "operator": 256}
BARE = Path(__file__).resolve().parents[1] / "bench" / "bare_server.py"
PROFILE = """\
command: [python3, -I, -S, /workspace/bare_server.py]
tools: {allow: "*"}
filesystem: {workspace: ro}
limits: {memory: 64MiB, pids: 16}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "m") as made:
        needs_oci()
        yield made
        assert made.left() == []


def test_many_calls_leave_memory_and_descriptors_flat(lab: Lab) -> None:
    workspace = lab.workspace("bare")
    shutil.copy(BARE, workspace)
    server = f"bare: {{profile: {lab.profile('bare', PROFILE)}, workspace: {workspace}, engine: oci}}"
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}")) as gateway:
        _call(gateway, CALLS // 4)  # as many threads and heaps as there will be
        before = _held(gateway)
        _call(gateway, CALLS)
        after = _held(gateway)
        assert gateway.end() == 0
    for name, (kib, descriptors) in after.items():
        assert kib - before[name][0] <= MOST_KIB[name], f"{name}: {before[name]} -> {after[name]}"
        assert descriptors <= before[name][1], f"{name}: {before[name]} -> {after[name]}"


def _call(gateway: LiveGateway, count: int) -> None:
    for _ in range(count // AT_A_TIME):
        for number in [gateway.send("tools/call", name="echo", arguments={"text": "x"}) for _ in range(AT_A_TIME)]:
            assert gateway.answer(number)["result"]["content"][0]["text"] == "x"


def _held(gateway: LiveGateway) -> dict[str, tuple[int, int]]:
    """Of each process its memory in KiB, without files' pages, and its open descriptors."""
    pids = {"worker": gateway.process.pid, "operator": gateway.operator()}
    for pid in set(children(gateway.process.pid)) - set(pids.values()):
        pids["broker" if os.stat(f"/proc/{pid}").st_uid == 0 else "ledger"] = pid
    assert set(pids) == set(MOST_KIB)
    return {
        name: (int(status(pid)["RssAnon"].split()[0]), len(os.listdir(f"/proc/{pid}/fd"))) for name, pid in pids.items()
    }
