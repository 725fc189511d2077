"""What a tool can try inside its box without ending it: one box an engine runs every attack, one test judges each."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Done, Lab, status

PROBES = (Path(__file__).parent / "inside" / "probes.py").read_text()
EPERM = {"EPERM"}


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[dict[str, Any]]:
    """What the host has that a box must not reach: files, sockets, a listener."""
    name = f"canary-{os.getpid()}"
    canaries = [Path("/var/tmp") / name, lab.folder / name, Path("/root") / name, Path("/srv") / name]
    for canary in canaries:
        canary.write_text("secret")
        canary.chmod(0o644)
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as listener:
        abstract.bind(f"\0fumehood-test-{os.getpid()}")
        abstract.listen(1)
        try:
            yield {
                "abstract": f"fumehood-test-{os.getpid()}", "port": listener.getsockname()[1],
                "canaries": [str(canary) for canary in canaries], "canary_name": name,
                "shadow_line": Path("/etc/shadow").read_text().splitlines()[0],
            }  # fmt: skip
        finally:
            for canary in canaries:
                canary.unlink()


def probed(lab: Lab, engine: str, host: dict[str, Any], profile: str) -> Done:
    """Every probe's result, from a box whose rw workspace holds a socket of the host's."""
    workspace = lab.workspace(f"probes-{engine}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(workspace / "sock"))
        (workspace / "sock").chmod(0o777)
        server.listen(1)
        done = lab.run(engine, "python3", "-", json.dumps(host), profile=profile, workspace=workspace, input=PROBES)
    assert done.status == 0, (done.stdout, done.stderr)
    return done


@pytest.fixture(scope="module")
def box(lab: Lab, engine: str, host: dict[str, Any]) -> dict[str, Any]:
    done = probed(lab, engine, host, "python")
    return {**json.loads(done.told), "engine": engine, "task": done.said["task"]}


@pytest.fixture(scope="module")
def unix_box(lab: Lab, engine: str, host: dict[str, Any]) -> dict[str, Any]:
    """The same where the profile reopens UNIX sockets: then only namespaces and the overlay stand between."""
    told: dict[str, Any] = json.loads(probed(lab, engine, host, lab.profile("unix", "seccomp: unix-sockets\n")).told)
    return told


@pytest.fixture(autouse=True)
def _nothing_left(nothing_left: None) -> None:
    pass


def test_no_probe_is_broken(box: dict[str, Any]) -> None:
    assert [name for name, said in box.items() if isinstance(said, str) and said.startswith("broken")] == []


# ---- system calls ----------------------------------------------------------------------------------------------------


def test_mounts_modules_keys_bpf_perf_and_the_rest_are_refused(box: dict[str, Any]) -> None:
    absent = {"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_secret", "openat2", "listmount", "statmount"}
    said = box["refused_calls"]
    assert {name for name, told in said.items() if told == "ENOSYS"} == absent
    assert {name: told for name, told in said.items() if told != "ENOSYS" and told != "EPERM"} == {}


def test_no_namespace_can_be_made_or_joined(box: dict[str, Any]) -> None:
    assert set(box["namespaces"].values()) == EPERM


def test_no_process_can_be_traced_read_or_written(box: dict[str, Any]) -> None:
    assert set(box["ptrace"].values()) == EPERM


def test_the_inits_descriptors_cannot_be_taken(box: dict[str, Any]) -> None:
    assert set(box["the_inits_descriptors"]) == EPERM


def test_a_call_through_another_abi_kills(box: dict[str, Any]) -> None:
    assert (box["another_abi"], box["the_x32_abi"]) == ("signal 31", "signal 31")


def test_a_call_newer_than_the_filter_does_not_exist(box: dict[str, Any]) -> None:
    assert box["calls_newer_than_the_filter"] == "ENOSYS"


# ---- sockets and the network -----------------------------------------------------------------------------------------


def test_only_tcp_udp_and_route_netlink_sockets_exist(box: dict[str, Any]) -> None:
    assert {(family, kind) for family, kind, _ in box["sockets"]} == {(2, 1), (2, 2), (10, 1), (10, 2), (16, 2), (16, 3)}
    assert {protocol for family, _, protocol in box["sockets"] if family == socket.AF_NETLINK} == {0}
    assert {protocol for family, _, protocol in box["sockets"] if family != socket.AF_NETLINK} == {0, 6, 17}


def test_only_unix_socket_pairs_exist(box: dict[str, Any]) -> None:
    assert box["socketpairs"] == [1]


def test_there_is_no_network_but_loopback(box: dict[str, Any]) -> None:
    said = box["network"]
    assert said["interfaces"] == ["lo"]
    assert said["routes"] <= 1
    for target in ("an address outside", "link metadata", "ipv6"):
        assert said[target] in {"ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL"}
    assert said["the host's listener"] in {"ECONNREFUSED", "ENETUNREACH"}


def test_the_hosts_sockets_cannot_be_connected(box: dict[str, Any]) -> None:
    assert box["the_hosts_abstract_socket"] == "EPERM"
    assert box["a_host_socket_in_the_workspace"] == [True, "EPERM"]


def test_the_hosts_sockets_cannot_be_connected_where_the_profile_allows_unix_sockets(unix_box: dict[str, Any]) -> None:
    assert [1, 1, 0] in unix_box["sockets"]
    assert unix_box["the_hosts_abstract_socket"] == "ECONNREFUSED"
    assert unix_box["a_host_socket_in_the_workspace"] == [True, "ECONNREFUSED"]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_no_host_file_is_seen_by_any_way(box: dict[str, Any]) -> None:
    assert box["host_files"] == []
    assert box["host_shadow"] in {"EACCES", "ok False", "ENOENT"}


def test_nothing_but_workspace_tmp_and_shm_can_be_written(box: dict[str, Any]) -> None:
    assert set(box["read_only_places"].values()) <= {"EROFS", "EACCES", "ENOENT", "EISDIR"}
    assert set(box["writable_places"].values()) == {"ok"}


def test_every_writable_mount_is_nosuid_and_nodev_and_no_other_is_there(box: dict[str, Any]) -> None:
    writable = {place for place, flags, _ in box["mounts"] if "rw" in flags and not place.startswith("/proc")}
    assert writable == {"/workspace", "/tmp", "/dev/shm"}
    for place, flags, _ in box["mounts"]:
        if place in writable:
            assert {"nosuid", "nodev"} <= set(flags), place
    names = {"/etc/group", "/etc/passwd"} if box["engine"] == "docker" else set()
    assert {place for place, _, _ in box["mounts"] if place.startswith(("/sys", "/etc", "/.fumehood"))} == names
    assert all("ro" in flags and kind == "tmpfs" for place, flags, kind in box["mounts"] if place in names)


def test_proc_cannot_be_written(box: dict[str, Any]) -> None:
    assert set(box["proc_writes"].values()) <= {"EROFS", "EACCES", "EPERM", "ENOENT", "EIO"}
    assert box["proc_writes"]["/proc/sysrq-trigger"] in {"EROFS", "ENOENT"}  # not every kernel has it
    assert box["proc_writes"]["/proc/sys/kernel/core_pattern"] in {"EROFS", "EACCES"}
    assert box["proc_writes"]["/proc/1/mem"] in {"EACCES", "EPERM"}


def test_proc_tells_nothing_of_the_host_or_of_pid_1(box: dict[str, Any]) -> None:
    said = box["proc_reads"]
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/latency_stats", "/proc/sched_debug"):
        assert said[path] in {"ok 0", "ENOENT", "EACCES"}, path
    assert said["/proc/kmsg"] in {"EPERM", "EACCES"}
    for name in ("mem", "maps", "environ", "auxv", "stack", "syscall", "pagemap", "io", "fd", "map_files", "exe", "root"):
        # pagemap and mem open before they refuse; what matters is that nothing is read.
        assert said[f"/proc/1/{name}"] in {"EACCES", "EPERM", "EIO", "ENOENT"}, (name, said[f"/proc/1/{name}"])
    assert said["/proc/acpi"] in {"ok 0", "ENOENT"}


def test_there_is_no_sysfs(box: dict[str, Any]) -> None:
    assert box["sysfs"] == []


def test_dev_is_exactly_ours(box: dict[str, Any]) -> None:
    character, link, folder = 2, 10, 4
    assert box["dev"] == {
        "fd": [link, 0, 0], "full": [character, 1, 7], "null": [character, 1, 3], "random": [character, 1, 8], "shm": [folder, 0, 0],
        "stderr": [link, 0, 0], "stdin": [link, 0, 0], "stdout": [link, 0, 0], "urandom": [character, 1, 9], "zero": [character, 1, 5],
    }  # fmt: skip


def test_the_hosts_null_device_does_not_become_the_boxes(lab: Lab, engine: str) -> None:
    # crun gave its standard streams, which were the host's /dev/null, to the box's user: an owner may chmod it for everybody.
    with lab.live(engine, "print('up'); input()  # null") as live:
        assert live.line() == "up"
        # Its own uid, not root's: other runtimes on this host may be older.
        assert os.stat("/dev/null").st_uid != int(status(lab.boxed("# null"))["Uid"].split()[0])
        live.say("")
        assert live.end().status == 0


def test_no_device_or_socket_node_can_be_made(box: dict[str, Any]) -> None:
    said = dict(box["device_nodes"])
    assert said.pop("fifo") == "ok"
    assert set(said.values()) == EPERM


def test_no_setuid_or_setgid_bit_can_be_set_in_any_way(box: dict[str, Any]) -> None:
    said, set_bits = dict(box["setuid_bits"][0]), box["setuid_bits"][1]
    assert said.pop("openat2") == "ENOSYS"
    assert set(said.values()) == EPERM, said
    assert set_bits == []


def test_the_image_has_no_setuid_program(box: dict[str, Any]) -> None:
    assert box["setuid_programs"] == []


# ---- processes -------------------------------------------------------------------------------------------------------


def test_the_tool_is_nobody_and_can_become_nobody_else(box: dict[str, Any]) -> None:
    said = box["identity"]
    assert "0" not in said["Uid"] + said["Gid"]
    assert len(set(said["Uid"])) == 1
    assert set(said["Groups"]) <= set(said["Gid"])
    assert {tuple(said[name]) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {("0" * 16,)}
    assert (said["NoNewPrivs"], said["Seccomp"]) == (["1"], ["2"])
    assert set(box["becoming_root"].values()) <= {"EPERM", "EACCES", "EINVAL"}


def test_limits_cannot_be_raised(box: dict[str, Any]) -> None:
    assert box["limits"]["core"] == [0, 0]
    assert box["limits"]["files"] == [1024, 1024]
    assert {box["limits"]["raise core"], box["limits"]["raise files"]} == EPERM


def test_streams_are_no_terminals_and_nothing_can_be_typed(box: dict[str, Any]) -> None:
    said = box["terminals"]
    assert said["isatty"] == [False] * 3
    assert said["/dev/tty"] in {"ENOENT", "ENXIO"}
    assert (said["/dev/console"], said["/dev/ptmx"]) == ("ENOENT", "ENOENT")
    assert {said["TIOCSTI"], said["TIOCLINUX"], said["TIOCSTI with high bits"]} == EPERM


def test_no_process_outside_the_box_is_seen_or_can_be_signalled(box: dict[str, Any]) -> None:
    seen, signalled = box["visible_processes"]
    assert set(seen) <= {1}
    assert set(signalled) <= {1}


def test_only_the_standard_streams_are_open(box: dict[str, Any]) -> None:
    assert set(box["descriptors"]) <= {"0", "1", "2"}
    assert all(target.startswith("pipe:") or target == "/dev/null" for target in box["descriptors"].values())


def test_the_environment_holds_nothing_of_the_host(box: dict[str, Any]) -> None:
    assert set(box["environment"]) - {"LC_CTYPE"} == {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL"}


def test_killing_pid_1_does_nothing_and_its_signals_reach_the_tool(box: dict[str, Any]) -> None:
    assert box["init"] is True
    assert box["caught"] == [15]


def test_the_box_has_its_own_name(box: dict[str, Any]) -> None:
    assert box["host_name"] == "box"


def test_the_user_namespace_makes_no_others(box: dict[str, Any]) -> None:
    if box["engine"] == "docker":
        assert box["namespaces"]["unshare user"] == "EPERM"  # no namespace of its own: the filter alone
        return
    said = dict(box["ceilings"])
    assert 1 <= said.pop("max_inotify_instances") <= 64
    assert set(said.values()) == {0}


def test_both_engines_give_loopback_alike(box: dict[str, Any]) -> None:
    assert box["own_loopback"] == "ok"


def test_the_record_holds_what_the_kernel_applied(lab: Lab, box: dict[str, Any]) -> None:
    record = lab.record("task", box["task"])
    found = json.loads(record["readback"])
    assert found["no_new_privs"] is True
    assert set(found["capabilities"].values()) == {0}
    assert len(found["seccomp"]) == 1
    assert found["cgroup"] == {"cpu_quota_us": 100_000, "memory_bytes": 512 * 2**20, "pids": 128}
    assert json.loads(record["teardown"])["clean"] is True


@pytest.mark.parametrize("engine", ["oci"], indirect=True)
def test_runc_gives_the_same_box_as_crun(lab: Lab, host: dict[str, Any], engine: str, box: dict[str, Any]) -> None:
    if not (shutil.which("runc") and shutil.which("crun")):
        pytest.skip("needs both runtimes")
    told: dict[str, Any] = json.loads(probed(lab, engine, host, lab.profile("runc", "runtime: runc\n")).told)
    differ = {"identity", "mounts", "descriptors", "proc_reads", "the_inits_descriptors"}  # ids, mount options, pipe numbers
    assert {name for name in told if told[name] != box[name]} <= differ
    assert {name: told["identity"][name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")} == {
        name: box["identity"][name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    }
    assert {(place, kind) for place, _, kind in told["mounts"] if not place.startswith("/proc/")} == {
        (place, kind) for place, _, kind in box["mounts"] if not place.startswith("/proc/")
    }
