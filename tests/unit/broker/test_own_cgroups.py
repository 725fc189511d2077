"""Which part of each cgroup tree is this user's, from what /proc says; and making room in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fumehood.broker import own_cgroups
from fumehood.broker.cgroups import Trees

ROOT = Path("/sys/fs/cgroup")
V2 = "24 23 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
OWN_V1 = """\
9:name=systemd:/user.slice
8:pids:/ada
6:freezer:/
4:memory:/jobs/ada
1:cpu,cpuacct:/ada
0::/ada
"""


def test_on_v2_it_is_the_cgroup_we_are_in() -> None:
    own = own_cgroups.parse(V2, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n")
    assert own == own_cgroups.Own({}, ROOT / "user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope")


def test_on_v1_it_is_a_folder_in_each_tree_of_a_controller() -> None:
    own = own_cgroups.parse(V1, OWN_V1)
    assert own.v1 == {
        "cpu": ROOT / "cpu,cpuacct/ada", "cpuacct": ROOT / "cpu,cpuacct/ada", "memory": ROOT / "memory/jobs/ada", "pids": ROOT / "pids/ada",
        "freezer": ROOT / "freezer",
    }  # fmt: skip
    assert own.v2 == ROOT / "unified/ada"


def test_in_a_container_the_mount_shows_a_part_of_the_tree() -> None:
    bound = V2.replace("0:22 / ", "0:22 /docker/abc ")
    assert own_cgroups.parse(bound, "0::/docker/abc/ada\n").v2 == ROOT / "ada"
    assert own_cgroups.parse(bound, "0::/docker/abc\n").v2 == ROOT
    for elsewhere in ("0::/docker/abcd/ada\n", "0::/other\n"):
        assert own_cgroups.parse(bound, elsewhere).v2 is None


def test_a_host_without_cgroups_has_none() -> None:
    assert own_cgroups.parse("", "") == own_cgroups.Own({}, None)


@pytest.mark.parametrize(("missing", "word"), [({}, "memory, pids, cpu"), ({"memory": ROOT, "cpu": ROOT}, "of pids was")])
def test_what_is_missing_is_named_with_its_remedy(missing: dict[str, Path], word: str) -> None:
    detail, remedy = own_cgroups.explain(Trees(missing, None, frozenset()))
    assert word in detail
    assert "Delegate=yes" in remedy


def test_our_own_processes_make_room_and_strangers_are_never_moved(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("41\n42\n77\n")
    own_cgroups.make_room(Trees({}, tmp_path, frozenset({"memory", "pids", "cpu"})), {42, 99}.__contains__)
    assert (tmp_path / "fumehood.own" / "cgroup.procs").read_text() == "42"


def test_a_tree_without_our_controllers_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    own_cgroups.make_room(Trees({}, tmp_path, frozenset({"hugetlb"})), lambda _: True)
    own_cgroups.make_room(Trees({}, None, frozenset()), lambda _: True)
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.procs"]
