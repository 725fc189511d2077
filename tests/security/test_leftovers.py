"""What a killed runtime leaves is found by any runtime that runs on, and what a live one owns by none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fumehood.broker.ids import CLAIMS
from fumehood.broker.living import MARKS
from lab import Lab, Live, close_lab, gone, open_lab
from live_gateway import LiveGateway, configure, live_gateway, napping, naps
from own_docker import own_docker

CANCEL = '{{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {{"requestId": {}}}}}\n'
WAIT = "print('up'); input()  # {}"
OFTEN = "from fumehood.broker import sweep; sweep.EVERY_S = 0.2; from fumehood.cli.main import main; import sys; sys.argv[0] = 'fumehood'; main()"


@contextmanager
def gateway_that_sweeps_often(lab: Lab) -> Iterator[LiveGateway]:
    server, _ = napping(lab, "sweeps")
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}"), program=[sys.executable, "-c", OFTEN]) as gateway:
        assert gateway.tools()
        yield gateway
        assert gateway.end() == 0


@contextmanager
def another_lab(mark: str) -> Iterator[Lab]:
    lab = open_lab(mark)
    try:
        yield lab
    finally:
        close_lab(lab)


def kill_runtime(live: Live) -> None:
    """All three, none of them having time to clean up."""
    ours = live.ours()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in ours.values():
            os.kill(pid, number)
    live.end()


def groups(runtime: str) -> list[str]:
    """The cgroups of a runtime."""
    return [tree for tree, _, _ in os.walk("/sys/fs/cgroup") if f"/fumehood/{runtime}" in tree]


def claims(runtime: str) -> list[Path]:
    """The id ranges that the host knows to be a runtime's."""
    mark = MARKS / runtime
    return [path for path in CLAIMS.iterdir() if mark.exists() and path.is_file() and path.samefile(mark)]


@pytest.mark.usefixtures("nothing_left")
def test_a_runtime_that_runs_on_sweeps_one_that_was_killed_meanwhile_and_no_other(lab: Lab, engine: str) -> None:
    profile = lab.profile(f"left-{engine}")
    with gateway_that_sweeps_often(lab) as gateway, lab.live(engine, WAIT.format("# left lives")) as lives:
        assert lives.line() == "up"
        tool = lab.boxed("# left lives")
        known = set(lab.seen_runtimes())
        with lab.live(engine, WAIT.format("# left dies"), profile=profile) as dies:
            assert dies.line() == "up"
            (dead,) = lab.seen_runtimes() - known
            kill_runtime(dies)
        assert "1 records closed as lost" in gateway.logged(f"swept the dead runtime {dead}")
        gateway.until(lambda: not (lab.state / "run" / dead).exists())
        assert (groups(dead), (MARKS / dead).exists()) == ([], False)
        assert [path.name for path in (lab.state / "ids").iterdir() if path.read_text() == dead] == []
        assert not gone(tool, 0.2)
        lives.say("")
        assert lives.end().status == 0
        assert gateway.call("sweeps")["content"][0]["text"] == "sweeps"
    assert lab.record("profile", profile)["result"] == "lost"


@pytest.mark.usefixtures("nothing_left")
def test_a_record_says_what_was_taken_away_and_that_it_was_looked_for_afterwards(lab: Lab, engine: str) -> None:
    profile = lab.profile("taken", "filesystem: {workspace: rw}\n")
    task = lab.run(engine, "true", profile=profile, workspace=lab.workspace("taken")).said["task"]
    events = lab.fumehood("task", task, "--json").said["events"]
    (facts,) = [event["facts"] for event in events if event["state"] == "removed"]
    assert facts["clean"] is True
    assert all(each["gone"] for each in facts["taken"].values())
    its_own = {"oci": ["init", "runtime", "cgroup", "root"], "docker": ["init", "container", "cgroup"]}
    assert [*facts["taken"]] == [*its_own[engine], "workspace", "folder", "id_range"]
    told = lab.fumehood("task", task).stdout
    assert all(name in told for name in facts["taken"])


@pytest.mark.usefixtures("nothing_left")
def test_a_box_that_could_not_be_removed_is_removed_when_its_engine_answers_again(lab: Lab, has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    with own_docker("python") as engine:
        server, _ = napping(lab, "engineless", engine="docker")
        file = configure(lab, f"{{servers: {{{server}}}}}", f"docker_host: {engine.host}")
        with live_gateway(lab, file, program=[sys.executable, "-c", OFTEN]) as gateway:
            assert gateway.tools()
            number = gateway.send("tools/call", name="engineless", arguments={"seconds": 60})
            gateway.until(lambda: naps("engineless"))
            engine.stop(signal.SIGKILL)  # its box runs on
            gateway.process.stdin.write(CANCEL.format(number).encode())  # type: ignore[union-attr] # it is a pipe
            gateway.until(lambda: not naps("engineless"))
            engine.start()
            assert gateway.logged("removed the box of task")
            gateway.until(lambda: engine.containers() == [] and [*(lab.state / "ids").iterdir()] == [])
            assert gateway.end() == 0


@pytest.mark.usefixtures("nothing_left")
def test_of_cgroups_that_no_mark_tells_of_only_the_empty_go(lab: Lab) -> None:
    tree = next(place for place in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if (place / "cgroup.procs").exists())
    empty, holding, parent, stranger = (tree / "fumehood" / name for name in ("0" * 26, "1" * 26, "2" * 26, "somebody"))
    folders = [empty, holding, parent, parent / "task", stranger]
    for folder in folders:
        folder.mkdir(parents=True)
    with subprocess.Popen(["/bin/sleep", "60"]) as inside:
        try:
            (holding / "cgroup.procs").write_text(str(inside.pid))
            assert lab.fumehood("doctor", "--json").said
            assert [folder.exists() for folder in folders] == [False, True, True, True, True]
            assert inside.poll() is None
        finally:
            inside.kill()
            inside.wait()
            for folder in reversed(folders[1:]):
                folder.rmdir()


@pytest.mark.usefixtures("nothing_left")
def test_cgroups_and_ids_of_a_state_folder_that_is_gone_are_swept_and_a_live_runtimes_are_not(lab: Lab) -> None:
    with another_lab("left") as other, other.live("oci", WAIT.format("# left elsewhere")) as lives:
        assert lives.line() == "up"
        tool = other.boxed("# left elsewhere")
        (alive,) = other.seen_runtimes()
        with another_lab("gone") as vanished, vanished.live("oci", WAIT.format("# left nowhere")) as dies:
            assert dies.line() == "up"
            (dead,) = vanished.seen_runtimes()
            kill_runtime(dies)
        assert not vanished.folder.exists()
        assert groups(dead) or claims(dead), "something to sweep, or this test shows nothing"
        with gateway_that_sweeps_often(lab) as gateway:
            gateway.until(lambda: not (MARKS / dead).exists())
        assert groups(dead) == []
        assert claims(alive) != []
        assert groups(alive) != []
        assert not gone(tool, 0.2)
        lives.say("")
        assert lives.end().status == 0
        assert (groups(alive), (MARKS / alive).exists(), other.left()) == ([], False, [])
