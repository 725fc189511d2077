"""Cgroup trees of v1, v2 and hybrid hosts, and groups in folders that look like them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fumehood.broker import cgroups
from fumehood.broker.cgroups import Group, Trees, parse_trees
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

V2 = "24 23 0:22 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
"""
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
ROOT = Path("/sys/fs/cgroup")


def trees_of(mountinfo: str, controllers: str = "") -> Trees:
    v1, v2 = parse_trees(mountinfo)
    return Trees(v1, v2, frozenset(controllers.split()))


def test_a_v2_host_has_one_tree() -> None:
    trees = trees_of(V2, "cpu io memory pids")
    assert (trees.v2, trees.missing()) == (ROOT, [])
    assert trees.folders("fumehood/r/t") == {"v2": ROOT / "fumehood/r/t"}
    assert trees.everywhere("x") == [ROOT / "x"]


def test_a_v1_host_has_a_tree_a_controller() -> None:
    trees = trees_of(V1)
    assert (trees.v2, trees.missing()) == (None, [])
    shared = ROOT / "cpu,cpuacct/g"
    assert trees.folders("g") == {
        "memory": ROOT / "memory/g", "pids": ROOT / "pids/g", "cpu": shared, "cpuacct": shared, "freezer": ROOT / "freezer/g",
    }  # fmt: skip
    # runc makes its own group in every tree, those that we need nothing of included.
    assert {ROOT / "freezer/g", ROOT / "systemd/g"} <= set(trees.everywhere("g"))


def test_a_hybrid_host_has_both() -> None:
    trees = trees_of(HYBRID)
    assert trees.missing() == []
    assert trees.folders("g")["v2"] == ROOT / "unified/g"


@pytest.mark.parametrize("mountinfo", ["", V2, "32 31 0:29 / /c rw - cgroup cgroup rw,memory\n"])
def test_a_limit_that_no_tree_can_hold_refuses_the_box(mountinfo: str) -> None:
    trees = trees_of(mountinfo)
    assert "pids" in trees.missing()
    with pytest.raises(BoxFailed) as caught:
        Group.make(trees, "fumehood/r/t", cpu=1, memory_bytes=2**29, pids=8)
    assert caught.value.reason is Reason.UNENFORCEABLE


def test_lines_of_other_file_systems_are_not_taken_for_trees() -> None:
    assert parse_trees("1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /tmp/cgroup rw - tmpfs cgroup rw,memory\n") == ({}, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: real cgroups")
def test_a_real_group_has_the_limits_it_was_given_and_goes() -> None:
    trees = cgroups.find_trees()
    if trees.missing():
        pytest.skip("this host's cgroups hold no limits")
    runtime = f"unit-{os.getpid()}"
    group = Group.make(trees, f"fumehood/{runtime}/t", cpu=0.5, memory_bytes=64 * 2**20, pids=7)
    try:
        assert group.limits() == {"cpu_quota_us": 50_000, "memory_bytes": 64 * 2**20, "pids": 7}
        assert not group.holds(os.getpid())
        usage = group.usage()
        assert usage.oom_kills == 0
    finally:
        assert group.remove()
        cgroups.remove_parent(trees, runtime)
    assert not any(folder.exists() for folder in trees.everywhere(f"fumehood/{runtime}"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: real cgroups")
def test_what_a_killed_runtime_left_in_any_tree_is_swept() -> None:
    trees = cgroups.find_trees()
    runtime = f"unit-swept-{os.getpid()}"
    for folder in trees.everywhere(f"fumehood/{runtime}/task.rt"):
        folder.mkdir(parents=True)
    assert cgroups.remove_tree(trees, runtime) == ["task"]
    assert not any(folder.exists() for folder in trees.everywhere(f"fumehood/{runtime}"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: real cgroups")
def test_an_init_that_was_killed_before_it_was_under_its_limits_is_a_box_that_died() -> None:
    trees = cgroups.find_trees()
    name = f"fumehood/test-{os.getpid()}-dead/t"
    group = Group.make(trees, name, cpu=1.0, memory_bytes=2**26, pids=8)
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    try:
        with pytest.raises(BoxFailed) as failed:
            group.add(pid)
        assert failed.value.reason is Reason.BOX_DIED
    finally:
        assert group.remove()
        cgroups.remove_parent(trees, f"test-{os.getpid()}-dead")
