"""Tools that take more than their share: memory, processes, time, disk, output, silence. Each in a box of its own."""

from __future__ import annotations

import ctypes
import json
import os
import time
from typing import Any

import pytest

from lab import Lab, pids, status, with_marker

pytestmark = pytest.mark.usefixtures("nothing_left")
MIB = 2**20

# Writes every page, so that it is memory and not address space.
KILL_ALL = """
import os
try: os.kill(-1, 9)
except ProcessLookupError: pass
os.kill(1, 9)
os.kill(os.getpid(), 9)
"""
EAT = """
import sys
held = []
while True:
    held.append(b"x" * (8 * 2**20))
"""


def usage_of(lab: Lab, said: Any) -> dict[str, Any]:
    """The record, which holds the usage and must be closed as the caller was told."""
    record = lab.record("task", said["task"])
    assert (record["state"], record["result"], record["reason"]) == ("closed", said["outcome"], said["reason"])
    return record


def test_a_memory_bomb_is_killed_and_recorded_as_out_of_memory(lab: Lab, engine: str) -> None:
    done = lab.python(engine, EAT, profile=lab.profile("memory", "limits: {memory: 64MiB}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (137, "killed", "memory")
    usage = usage_of(lab, done.said)
    assert usage["oom_kills"] >= 1
    assert usage["memory_peak_bytes"] <= 64 * MIB


def test_a_memory_bomb_in_a_child_is_recorded_and_the_box_lives_on(lab: Lab, engine: str) -> None:
    code = f"""
import os, sys
pid = os.fork()
if pid == 0:
    exec({EAT!r})
_, ended = os.waitpid(pid, 0)
print("child", os.WTERMSIG(ended), flush=True)
"""
    done = lab.python(engine, code, profile=lab.profile("memory", "limits: {memory: 64MiB}\n"))
    assert (done.status, done.said["outcome"], done.told) == (0, "ok", "child 9\n")
    assert usage_of(lab, done.said)["oom_kills"] >= 1


def test_a_fork_bomb_is_held_by_the_pids_limit_and_ended_with_the_call(lab: Lab, engine: str) -> None:
    code = """
import os, time
def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.001)
bomb()
"""
    done = lab.python(engine, code, profile=lab.profile("forks", "limits: {pids: 32, wall: 2s}\n"))
    assert (done.status, done.said["reason"]) == (124, "wall")
    assert done.seconds < 10
    usage = usage_of(lab, done.said)
    assert usage["pids_limit_hits"] >= 1
    assert usage["pids_peak"] is None or usage["pids_peak"] <= 33


def test_a_cpu_spin_runs_into_the_wall_and_gets_no_more_than_its_share(lab: Lab, engine: str) -> None:
    code = """
import os
for _ in range(3):
    if os.fork() == 0: break
while True: pass
"""
    done = lab.python(engine, code, profile=lab.profile("spin", "limits: {cpu: 0.5, wall: 2s}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (124, "killed", "wall")
    usage = usage_of(lab, done.said)
    assert 0 < usage["cpu_user_s"] + usage["cpu_system_s"] < 1.6  # how much of its half a busy machine gave it is nobody's promise
    assert usage["cpu_throttled_s"] > 0


def test_sleeping_past_the_limit_is_ended_in_time(lab: Lab, engine: str) -> None:
    code = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
    done = lab.python(engine, code, profile=lab.profile("sleep", "limits: {wall: 1s}\n"))
    assert (done.status, done.said["reason"]) == (124, "wall")
    assert done.seconds < 6


def test_silence_past_the_idle_limit_is_ended(lab: Lab, engine: str) -> None:
    code = "import time; print('working', flush=True); time.sleep(600)"
    done = lab.python(engine, code, profile=lab.profile("idle", "limits: {idle: 700ms, wall: 30s}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (124, "killed", "idle")
    assert done.told == "working\n"
    assert done.seconds < 8


def test_disks_fill_up_by_bytes_and_by_inodes(lab: Lab, engine: str) -> None:
    code = """
import errno, json, os
told = {}
for place in ("/workspace", "/tmp", "/dev/shm"):
    size = 0
    try:
        with open(place + "/fill", "wb", buffering=0) as file:
            while size < 2**30:
                size += file.write(b"x" * 2**20)
    except OSError as error:
        told[place] = [size, errno.errorcode[error.errno]]
    os.unlink(place + "/fill")
    count = 0
    try:
        while count < 400_000:
            os.close(os.open(f"{place}/{count}", os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError as error:
        told[place] += [count, errno.errorcode[error.errno]]
    for number in range(count):
        os.unlink(f"{place}/{number}")
print(json.dumps(told))
"""
    profile = lab.profile("disk", "limits: {disk: 16MiB, wall: 120s}\nfilesystem: {tmp: 8MiB}\n")
    done = lab.python(engine, code, profile=profile, workspace=lab.workspace(f"disk-{engine}"), timeout=120)
    assert done.status == 0, done.said
    told = json.loads(done.told)
    for place, most in (("/workspace", 16 * MIB), ("/tmp", 8 * MIB), ("/dev/shm", 64 * MIB)):
        size, full, count, no_inode = told[place]
        assert (size <= most, full, no_inode) == (True, "ENOSPC", "ENOSPC"), (place, told[place])
        assert count <= 131_072


def test_an_output_flood_is_cut_off_without_killing_the_tool(lab: Lab, engine: str) -> None:
    code = "import sys; sys.stdout.write('x' * 500_000); sys.stderr.write('y' * 500_000); sys.exit(3)"
    done = lab.python(engine, code, profile=lab.profile("output", "limits: {output: 64KiB}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (3, "failed", "exit_nonzero")
    assert done.said["truncated"] == {"stdout": True, "stderr": True}
    assert (len(done.said["stdout"]), len(done.said["stderr"])) == (65_536, 65_536)


def test_sixteen_times_the_output_limit_kills(lab: Lab, engine: str) -> None:
    code = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    done = lab.python(engine, code, profile=lab.profile("output", "limits: {output: 64KiB}\n"))
    assert (done.status, done.said["outcome"], done.said["reason"]) == (137, "killed", "output")
    assert len(done.said["stdout"]) == 65_536
    assert done.seconds < 10


def test_a_zombie_flood_is_reaped(lab: Lab, engine: str) -> None:
    code = """
import os
for _ in range(600):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)   # an orphan: PID 1 must reap it
        os._exit(0)
    os.waitpid(child, 0)
print("alive", flush=True)
"""
    done = lab.python(engine, code, profile=lab.profile("zombies", "limits: {pids: 48}\n"))
    assert (done.status, done.told) == (0, "alive\n"), done.said


def test_a_stray_daemon_does_not_outlive_the_tool_or_hold_the_call(lab: Lab, engine: str) -> None:
    marker = f"stray-{engine}-{time.monotonic_ns()}"
    code = f"""
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        os.execvp("python3", ["python3", "-c", "import time; time.sleep(600)", {marker!r}])
    os._exit(0)
os.wait()
print("leaving a daemon with my stdout", flush=True)
"""
    done = lab.python(engine, code)
    assert (done.status, done.said["outcome"]) == (0, "ok")
    assert done.seconds < 10
    assert with_marker(marker) == []


def test_a_tool_that_kills_everything_it_may_ends_only_itself(lab: Lab, engine: str) -> None:
    before = set(pids())
    done = lab.python(engine, KILL_ALL)
    assert (done.said["outcome"], done.said["reason"], done.said["signal"]) == ("failed", "signalled", 9)
    assert done.status == 137
    assert {1} <= before & set(pids())


def test_inotify_instances_of_one_box_starve_neither_the_host_nor_another_box(lab: Lab, engine: str) -> None:
    take = """
import ctypes
libc, count = ctypes.CDLL(None), 0
while libc.inotify_init1(0) >= 0: count += 1
print(count, flush=True)
input()
"""
    with lab.live(engine, take) as first:
        taken = int(first.line())
        assert taken <= 128
        mine = ctypes.CDLL(None).inotify_init1(0)
        assert mine >= 0, "the host's root got EMFILE"
        os.close(mine)
        with lab.live(engine, take) as second:
            assert int(second.line()) == taken
            second.say("")
            assert second.end().status == 0
        first.say("")
        assert first.end().status == 0


def test_another_tasks_processes_and_workspace_are_out_of_reach(lab: Lab, engine: str) -> None:
    workspaces = [lab.workspace(f"task-{engine}-{number}") for number in range(2)]
    (workspaces[0] / "secret").write_text("of the first task")
    with lab.live(engine, "print('up'); input(); print('untouched')  # first", workspace=workspaces[0]) as first:
        assert first.line() == "up"
        victim = lab.boxed("# first")
        attack = f"""
import json, os
told = []
for pid in [{victim}, *range(2, 40000)]:
    if pid in (os.getpid(), 1): continue
    try: os.kill(pid, 9); told.append(pid)
    except OSError: pass
try: os.kill(-1, 9)
except OSError: pass
paths = ["{workspaces[0]}/secret", "/proc/{victim}/root/workspace/secret", "/workspace/../{workspaces[0]}/secret", "/workspace/secret"]
print(json.dumps([told, [path for path in paths if os.path.lexists(path)]]))
"""
        done = lab.python(engine, attack, workspace=workspaces[1])
        assert json.loads(done.told) == [[], []]
        with lab.live(engine, "print('up'); input()  # second", workspace=workspaces[1]) as second:
            assert second.line() == "up"
            # Two user namespaces over one range, or one uid for two boxes, could signal each other.
            uids = [int(status(pid)["Uid"].split()[0]) for pid in (victim, lab.boxed("# second"))]
            assert abs(uids[0] - uids[1]) >= 65_536
            second.say("")
            assert second.end().status == 0
        first.say("")
        assert first.end().stdout == "untouched\n"
    assert (workspaces[0] / "secret").read_text() == "of the first task"
