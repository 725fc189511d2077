"""The judge of what the kernel applied: one table of a box as planned, and one change of it at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fumehood.broker import readback
from fumehood.broker.readback import Expected, filter_digest, judge, parse_limits, parse_mounts

FILTER = b"\x06\x00\x00\x00\x26\x00\x05\x00"
ALLOW_ALL = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
EXPECTED = Expected(
    uid=1_001_000, gid=1_001_000, user_namespace=True, id_base=1_000_000, filter_digest=filter_digest(FILTER), memory_bytes=2**29,
    pids=128, cpu_quota_us=100_000, open_files=1024, workspace="rw", workspace_kind="overlay", mounts=("data",),
)  # fmt: skip
MOUNTINFO = """\
1 0 0:1 / / ro,relatime - overlay overlay rw
2 1 0:2 / /proc rw,nosuid,nodev,noexec - proc proc rw
3 1 0:3 / /dev ro,nosuid,noexec - tmpfs none rw
4 3 0:4 / /dev/shm rw,nosuid,nodev - tmpfs none rw
5 1 0:5 / /tmp rw,nosuid,nodev - tmpfs none rw
6 2 0:2 /sys /proc/sys ro,nosuid,nodev,noexec - proc proc rw
7 2 0:2 /bus /proc/bus ro,nosuid,nodev,noexec - proc proc rw
8 2 0:6 /null /proc/kcore rw,nosuid - devtmpfs devtmpfs rw
9 2 0:7 / /proc/acpi ro - tmpfs tmpfs ro
10 1 0:8 / /workspace rw,nosuid,nodev - overlay none rw
11 1 0:9 / /mnt ro,nosuid,nodev - tmpfs none rw
12 11 0:10 / /mnt/data ro,nosuid,nodev - overlay none ro
"""


def as_planned() -> dict[str, Any]:
    return {
        "alive": True,
        "uid": ["1001000"] * 4,
        "gid": ["1001000"] * 4,
        "groups": [],
        "capabilities": dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0),
        "no_new_privs": True,
        "seccomp": [filter_digest(FILTER)],
        "namespaces": {name: f"{name}:[2]" for name in readback.NAMESPACES},
        "host_namespaces": {name: f"{name}:[1]" for name in readback.NAMESPACES},
        "uid_map": ["0", "1000000", "65536"],
        "gid_map": ["0", "1000000", "65536"],
        "mounts": parse_mounts(MOUNTINFO),
        "rlimits": {"Max core file size": ["0", "0"], "Max open files": ["1024", "1024"]},
        "descriptors": [{"number": number, "close_on_exec": number > 2} for number in range(6)],
        "interfaces": ["lo"],
        "cgroup": {"cpu_quota_us": 100_000, "memory_bytes": 2**29, "pids": 128},
        "cgroup_member": True,
    }


def mount(line: str) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["mounts"].extend(parse_mounts(line))


def remount(place: str, **changed: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: next(each for each in found["mounts"] if each["place"] == place).update(changed)


def unmounted(place: str) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.update(mounts=[each for each in found["mounts"] if each["place"] != place])


def changed(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.update(values)


def within(name: str, **values: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found[name].update(values)


WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "the process has ended": changed(alive=False),
    "root": changed(uid=["0"] * 4),
    "root to be saved": changed(uid=["1001000", "1001000", "0", "1001000"]),
    "another group": changed(gid=["1001000", "0", "1001000", "1001000"]),
    "a supplementary group": changed(groups=["0"]),
    **{f"a capability in {name}": within("capabilities", **{name: 1 << 21}) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    "new privileges": changed(no_new_privs=False),
    "no filter": changed(seccomp=[]),
    "an allow-all filter, which also reads `Seccomp: 2`": changed(seccomp=[filter_digest(ALLOW_ALL)]),
    "a second filter": changed(seccomp=[filter_digest(FILTER), filter_digest(ALLOW_ALL)]),
    **{f"the host's {name} namespace": within("namespaces", **{name: f"{name}:[1]"}) for name in readback.NAMESPACES},
    "another box's ids": changed(uid_map=["0", "1065536", "65536"]),
    "the host's ids": changed(uid_map=["0", "0", "4294967295"]),
    "a wider range": changed(gid_map=["0", "1000000", "131072"]),
    "two ranges": changed(uid_map=["0", "1000000", "65536", "65536", "0", "1"]),
    "core dumps": within("rlimits", **{"Max core file size": ["0", "unlimited"]}),
    "more open files": within("rlimits", **{"Max open files": ["1024", "4096"]}),
    "an open descriptor": lambda found: found["descriptors"].append({"number": 7, "close_on_exec": False}),
    "a network": changed(interfaces=["lo", "eth0"]),
    "no loopback": changed(interfaces=[]),
    "more memory": within("cgroup", memory_bytes=2**30),
    "no memory limit": within("cgroup", memory_bytes=2**63),
    "more processes": within("cgroup", pids=129),
    "more cpu": within("cgroup", cpu_quota_us=200_000),
    "outside its cgroup": changed(cgroup_member=False),
    "a writable root": remount("/", flags=["rw"]),
    "setuid programs in /tmp": remount("/tmp", flags=["rw", "nodev"]),
    "devices in /dev/shm": remount("/dev/shm", flags=["rw", "nosuid"]),
    "a writable /dev": remount("/dev", flags=["rw", "nosuid", "noexec"]),
    "a host directory in /tmp's place": remount("/tmp", kind="ext4"),
    "the host's /dev": remount("/dev", kind="devtmpfs"),
    "something that is not /proc": remount("/proc", kind="tmpfs"),
    "a writable /proc/sys": remount("/proc/sys", flags=["rw"]),
    "a plain bind as workspace": remount("/workspace", kind="ext4"),
    "a workspace with setuid": remount("/workspace", flags=["rw", "nodev"]),
    "a read-only workspace": remount("/workspace", flags=["ro", "nosuid", "nodev"]),
    "a writable mount of the profile's": remount("/mnt/data", flags=["rw", "nosuid", "nodev"]),
    "a plain bind as a mount of the profile's": remount("/mnt/data", kind="ext4"),
    **{f"no {place}": unmounted(place) for place in ("/proc", "/proc/sys", "/dev", "/dev/shm", "/tmp", "/workspace", "/mnt/data")},
    "a stray mount": mount("13 1 8:1 /etc /srv ro,nosuid,nodev - ext4 /dev/sda rw"),
    "a second mount over the first": mount("13 1 8:1 / /tmp rw,nosuid,nodev - tmpfs none rw"),
    "sysfs": mount("13 1 0:20 / /sys ro,nosuid,nodev,noexec - sysfs sysfs ro"),
    "the init's folder": mount("13 1 8:1 /bin /.fumehood ro,nosuid,nodev - ext4 /dev/sda rw"),
    "a runtime's /etc/hosts": mount("13 1 8:1 /h /etc/hosts rw - ext4 /dev/sda rw"),
    "a host directory read-only below /proc": mount("13 2 8:1 /etc /proc/fs ro,nosuid,nodev - ext4 /dev/sda rw"),
    "a host directory at a masked place": mount("13 2 8:1 / /proc/scsi ro,nosuid,nodev - ext4 /dev/sda rw"),
    "a writable tmpfs at a masked place": mount("13 2 0:30 / /proc/scsi rw - tmpfs tmpfs rw"),
    "a host's tmpfs at a masked place": mount("13 2 0:30 /secrets /proc/scsi ro - tmpfs tmpfs rw"),
    "a writable mask": remount("/proc/bus", flags=["rw"]),
    "another part of proc": remount("/proc/bus", root="/sys"),
    "a mask where none is planned": mount("13 2 0:30 / /proc/self ro - tmpfs tmpfs ro"),
}  # fmt: skip


def test_a_box_as_planned_is_accepted() -> None:
    assert judge(EXPECTED, as_planned()) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_as_planned_is_found(name: str) -> None:
    found = as_planned()
    WRONG[name](found)
    assert found != as_planned(), "this change changes nothing"
    assert len(judge(EXPECTED, found)) >= 1


def test_without_a_user_namespace_of_its_own_docker_boxes_share_the_hosts_and_only_that() -> None:
    expected = replace(EXPECTED, user_namespace=False)
    found = as_planned()
    assert judge(expected, found) != []
    found["namespaces"]["user"] = found["host_namespaces"]["user"]
    found["uid_map"] = found["gid_map"] = ["0", "0", "4294967295"]
    assert judge(expected, found) == []


def test_limits_are_read_by_name() -> None:
    text = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max core file size        0                    unlimited            bytes     \n"
        "Max open files            1024                 524288               files     \n"
    )
    assert parse_limits(text) == {"Max core file size": ["0", "unlimited"], "Max open files": ["1024", "524288"]}
