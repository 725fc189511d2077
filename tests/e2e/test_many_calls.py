"""Calls of every ending, one behind the other and several at a time, leave a gateway's processes, and the host, as they were.

`scripts/soak calls` has 10,000.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaotic import ENDINGS, PROFILE, SERVER, Chaos, cancel, judged, records, told_of
from lab import Lab, children, lab_for, needs_oci, status
from live_gateway import LiveGateway, configure, live_gateway

pytestmark = pytest.mark.root
CALLS = int(os.environ.get("FUMEHOOD_SOAK_CALLS", "200"))
AT_A_TIME = 4
# However many calls: it was 11 MiB after 10,000. The broker's table of interned strings doubles once, by 940, and then stays; the ledger's pages of the database
# are kept up to 2 MiB.
MOST_KIB = {"broker": 3072, "worker": 3072, "ledger": 3072, "operator": 256}
# A listing beside four calls takes one more id range, and each range's two mappings are kept (`idmaps.py`).
MORE_FILES = 2
BARE = Path(__file__).resolve().parents[1] / "bench" / "bare_server.py"
BARE_PROFILE = """\
command: [python3, -I, -S, /workspace/bare_server.py]
tools: {allow: "*"}
filesystem: {workspace: ro}
limits: {memory: 64MiB, pids: 16}
"""
# Of these a call takes a whole `wall`.
SELDOM = {"wall": 0.02, "memory": 0.1, "die": 0.1, "refused": 0.1, "cancelled": 0.1, "error": 0.1}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "m") as made:
        needs_oci()
        yield made
        assert made.left() == []


def test_many_calls_leave_memory_and_descriptors_flat(lab: Lab) -> None:
    workspace = lab.workspace("bare")
    shutil.copy(BARE, workspace)
    server = f"bare: {{profile: {lab.profile('bare', BARE_PROFILE)}, workspace: {workspace}, engine: oci}}"
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}")) as gateway:
        _call(gateway, CALLS // 4)  # as many threads and heaps as there will be
        before = _held(gateway)
        _call(gateway, CALLS)
        after = _held(gateway)
        assert gateway.end() == 0
    for name, (kib, descriptors) in after.items():
        assert kib - before[name][0] <= MOST_KIB[name], f"{name}: {before[name]} -> {after[name]}"
        assert descriptors <= before[name][1] + MORE_FILES, f"{name}: {before[name]} -> {after[name]}"


def test_calls_of_every_ending_leave_the_host_flat_and_their_records_say_so(lab: Lab) -> None:
    seed = secrets.randbelow(2**32)
    chance = random.Random(seed)  # noqa: S311 - endings, not secrets
    workspace = lab.workspace("mixed")
    shutil.copy(SERVER, workspace)
    server = f"mixed: {{profile: {lab.profile('mixed', PROFILE)}, workspace: {workspace}, engine: oci}}"
    soak = Chaos(lab, "oci", seed)
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}")) as gateway:
        _mixed(gateway, soak, chance, CALLS // 4)
        gateway.until(lambda: _host(lab, gateway)["boxes"] == 0)  # a cancelled call is not waited for
        before, host = _held(gateway), _host(lab, gateway)
        _mixed(gateway, soak, chance, CALLS)
        gateway.until(lambda: _host(lab, gateway) == host)
        after = _held(gateway)
        assert gateway.end() == 0
    for name, (kib, descriptors) in after.items():
        assert kib - before[name][0] <= MOST_KIB[name], f"{name}: {before[name]} -> {after[name]}, seed {seed}"
        assert descriptors <= before[name][1] + MORE_FILES, f"{name}: {before[name]} -> {after[name]}, seed {seed}"
    assert judged(soak.told, records(lab)) == [], seed
    if CALLS >= 200:
        assert {"ok", "killed wall", "killed memory", "failed server_died", "refused tool_not_allowed"} <= soak.ended.keys(), (seed, soak.ended)
    print(f"{CALLS} calls: {dict(soak.ended)}; {before} -> {after}; seed {seed}")  # noqa: T201 - what `scripts/soak` shows


def test_a_server_that_ran_out_of_memory_is_never_told_as_one_that_died(lab: Lab) -> None:
    workspace = lab.workspace("memory")
    shutil.copy(SERVER, workspace)
    server = f"memory: {{profile: {lab.profile('memory', PROFILE)}, workspace: {workspace}, engine: oci}}"
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}")) as gateway:
        numbers = [gateway.send("tools/call", name="end", arguments={"how": "memory"}) for _ in range(8)]
        told = [told_of(gateway.answer(number)) for number in numbers]
        assert gateway.end() == 0
    assert {(each.result, each.reason) for each in told if each is not None} == {("killed", "memory")}


def _mixed(gateway: LiveGateway, soak: Chaos, chance: random.Random, count: int) -> None:
    for _ in range(count // AT_A_TIME):
        numbers = []
        for _ in range(AT_A_TIME):
            ending = next((name for name, share in SELDOM.items() if chance.random() < share), "ok")
            number = gateway.send(
                "tools/call", name="forbidden" if ending == "refused" else "end", arguments={**ENDINGS[ending][1](chance), "pause": 0}
            )
            if ending == "cancelled":
                cancel(gateway, number)
            else:
                numbers.append(number)
        for number in numbers:
            told = told_of(gateway.answer(number))
            assert told is not None
            soak.told.append(told)
            soak.ended[f"{told.result} {told.reason or ''}".strip()] += 1


def _host(lab: Lab, gateway: LiveGateway) -> Counter[str]:
    """How much of the runtime's is on the host while no call runs."""
    (runtime,) = [path.name for path in (lab.state / "run").iterdir()]
    ours = [gateway.process.pid, *children(gateway.process.pid)]
    return Counter(
        cgroups=sum(f"/fumehood/{runtime}/" in tree for tree, _, _ in os.walk("/sys/fs/cgroup")),
        mounts=sum(len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) for pid in ours),
        folders=len([*(lab.state / "run" / runtime).iterdir()]),
        boxes=len([*(lab.state / "ids").iterdir()]),
        processes=len(gateway.ours()),
    )


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
