"""Boxes of an ordinary user: the same attacks, and what only root could enforce is refused by name.

Root makes the user and hands cgroups over; everything after that is the user's own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fumehood
from fumehood import landlock
from lab import FUMEHOOD, Done, Lab, Live, children, gone, status
from security.test_processes import LIES
from userlab import UserLab

PROBES = (Path(__file__).parent / "inside" / "probes.py").read_text()
EAT = "held = []\nwhile True: held.append(b'x' * (8 * 2**20))"
WAIT = "print('up'); input()  # {}"


@pytest.fixture(autouse=True)
def _nothing_of_the_users_left(user_lab: UserLab) -> Iterator[None]:
    yield
    assert user_lab.left() == []


def refused(done: Done, *words: str) -> None:
    """One line, exit status 125, the code and every word."""
    assert (done.status, done.stdout) == (125, ""), done
    for word in ("unenforceable", *words):
        assert word in done.one_clear_line(), done.stderr


def ours(live: Live) -> dict[str, int]:
    """The three processes: one uid, so they are told apart by what they are confined to."""
    found = {"worker": live.worker}
    host = os.readlink("/proc/self/ns/user")
    for pid in children(live.worker):
        found["ledger" if os.readlink(f"/proc/{pid}/ns/user") == host else "broker"] = pid
    return found


# ---- the box is root's box -------------------------------------------------------------------------------------------


def told_by(lab: Lab, runtime: str) -> dict[str, Any]:
    """What every probe says in a box of this lab's, with a scratch workspace."""
    name = f"canary-{os.getpid()}"
    canaries = [Path("/var/tmp") / name, lab.folder / name, Path("/srv") / name, *([lab.home / name] if isinstance(lab, UserLab) else [])]
    given = {
        "abstract": "fumehood-nobody", "port": 1, "canaries": [str(path) for path in canaries], "canary_name": name,
        "shadow_line": Path("/etc/shadow").read_text().splitlines()[0],
    }  # fmt: skip
    try:
        for canary in canaries:
            canary.write_text("secret")
            canary.chmod(0o644)
        profile = lab.profile(f"probes-{runtime}", f"runtime: {runtime}\n")
        done = lab.run("oci", "python3", "-", json.dumps(given), profile=profile, input=PROBES)
    finally:
        for canary in canaries:
            canary.unlink(missing_ok=True)
    assert done.status == 0, (done.stdout, done.stderr)
    told: dict[str, Any] = json.loads(done.told)
    return told


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_box_of_a_users_is_a_box_of_roots(lab: Lab, user_lab: UserLab, runtime: str) -> None:
    """Every attack on a box, judged for root's by `test_inside_a_box`, ends in a user's as it ends there."""
    roots, users = told_by(lab, runtime), told_by(user_lab, runtime)
    assert users.keys() == roots.keys()
    # Pids, pipe numbers and mount options; what else differs is looked at below.
    differ = {"identity", "mounts", "descriptors", "proc_reads", "the_inits_descriptors", "setuid_programs"}
    assert {name: users[name] for name in users if users[name] != roots[name] and name not in differ} == {}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid"):
        assert users["identity"][name] == roots["identity"][name], name
    assert users["host_files"] == []
    assert users["setuid_programs"] == []
    seen = {place for place, _, _ in users["mounts"] if not place.startswith("/proc/")}
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
    assert seen - devices == {place for place, _, _ in roots["mounts"] if not place.startswith("/proc/")}
    assert all({"ro", "nosuid", "noexec"} <= set(flags) for place, flags, _ in users["mounts"] if place in devices)
    for path, said in users["proc_reads"].items():
        assert said == roots["proc_reads"][path] or said in {"EACCES", "EPERM", "ENOENT", "ok 0"}, (path, said)


def test_the_users_own_ids_are_not_in_the_box_and_no_two_boxes_share_ids(user_lab: UserLab) -> None:
    with user_lab.live("oci", WAIT.format("first")) as first, user_lab.live("oci", WAIT.format("second")) as second:
        assert (first.line(), second.line()) == ("up", "up")
        spans = []
        for marker in ("# first", "# second"):
            pid = user_lab.boxed(marker)
            # As root reads it: in the host's own ids.
            (inside, start, count), = [map(int, line.split()) for line in Path(f"/proc/{pid}/uid_map").read_text().splitlines()]
            assert (inside, count) == (0, 1024)
            assert user_lab.first_id <= start <= user_lab.first_id + 65_536 - count
            assert status(pid)["Uid"].split() == [str(start + 1000)] * 4
            spans.append(start)
        assert abs(spans[0] - spans[1]) >= 1024
        for live in (first, second):
            live.say("")
            assert live.end().status == 0


def test_the_users_files_and_processes_are_out_of_reach(user_lab: UserLab) -> None:
    secret = user_lab.home / "secret"
    secret.write_text("the user's")
    secret.chmod(0o666)
    victim = subprocess.Popen(user_lab.as_user("sleep", "600"))
    try:
        attack = f"""
import json, os
told = []
for pid in [{victim.pid}, *range(1, 40000)]:
    if pid in (os.getpid(), 1): continue
    try: os.kill(pid, 9); told.append(pid)
    except OSError: pass
try: os.kill(-1, 9)
except OSError: pass
ways = ["", "/proc/self/root", "/proc/1/root", "/proc/1/cwd", "/proc/self/cwd" + "/.." * 20, "/proc/{victim.pid}/root"]
found = [way for way in ways if os.path.lexists(way + {str(secret)!r})]
print(json.dumps([told, found, [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) > 2]]))
"""
        done = user_lab.python("oci", attack)
        assert json.loads(done.told) == [[], [], []]
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    assert secret.read_text() == "the user's"


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_memory_bomb_is_killed_and_recorded_as_out_of_memory(user_lab: UserLab) -> None:
    done = user_lab.python("oci", EAT, profile=user_lab.profile("memory", "limits: {memory: 64MiB}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (137, "killed", "memory")
    record = user_lab.record("task", done.said["task"])
    assert record["oom_kills"] >= 1
    assert record["memory_peak_bytes"] <= 64 * 2**20


def test_a_fork_bomb_is_held_by_the_pids_limit_and_ended_with_the_call(user_lab: UserLab) -> None:
    code = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.001)
"""
    done = user_lab.python("oci", code, profile=user_lab.profile("forks", "limits: {pids: 32, wall: 2s}\n"))
    assert (done.status, done.said["reason"]) == (124, "wall")
    record = user_lab.record("task", done.said["task"])
    assert record["pids_limit_hits"] >= 1
    assert record["pids_peak"] == 33


def test_a_cpu_spin_runs_into_the_wall_and_gets_no_more_than_its_share(user_lab: UserLab) -> None:
    code = """
import os
for _ in range(3):
    if os.fork() == 0: break
while True: pass
"""
    done = user_lab.python("oci", code, profile=user_lab.profile("spin", "limits: {cpu: 0.5, wall: 2s}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (124, "killed", "wall")
    usage = done.said["usage"]
    assert 0.3 < usage["cpu_user_s"] + usage["cpu_system_s"] < 1.6
    assert usage["cpu_throttled_s"] > 0


def test_the_smallest_limits_hold_although_the_runtime_started_under_them(user_lab: UserLab) -> None:
    for runtime in ("crun", "runc"):
        limits = f"runtime: {runtime}\nlimits: {{memory: 8MiB, pids: 2, cpu: 0.2}}\n"
        done = user_lab.run("oci", "true", profile=user_lab.profile(f"small-{runtime}", limits))
        assert done.status == 0, done
        found = json.loads(user_lab.record("task", done.said["task"])["readback"])
        assert found["cgroup"] == {"cpu_quota_us": 20_000, "memory_bytes": 8 * 2**20, "pids": 2}
        assert done.said["usage"]["pids_peak"] is None, "the runtime's processes are not the box's"


def test_a_limit_whose_cgroup_was_not_handed_over_refuses_the_box(user_lab: UserLab) -> None:
    trees = user_lab.groups or {}
    cases = [(tuple(trees), {"cpu", "memory", "pids"})]
    if "memory" in trees:  # v1: one tree a controller
        cases += [(("memory",), {"memory"}), (("cpu", "pids"), {"cpu", "pids"})]
    for kept_back, missing in cases:
        done = user_lab.fumehood("run", "--profile", "python", "--", "true", without=kept_back)
        refused(done, "Delegate=yes", *missing)
        record = user_lab.record("state", "closed")
        assert (record["result"], record["rule"]) == ("refused", "rootless.limits")


# ---- what is read back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", LIES)
def test_a_box_that_is_not_as_planned_is_killed_before_its_first_instruction(user_lab: UserLab, lie: str) -> None:
    done = user_lab.attacked(LIES[lie], "oci", "python3", "-c", "print('ran')")
    assert (done.status, done.said["outcome"], done.said["reason"]) == (137, "killed", "readback_mismatch"), done.said
    assert done.told == ""


def test_an_init_that_claims_a_filter_and_installs_another_is_found_out(user_lab: UserLab) -> None:
    """The bytes that init shows are right; only the test system calls can tell."""
    patch = """
import struct
from fumehood.broker import control, protocol
frame, show = protocol.frame_message, control.receive_program
allow_all, planned = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000), []
def lying(program, files):
    planned.append(program)
    return frame(allow_all, files)
protocol.frame_message = lying
control.receive_program = lambda *args: show(*args) and planned[0]
"""
    done = user_lab.attacked(patch, "oci", "python3", "-c", "print('ran')")
    assert (done.status, done.said["reason"], done.told) == (137, "readback_mismatch", ""), done.said
    assert "test system calls" in done.said["detail"]


def test_the_record_says_how_the_filter_was_proven(user_lab: UserLab) -> None:
    done = user_lab.python("oci", "print(1)")
    found = json.loads(user_lab.record("task", done.said["task"])["readback"])
    proof = found["seccomp_proof"]
    assert (proof["mode"], proof["filters"]) == ("2", "1")
    assert proof["answers"] == proof["planned"]
    assert len(proof["answers"]) >= 8
    assert "allowed" not in proof["answers"].values()
    assert len(found["seccomp"]) == 1


# ---- our own processes -----------------------------------------------------------------------------------------------


def test_the_three_processes_share_a_uid_and_none_has_a_right_on_the_host(user_lab: UserLab) -> None:
    with user_lab.live("oci", WAIT.format("rights")) as live:
        assert live.line() == "up"
        found = ours(live)
        assert set(found) == {"worker", "broker", "ledger"}
        told = {name: status(pid) for name, pid in found.items()}
        for name, fields in told.items():
            assert set(fields["Uid"].split()) == {str(user_lab.uid)}, name
            assert fields["NoNewPrivs"] == "1", name
            assert os.stat(f"/proc/{found[name]}/environ").st_uid == 0, f"{name} can be traced by whatever the user runs"
        for name in ("worker", "ledger"):
            assert {told[name][sets] for sets in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}, name
        assert told["worker"]["Seccomp"] == "2"
        # The broker's capabilities are those of its own user namespace, which holds the user and the user's ids and nobody else.
        spans = [[int(word) for word in line.split()] for line in Path(f"/proc/{found['broker']}/uid_map").read_text().splitlines()]
        assert spans == [[0, user_lab.uid, 1], [1, user_lab.first_id, 65_536]]
        live.say("")
        assert live.end().status == 0


def test_a_taken_over_worker_gets_none_of_the_users_files_sockets_and_processes(user_lab: UserLab) -> None:
    """Its uid is the user's, so only what it gave up keeps it from them."""
    if landlock.version() == 0:
        pytest.skip("this kernel has no Landlock, which `doctor` says")
    secret, listening = user_lab.home / "secret", user_lab.home / "bus"
    secret.write_text("the user's")
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(listening))
        bus.listen(1)
        for path in (secret, listening):
            os.chown(path, user_lab.uid, user_lab.gid)
        victim = subprocess.Popen(user_lab.as_user("sleep", "600"))
        patch = f"""
import json, os, signal, socket, sys
from fumehood.brokering import BrokerClient
start = BrokerClient.start
def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect({str(listening)!r})
WAYS = {{
    "read": lambda: open({str(secret)!r}).read(),
    "read through proc": lambda: open(f"/proc/{victim.pid}/root" + {str(secret)!r}).read(),
    "environment": lambda: open("/proc/{victim.pid}/environ").read(),
    "list": lambda: os.listdir({str(user_lab.home)!r}),
    "write": lambda: open({str(secret)!r}, "w"),
    "create": lambda: open({str(user_lab.home / ".profile")!r}, "w"),
    "create in the code": lambda: open({str(Path(fumehood.__file__).with_name("new.py"))!r}, "w"),
    "records": lambda: open({str(user_lab.state / "ledger" / "ledger.db")!r}, "rb").read(),
    "remove": lambda: os.unlink({str(secret)!r}),
    "connect": connect,
    "signal": lambda: os.kill({victim.pid}, 0),
    "execute": lambda: os.execv("/bin/true", ["true"]),
}}
async def prying(self, *args, **rest):
    told = {{}}
    for name, way in WAYS.items():
        try:
            told[name] = way() is None or "done"
        except OSError as error:
            told[name] = error.strerror
    sys.stderr.write(json.dumps(told) + chr(10))
    return await start(self, *args, **rest)
BrokerClient.start = prying
"""
        try:
            done = user_lab.attacked(patch, "oci", "python3", "-c", "print('ran')")
            assert done.told == "ran\n", done
            told = json.loads(done.stderr)
            if landlock.version() < 6:  # before Linux 6.12 signals are not held back
                told.pop("signal")
            assert set(told.values()) <= {"Permission denied", "Operation not permitted"}, told
            assert secret.read_text() == "the user's"
        finally:
            victim.kill()
            victim.wait()
            listening.unlink()


def test_the_state_folder_is_the_users_alone(user_lab: UserLab) -> None:
    assert user_lab.python("oci", "print(1)").status == 0
    assert stat.S_IMODE(user_lab.state.stat().st_mode) == 0o700
    for path in user_lab.state.rglob("*"):
        assert path.lstat().st_uid == user_lab.uid, path
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


VICTIMS: dict[str, Callable[[UserLab, Live], int]] = {
    "worker": lambda _lab, live: live.worker,
    "broker": lambda _lab, live: ours(live)["broker"],
    "runtime": lambda lab, _live: next(pid for pid, name in lab.processes().items() if name == "crun"),
    "init": lambda lab, _live: int(status(lab.boxed("# victim"))["PPid"]),
    "tool": lambda lab, _live: lab.boxed("# victim"),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killing_one_of_ours_leaves_nothing_after_the_next_start(user_lab: UserLab, victim: str) -> None:
    profile = user_lab.profile(f"kill-{victim}", "limits: {wall: 25s}\n")
    with user_lab.live("oci", WAIT.format("victim"), profile=profile) as live:
        assert live.line() == "up"
        tool = user_lab.boxed("# victim")
        os.kill(VICTIMS[victim](user_lab, live), signal.SIGKILL)
        if victim == "runtime":
            live.say("")
        assert gone(tool), "the tool outlived the kill"
        done = live.end()
    assert "Traceback" not in done.stderr, done.stderr
    assert user_lab.python("oci", "print(1)").status == 0
    assert user_lab.record("profile", profile)["state"] == "closed"


def test_all_three_killed_at_once_leave_nothing_after_the_next_start(user_lab: UserLab) -> None:
    profile = user_lab.profile("kill-all")
    with user_lab.live("oci", WAIT.format("everyone"), profile=profile) as live:
        assert live.line() == "up"
        tool, three = user_lab.boxed("# everyone"), ours(live)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in three.values():
                os.kill(pid, number)
        live.end()
        assert gone(tool)
    assert user_lab.left() != []  # something to sweep, or this test shows nothing
    assert user_lab.python("oci", "print(1)").status == 0
    assert (user_lab.record("profile", profile)["result"], user_lab.left()) == ("lost", [])


# ---- what needs root -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_a_host_directory_in_a_box_is_refused_by_name(user_lab: UserLab, mode: str) -> None:
    directory = user_lab.home / "work"
    directory.mkdir(exist_ok=True)
    os.chown(directory, user_lab.uid, user_lab.gid)
    profile = user_lab.profile(mode, f"filesystem: {{workspace: {mode}}}\n")
    done = user_lab.fumehood("run", "--profile", profile, "--workspace", str(directory), "--", "true")
    refused(done, f"workspace: {mode}", "scratch")


def test_mounts_and_the_docker_engine_are_refused_by_name(user_lab: UserLab) -> None:
    profile = user_lab.profile("mounts", "filesystem: {mounts: [{source: /usr/share, name: share}]}\n")
    refused(user_lab.fumehood("run", "--profile", profile, "--", "true"), "mounts")
    refused(user_lab.fumehood("run", "--profile", "python", "--engine", "docker", "--", "true"), "Docker", "engine: oci")


def test_making_images_is_refused_and_reading_roots_is_not(user_lab: UserLab) -> None:
    refused(user_lab.fumehood("image", "build"), "root")
    done = user_lab.fumehood("image", "list", "--json")
    assert "python" in {name for image in done.said for name in image["names"]}


def test_a_user_without_subordinate_ids_is_refused_by_name(user_lab: UserLab) -> None:
    program = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", str(FUMEHOOD)]
    done = Lab.fumehood(user_lab, "run", "--profile", "python", "--", "true", program=program, cwd=Path("/"), env={"HOME": "/nonexistent"})
    refused(done, "subordinate ids", "usermod --add-subuids")


def test_doctor_says_what_is_shared_and_what_is_refused(user_lab: UserLab) -> None:
    said = user_lab.fumehood("doctor", "--json").said
    findings = {row["what"]: row for row in said["findings"]}
    assert f"all run as uid {user_lab.uid}" in findings["processes"]["found"]
    assert "workspace: rw, ro, direct" in findings["refused without root"]["found"]
    assert findings["cgroups"]["ok"] is True
    assert findings["network gate"]["ok"] is True
    assert re.search(r"room for \d+ tasks with a gate", findings["descriptors"]["found"])
    assert said["engines"]["oci (crun)"]["works"] is True
    assert said["engines"]["docker"]["works"] is False
    kept_back = user_lab.fumehood("doctor", "--json", without=tuple(user_lab.groups or {})).said
    cgroups = next(row for row in kept_back["findings"] if row["what"] == "cgroups")
    assert not cgroups["ok"]
    assert "Delegate=yes" in cgroups["remedy"]
