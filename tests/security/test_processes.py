"""Our own processes: what rights each holds, what a taken-over worker can ask, and what is left when any of them is killed."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from lab import Done, Lab, Live, containers, descendants, docker, gone, status

ALL_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
WAIT = "print('up'); input()  # {}"


@pytest.fixture
def _swept(lab: Lab, nothing_left: None) -> Iterator[None]:
    """For tests that kill: the next start sweeps, then nothing is left."""
    del nothing_left
    yield
    assert lab.python("oci", "print(1)").status == 0


# ---- rule 1: who holds what ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
def test_worker_and_ledger_hold_no_privilege_and_the_broker_alone_is_root(lab: Lab, engine: str) -> None:
    with lab.live(engine, WAIT.format("rights")) as live:
        assert live.line() == "up"
        ours = live.ours()
        assert set(ours) == {"worker", "broker", "ledger"}
        told = {name: status(pid) for name, pid in ours.items()}
        uids = {name: set(fields["Uid"].split()) for name, fields in told.items()}
        assert uids["broker"] == {"0"}
        assert len(uids["worker"]) == len(uids["ledger"]) == 1
        assert len(uids["worker"] | uids["ledger"] | uids["broker"]) == 3
        for name in ("worker", "ledger"):
            assert {told[name][capability] for capability in ALL_CAPABILITIES} == {"0" * 16}, name
            assert told[name]["NoNewPrivs"] == "1", name
            assert told[name]["Groups"] == "", name
            # A process that is not dumpable belongs to root in /proc: its own uid cannot read or trace it.
            assert os.stat(f"/proc/{ours[name]}/environ").st_uid == 0, name
        assert told["worker"]["Seccomp"] == "2"
        live.say("")
        assert live.end().status == 0


@pytest.mark.usefixtures("nothing_left")
def test_neither_worker_nor_ledger_holds_a_descriptor_of_the_hosts(lab: Lab) -> None:
    with lab.live("oci", WAIT.format("held")) as live:
        assert live.line() == "up"
        for name in ("worker", "ledger"):
            pid = live.ours()[name]
            held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            files = {path for path in held if path.startswith("/") and not path.startswith("/dev/")}
            assert all("/ledger/" in path for path in files) if name == "ledger" else files == set(), name
        live.say("")
        assert live.end().status == 0


@pytest.mark.usefixtures("nothing_left")
def test_init_and_the_runtime_hold_no_descriptor_that_leads_to_the_host(lab: Lab, engine: str) -> None:
    workspace = lab.workspace(f"descriptors-{engine}")
    with lab.live(engine, WAIT.format("leaks"), workspace=workspace) as live:
        assert live.line() == "up"
        folder = f"/proc/{_init(lab, '# leaks')}/fd"
        kinds = {int(fd): stat.S_IFMT(os.stat(f"{folder}/{fd}").st_mode) for fd in os.listdir(folder)}
        # The control socket, the signals, and three streams: no directory, from which `..` leads out.
        assert stat.S_IFDIR not in kinds.values()
        assert kinds[3] == stat.S_IFSOCK
        assert {fd: os.readlink(f"{folder}/{fd}") for fd in kinds if fd > 3} == {4: "anon_inode:[signalfd]"}
        assert os.stat(f"{folder}/0").st_rdev in {0, os.makedev(1, 3)}
        for pid in descendants(live.ours()["broker"])[:1] if engine == "oci" else []:
            names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert [name for name in names if str(workspace) in name or name.endswith("/lock")] == []
        live.say("")
        assert live.end().status == 0


# ---- a worker that was taken over ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
def test_a_taken_over_worker_cannot_have_the_broker_change_a_host_files_owner(lab: Lab, engine: str) -> None:
    target = lab.folder / "roots-file"
    target.write_text("root's")
    target.chmod(0o644)
    patch = f"""
import os
from fumehood.brokering import BrokerClient
start = BrokerClient.start
async def lying(self, task, argv, env, stdio, **rest):
    return await start(self, task, argv, env, (os.open({str(target)!r}, os.O_RDONLY), *stdio[1:]), **rest)
BrokerClient.start = lying
"""
    done = lab.attacked(patch, engine, "python3", "-c", "print('ran')")
    found = target.stat()
    assert (found.st_uid, found.st_gid) == (0, 0)
    assert done.status == 125
    assert done.said["reason"] == "bad_request"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("given", [True, False])
def test_a_taken_over_worker_cannot_have_another_directory_than_the_operators(lab: Lab, given: bool) -> None:
    other = lab.workspace("not-given")
    (other / "file").write_text("the host's")
    patch = f"""
import os
from dataclasses import replace
from fumehood.brokering import BrokerClient
from fumehood.model import WorkspaceMode
bind = BrokerClient.bind
async def lying(self, task, binding, supplies):
    fd = os.open({str(other)!r}, os.O_RDONLY | os.O_DIRECTORY)
    return await bind(self, task, replace(binding, workspace=WorkspaceMode.RW, workspace_fd=fd), supplies)
BrokerClient.bind = lying
"""
    workspace = lab.workspace("given") if given else None
    done = lab.attacked(patch, "oci", "python3", "-c", "open('/workspace/file', 'w').write('owned')", workspace=workspace)
    assert (other / "file").read_text() == "the host's"
    assert (done.status, done.said["reason"]) == (125, "workspace_not_allowed")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("message", [b"", b"[1]", b"\xff\xfe", b'{"id": 1, "verb": 7, "args": null}'])
def test_garbage_from_the_worker_ends_the_runtime_and_leaves_nothing(lab: Lab, message: bytes) -> None:
    patch = f"""
import socket
from fumehood import wire
from fumehood.brokering import BrokerClient
async def garbage(self, task, argv, env, stdio, **rest):
    self._asker._sock.send({message!r} or b" ")
    return {{}}
BrokerClient.start = garbage
"""
    done = lab.attacked(patch, "oci", "true", timeout=40)
    assert done.status != 0
    assert "Traceback" not in done.stderr


# ---- rule 15: what the kernel applied is read back -------------------------------------------------------------------

LIES = {
    "an allow-all filter": """
import struct
from fumehood.broker import protocol
frame = protocol.frame_message
allow_all = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
protocol.frame_message = lambda program, files: frame(allow_all, files)
""",
    "a filter that lacks its last rule": """
from fumehood.broker import protocol
frame = protocol.frame_message
protocol.frame_message = lambda program, files: frame(program[:8] + program[:8] + program[8:], files)
""",
    "more open files": """
from fumehood.broker import protocol
frame = protocol.frame_message
protocol.frame_message = lambda program, files: frame(program, files - 1)
""",
    "more memory": """
from dataclasses import replace
from fumehood.broker.box import Box
expected = Box._expected
Box._expected = lambda self, spec: replace(expected(self, spec), memory_bytes=spec.frame.memory_bytes // 2)
""",
    "more processes": """
from dataclasses import replace
from fumehood.broker.box import Box
expected = Box._expected
Box._expected = lambda self, spec: replace(expected(self, spec), pids=spec.frame.pids - 1)
""",
    "a stray mount": """
import os
from fumehood.broker import box, mounting
from fumehood.broker.enter import Move
enter = box.enter
def more(helper, pidfd, operations, *, user_namespace):
    stray = mounting.clone_mount(os.open("/etc", os.O_RDONLY | os.O_DIRECTORY))
    return enter(helper, pidfd, [*operations, Move(stray, "/mnt")], user_namespace=user_namespace)
box.enter = more
""",
    "a host directory over a place in /proc": """
import os
from fumehood.broker import box, mounting
from fumehood.broker.enter import Move
enter = box.enter
def more(helper, pidfd, operations, *, user_namespace):
    stray = mounting.clone_mount(os.open("/etc", os.O_RDONLY | os.O_DIRECTORY))
    mounting.restrict_mount(stray, mounting.RDONLY)
    return enter(helper, pidfd, [*operations, Move(stray, "/proc/fs")], user_namespace=user_namespace)
box.enter = more
""",
    "a host directory instead of /tmp": """
import os
from fumehood.broker import box, mounting
from fumehood.broker.enter import Move
enter = box.enter
def more(helper, pidfd, operations, *, user_namespace):
    other = mounting.clone_mount(os.open("/var/tmp", os.O_RDONLY | os.O_DIRECTORY))
    mounting.restrict_mount(other, mounting.NOSUID | mounting.NODEV)
    changed = [Move(other, "/tmp") if getattr(op, "place", "") == "/tmp" else op for op in operations]
    return enter(helper, pidfd, changed, user_namespace=user_namespace)
box.enter = more
""",
    "a missing /dev of ours": """
from fumehood.broker import box
enter = box.enter
def fewer(helper, pidfd, operations, *, user_namespace):
    kept = [op for op in operations if getattr(op, "place", "") not in ("/dev", "/dev/shm")]
    return enter(helper, pidfd, kept, user_namespace=user_namespace)
box.enter = fewer
""",
}
# Of boxes without a user namespace, which have a passwd file of their own.
LIES_OF_NAMES = {
    "a host's file as the box's passwd": """
import os
from fumehood.broker import box, mounting
from fumehood.broker.enter import Cover
box.name_uid = lambda *_: [Cover(mounting.clone_mount(os.open("/etc/passwd", os.O_PATH)), "/etc/passwd")]
""",
    "no passwd of the box's": """
from fumehood.broker import box
enter = box.enter
def without(helper, pidfd, operations, *, user_namespace):
    enter(helper, pidfd, [op for op in operations if op.__class__.__name__ != "Cover"], user_namespace=user_namespace)
    return []
box.enter = without
""",
}


SEEN_ON_BOTH = {"an allow-all filter", "a stray mount", "a host directory instead of /tmp"}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("engine", "lie"),
    [*(("oci", lie) for lie in LIES), *(("docker", lie) for lie in (*sorted(SEEN_ON_BOTH), *LIES_OF_NAMES))],  # the same code judges both
    indirect=["engine"],
)
def test_a_box_that_is_not_as_planned_is_killed_before_its_first_instruction(lab: Lab, engine: str, lie: str) -> None:
    workspace = lab.workspace("readback")
    done = lab.attacked({**LIES, **LIES_OF_NAMES}[lie], engine, "python3", "-c", "open('/workspace/ran', 'w')", workspace=workspace)
    assert (done.status, done.said["outcome"], done.said["reason"]) == (137, "killed", "readback_mismatch"), done.said
    assert not (workspace / "ran").exists()
    assert lab.record("task", done.said["task"])["reason"] == "readback_mismatch"


# ---- kill -9 in mid-call ---------------------------------------------------------------------------------------------


def _runtime(live: Live) -> int:
    """crun or runc: the broker's child whose program it is."""
    for pid in descendants(live.ours()["broker"]):
        if status(pid)["Name"] in {"crun", "runc"}:
            return pid
    raise AssertionError("no runtime runs")


def _init(lab: Lab, marker: str) -> int:
    return int(status(lab.boxed(marker))["PPid"])


OURS: dict[str, Callable[[Lab, Live, str], int]] = {
    "worker": lambda _lab, live, _: live.worker,
    "broker": lambda _lab, live, _: live.ours()["broker"],
    "ledger": lambda _lab, live, _: live.ours()["ledger"],
    "init": lambda lab, _, marker: _init(lab, marker),
    "tool": lambda lab, _, marker: lab.boxed(marker),
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("victim", OURS)
def test_killing_one_of_ours_ends_the_call_and_the_next_start_sweeps(lab: Lab, engine: str, victim: str) -> None:
    marker = f"kill-{victim}-{engine}"
    profile = lab.profile(marker, "limits: {wall: 25s}\n")
    with lab.live(engine, WAIT.format(marker), profile=profile) as live:
        assert live.line() == "up"
        tool, init, broker = lab.boxed(marker), _init(lab, marker), live.ours()["broker"]
        os.kill(OURS[victim](lab, live, marker), signal.SIGKILL)
        if victim != "ledger":  # a call that runs is carried to its end without the ledger
            assert gone(tool), "the tool outlived the kill"
            assert gone(init)
        else:
            live.say("")
        done = live.end()
        assert "Traceback" not in done.stderr, done.stderr
        assert gone(broker)
    assert done.status != 0
    assert lab.python("oci", "print(1)").status == 0
    record = lab.record("profile", profile)
    assert record["state"] == "closed"
    expected = {"worker": ("lost", "runtime_died"), "broker": ("failed", "broker_died"), "ledger": ("lost", "runtime_died"),
                "init": ("failed", "box_died"), "tool": ("failed", "signalled")}  # fmt: skip
    assert (record["result"], record["reason"]) == expected[victim]


@pytest.mark.usefixtures("_swept")
@pytest.mark.parametrize("program", ["crun", "runc"])
def test_killing_the_oci_runtime_leaves_nothing(lab: Lab, program: str) -> None:
    profile = lab.profile(f"kill-{program}", f"runtime: {program}\nlimits: {{wall: 20s}}\n")
    with lab.live("oci", WAIT.format("runtime"), profile=profile) as live:
        assert live.line() == "up"
        tool = lab.boxed("# runtime")
        os.kill(_runtime(live), signal.SIGKILL)
        live.say("")
        done = live.end()
    assert gone(tool)
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("_swept")
def test_a_container_killed_or_removed_by_docker_ends_the_call(lab: Lab, has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    for command in (["kill"], ["rm", "-f"]):
        with lab.live("docker", WAIT.format("dockerkill")) as live:
            assert live.line() == "up"
            (name,) = [name for name, runtime in containers() if runtime in lab.seen_runtimes()]
            docker(*command, name)
            done = live.end()
        assert done.status == 125
        assert "box_died" in done.one_clear_line()


@pytest.mark.usefixtures("_swept")
def test_all_three_killed_at_once_leave_nothing_after_the_next_start(lab: Lab, engine: str) -> None:
    marker = f"all-{engine}"
    profile = lab.profile(marker)
    with lab.live(engine, WAIT.format(marker), profile=profile) as live:
        assert live.line() == "up"
        tool = lab.boxed(marker)
        _kill_runtime(live)
        live.end()
        assert gone(tool)
    assert lab.left() != []  # something to sweep, or this test shows nothing
    assert lab.python("oci", "print(1)").status == 0
    assert (lab.record("profile", profile)["result"], lab.left()) == ("lost", [])


def _kill_runtime(live: Live) -> None:
    """All three, none of them having time to clean up."""
    ours = live.ours()
    for pid in ours.values():
        os.kill(pid, signal.SIGSTOP)
    for pid in ours.values():
        os.kill(pid, signal.SIGKILL)


# ---- rule 5: sweeping kills only the dead ----------------------------------------------------------------------------


@pytest.mark.usefixtures("_swept")
def test_of_two_live_runtimes_only_the_killed_one_is_swept(lab: Lab, engine: str) -> None:
    with lab.live(engine, WAIT.format("dies")) as dies, lab.live(engine, WAIT.format("lives") + "; print('lived')") as lives:
        assert (dies.line(), lives.line()) == ("up", "up")
        tool = lab.boxed("# lives")
        _kill_runtime(dies)
        dies.end()
        assert lab.python(engine, "print('sweeps')").told == "sweeps\n"
        assert not gone(tool, 0.2)
        lives.process.stdin.write("\n")  # type: ignore[union-attr] # it is a pipe
        done = lives.end()
        assert done.status == 0, done


@pytest.mark.usefixtures("_swept")
def test_containers_with_forged_labels_are_not_removed(lab: Lab, has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    with lab.live("docker", WAIT.format("forged")) as live:
        assert live.line() == "up"
        (name,) = [name for name, runtime in containers() if runtime in lab.seen_runtimes()]
        image, runtime, task = docker("inspect", "-f", '{{.Config.Image}} {{index .Config.Labels "fumehood"}} {{index .Config.Labels "fumehood.task"}}', name).split()
        _kill_runtime(live)
        live.end()
    forged = [
        docker("create", "--label", f"fumehood={runtime}", "--label", f"fumehood.task={task}", "--name", f"forged-{os.getpid()}", image, "x"),
        docker("create", "--label", f"fumehood={runtime}", "--label", f"fumehood.task={'0' * 26}", "--name", f"fumehood-{'0' * 26}", image, "x"),
    ]  # fmt: skip
    try:
        assert lab.python("docker", "print('sweeps')").status == 0
        assert all(docker("ps", "-aq", "--no-trunc", "--filter", f"id={container}") for container in forged)
        assert name not in [found for found, _ in containers()]
    finally:
        docker("rm", "-f", *forged)


@pytest.mark.usefixtures("_swept")
def test_a_start_without_docker_does_not_forget_a_dead_runtimes_container(lab: Lab, has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    with lab.live("docker", WAIT.format("unreachable")) as live:
        assert live.line() == "up"
        _kill_runtime(live)
        live.end()
    nowhere = {"DOCKER_HOST": f"unix://{lab.folder}/no-docker.sock"}
    assert lab.python("oci", "print(1)", env=nowhere).status == 0
    assert lab.python("oci", "print(1)").status == 0
    assert lab.left() == []


@pytest.mark.usefixtures("nothing_left")
def test_a_runtime_holds_its_lock_before_it_can_open_a_record(lab: Lab) -> None:
    """Else another's sweep, between the two, would close the record of a live runtime as lost."""
    code = """
import fcntl, os
from fumehood import launch
chosen = launch.settings()
def locked():
    path = chosen.state.run / chosen.runtime_id / "lock"
    lock = os.open(path, os.O_RDWR)
    try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return "held"
    finally: os.close(lock)
    return "free"
from fumehood.broker import serve
slow = serve.open_host
def late(*args):
    import time
    time.sleep(1)
    return slow(*args)
serve.open_host = late
with launch.started(chosen, locked) as processes:
    print(processes.loaded)
"""
    done = lab.fumehood(program=[sys.executable, "-c", code])
    assert done.stdout == "held\n", done.stderr


def test_the_ledgers_database_belongs_to_the_ledger_alone(lab: Lab) -> None:
    assert lab.python("oci", "print(1)").status == 0
    folder = lab.state / "ledger"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    assert folder.stat().st_uid not in (0, os.getuid())


def test_an_interrupt_cancels_the_call_and_removes_the_box(lab: Lab, engine: str, nothing_left: None) -> None:
    del nothing_left
    with lab.live(engine, WAIT.format("interrupt")) as live:
        assert live.line() == "up"
        tool = lab.boxed("# interrupt")
        began = time.monotonic()
        live.process.send_signal(signal.SIGINT)
        assert gone(tool, 2)
        assert time.monotonic() - began < 1
        done: Done = live.end()
    assert done.status == 137
    assert "cancelled" in done.one_clear_line()
