"""`fumehood stop --all` by attack, on each engine: calls, sessions and leases end within seconds, whoever refuses to help."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lab import FUMEHOOD, Lab, containers, lab_for
from live_gateway import configure, live_gateway, napping, naps
from userlab import UserLab

pytestmark = pytest.mark.root
STATEFUL = Path(__file__).resolve().parents[1] / "e2e" / "servers" / "stateful.py"
KEPT = "command: [python3, /workspace/stateful.py]\ntools: {allow: '*'}\nscope: session\nfilesystem: {workspace: rw}\nlimits: {wall: 60s}\n"
WAIT = "import time; print('up', flush=True); time.sleep(100)"
SKIP_LEDGER = """
from fumehood.evidence import client
from fumehood.ports import Opened
async def open(self, call, account=None): return Opened()
client.LedgerClient.open = open
client.LedgerClient.event = client.LedgerClient.close = lambda self, *args: open(self, None)
"""
UNLINK = """
import sys
from fumehood.execution import running
from fumehood import call
import os
where = "WHERE"
def tried(*doing):
    try:
        doing[0](*doing[1:])
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\\n")
refusing = call.evidence.record
def record(*args):
    tried(os.unlink, where)
    tried(os.rename, where, where + "x")
    tried(open, where, "w")
    return refusing(*args)
call.evidence.record = record
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "-stop") as made:
        yield made


@pytest.fixture(autouse=True)
def _begun_again(lab: Lab) -> Iterator[None]:
    yield
    assert lab.fumehood("start").status == 0
    assert lab.left() == []


def stop(lab: Lab, *arguments: str) -> tuple[dict[str, Any], float]:
    """What the command says, and how long all of it took, from its first instruction to its last."""
    done = lab.fumehood("stop", "--all", "--json", *arguments)
    assert done.stderr == ""
    return done.said, done.seconds


def of_boxes(lab: Lab) -> list[str]:
    """Every cgroup and container of a box of ours; a live runtime's own groups are none."""
    runtimes = lab.seen_runtimes()
    found = [name for name, runtime in containers() if runtime in runtimes]
    for tree, groups, _ in os.walk("/sys/fs/cgroup"):
        if tree.rpartition("/")[2] in runtimes:
            found += [f"{tree}/{name}" for name in groups]
    return found


def test_everything_of_a_gateway_ends_and_nothing_begins_until_it_is_started_again(lab: Lab, engine: str) -> None:
    began = datetime.now().astimezone().isoformat()
    server, workspace = napping(lab, "napper", engine=engine)
    kept = lab.workspace("kept")
    shutil.copy(STATEFUL, kept / "stateful.py")
    session = f"kept: {{profile: {lab.profile('kept', KEPT)}, workspace: {kept}, engine: {engine}}}"
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}, {session}}}}}")) as gateway:
        assert len(gateway.tools()) > 2
        assert gateway.call("kept__count")["content"][0]["text"] == "1"
        under_way = gateway.send("tools/call", name="napper__napper", arguments={"seconds": 50, "write": "begun"})
        gateway.until(lambda: naps("napper"))
        told, seconds = stop(lab, "--reason", "a key leaked")
        assert seconds < 5
        assert (told["runtimes"], told["boxes_killed"], told["calls_ended"], told["calls_lost"]) == (1, 2, 2, 0), told
        assert told["unanswered"] == told["leases_left"] == []
        assert not naps("napper")
        assert of_boxes(lab) == []
        assert not (workspace / "begun").exists(), "what a killed call wrote is discarded"
        ended = gateway.answer(under_way)["result"]
        assert ended["_meta"]["fumehood/outcome"]["reason"] == "operator"
        for tool in ("napper__napper", "kept__count"):
            refused = gateway.call(tool)
            assert refused["_meta"]["fumehood/outcome"]["reason"] == "stopped"
            assert "a key leaked" in refused["content"][0]["text"]
            assert "root (uid 0)" in refused["content"][0]["text"]
        done = lab.run(engine, "true")
        assert (done.status, done.said["reason"]) == (125, "stopped"), "a runtime that is started later refuses too"
        record = lab.fumehood("task", done.said["task"], "--json").said
        assert (record["result"], record["reason"], record["rule"]) == ("refused", "stopped", "operator.stop")
        listed = lab.fumehood("tasks", "--json", "--result", "killed", "--since", began)
        assert "a key leaked" in listed.stderr
        assert {row["reason"] for row in listed.said} == {"operator"}
        assert len(listed.said) == 2
        doctor = {row["what"]: row for row in lab.fumehood("doctor", "--json").said["findings"]}
        assert (doctor["calls"]["ok"], "a key leaked" in doctor["calls"]["found"]) == (False, True)
        assert lab.fumehood("start", "--json").said["was_stopped"]
        assert gateway.call("napper__napper")["content"][0]["text"] == "napper"
        assert gateway.call("kept__count")["content"][0]["text"] == "1", "in a new session"
    log = lab.fumehood("stop", "--log", "--json").said
    assert [(row["action"], row["who"], row["why"]) for row in log][:2] == [("start", "root", ""), ("stop", "root", "a key leaked")]
    assert log[1]["facts"]["boxes_killed"] == 2
    assert "a key leaked" in lab.fumehood("stop", "--log").stdout


def test_a_worker_that_does_nothing_any_more_loses_its_boxes_and_then_its_life(lab: Lab, engine: str) -> None:
    with lab.live(engine, WAIT) as live:
        live.line()
        os.kill(live.worker, signal.SIGSTOP)
        told, seconds = stop(lab)
        assert seconds < 5
        assert (told["boxes_killed"], told["calls_lost"], told["workers_killed"]) == (1, 1, 1), told
        assert of_boxes(lab) == []
        assert live.process.wait(timeout=10) == -signal.SIGKILL
    (row,) = lab.fumehood("tasks", "--json", "--limit", "1").said
    assert (row["result"], row["reason"]) == ("lost", "runtime_died")


def test_a_worker_that_asks_no_ledger_gets_no_box(lab: Lab, engine: str) -> None:
    stop(lab)
    done = lab.attacked(SKIP_LEDGER, engine, "true")
    assert (done.said["outcome"], done.said["reason"]) == ("refused", "stopped")


def test_a_worker_cannot_take_the_operators_word_back(lab: Lab) -> None:
    stop(lab)
    done = lab.attacked(UNLINK.replace("WHERE", str(lab.state / "stopped")), "oci", "true")
    assert done.said["reason"] == "stopped"
    assert done.stderr.splitlines() == ["Permission denied"] * 3
    assert (lab.state / "stopped").exists()


def test_a_box_that_is_being_made_when_everything_stops_runs_nothing(lab: Lab, engine: str) -> None:
    """Many begin at once, so that some are in every step when it comes."""
    processes = [
        subprocess.Popen(
            [str(FUMEHOOD), "run", "-p", "python", "--engine", engine, "--", "python3", "-c", WAIT],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=lab.env,
        )
        for _ in range(6)
    ]  # fmt: skip
    time.sleep(0.8)  # some of them are in the middle of it
    lab.fumehood("stop", "--all")
    for process in processes:
        _, said = process.communicate(timeout=20)
        assert process.returncode not in (0, None)
        assert "Traceback" not in said
    assert of_boxes(lab) == []


def test_eight_boxes_end_within_five_seconds(lab: Lab, engine: str, record_property: Any) -> None:
    with ExitStack() as stack:
        for live in [stack.enter_context(lab.live(engine, WAIT)) for _ in range(8)]:
            live.line(60)
        told, seconds = stop(lab)
        record_property("seconds", seconds)
        assert (told["runtimes"], told["boxes_killed"], told["calls_ended"], told["calls_lost"]) == (8, 8, 8, 0), told
        assert of_boxes(lab) == []
        assert seconds < 5
    print(f"{engine}: {told['seconds']} s, {seconds:.2f} s with the interpreter's start")  # noqa: T201 - a figure


def test_a_runtime_whose_broker_is_silent_is_named_and_the_others_end_all_the_same(lab: Lab) -> None:
    with lab.live("oci", WAIT) as silent, lab.live("oci", WAIT) as other:
        silent.line()
        other.line()
        broker = silent.ours()["broker"]
        os.kill(broker, signal.SIGSTOP)
        try:
            done = lab.fumehood("stop", "--all", "--json")
            assert done.seconds < 5.5
            assert done.status == 1
            assert len(done.said["unanswered"]) == 1
            assert done.said["boxes_killed"] == 1
        finally:
            os.kill(broker, signal.SIGCONT)
        assert other.end().status != 0
        assert silent.end().status != 0, "told late, it ends all the same"


def test_a_stranger_who_knocks_and_says_nothing_does_not_keep_a_stop_waiting(lab: Lab) -> None:
    import socket

    with lab.live("oci", WAIT) as live, ExitStack() as stack:
        live.line()
        (folder,) = [path for path in (lab.state / "run").iterdir() if (path / "door").exists()]
        for _ in range(3):
            knocking = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            knocking.connect(str(folder / "door"))
        told, seconds = stop(lab)
        assert (told["boxes_killed"], seconds < 5) == (1, True)


def test_only_the_owner_of_the_state_folder_stops_it(lab: Lab) -> None:
    env = {**lab.env, "HOME": "/nonexistent"}
    for command in ("stop --all", "start"):
        done = subprocess.run(
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(FUMEHOOD), *command.split()],
            capture_output=True, text=True, env=env, cwd="/", check=False,
        )  # fmt: skip
        assert done.returncode == 125, done
        assert len(done.stderr.splitlines()) == 1
    assert not (lab.state / "stopped").exists()


def test_without_all_nothing_is_stopped(lab: Lab) -> None:
    done = lab.fumehood("stop")
    assert done.status == 125
    assert "--all" in done.one_clear_line()
    assert not (lab.state / "stopped").exists()
    assert "nothing was stopped" in lab.fumehood("start").stdout


def test_a_user_without_root_stops_their_own(user_lab: UserLab) -> None:
    with user_lab.live("oci", WAIT) as live:
        live.line(60)
        done = user_lab.fumehood("stop", "--all", "--json", "--reason", "mine")
        assert done.seconds < 5
        assert (done.said["boxes_killed"], done.said["calls_lost"]) == (1, 0), done
        assert live.end().status != 0
    refused = user_lab.attacked(UNLINK.replace("WHERE", str(user_lab.state / "stopped")), "oci", "true")
    assert refused.said["reason"] == "stopped", "nor does a worker of the user's own uid take it back"
    assert refused.stderr.splitlines() == ["Permission denied"] * 3
    assert user_lab.fumehood("start").status == 0
    assert user_lab.run("oci", "true").status == 0


def test_stopping_twice_and_at_once_is_stopping(lab: Lab) -> None:
    said: list[int] = []

    def one() -> None:
        said.append(lab.fumehood("stop", "--all").status)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [0, 0, 0]
    assert json.loads((lab.state / "stopped").read_text())["who"] == "root"


def test_with_an_unusable_ledger_everything_is_stopped_all_the_same(lab: Lab) -> None:
    state = lab.folder / "broken"
    (state / "ledger").mkdir(parents=True, mode=0o700)
    (state / "ledger" / "ledger.db").write_bytes(b"this is no database" * 1000)
    state.chmod(0o711)
    done = lab.fumehood("stop", "--all", "--json", env={"FUMEHOOD_STATE": str(state)})
    assert (done.status, done.stderr) == (1, "")
    assert "leases" in done.said["problem"]
    assert (state / "stopped").exists()
