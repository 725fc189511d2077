"""What a handed-over function, or whoever took it over, could do to the server that called it. Real boxes, as root.

One driver a engine opens a runtime, as a server would, and calls the functions of `inside/handed.py`; the tests read what it saw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fumehood
from handing import Driver, boxes, start, until
from lab import Lab, children, status


@pytest.fixture(scope="module")
def driver(lab: Lab, engine: str) -> Iterator[Driver]:
    process = start(lab, engine)
    one = Driver(process)
    try:
        assert one.line() == "open"
        yield one
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors, errors
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)
    assert lab.left() == []


# ---- who parses what boxes say ---------------------------------------------------------------------------------------


def test_an_embedding_server_gives_up_root_in_every_thread(driver: Driver) -> None:
    folder = Path(f"/proc/{driver.process.pid}/task")
    threads = list(folder.iterdir())
    assert len(threads) >= 2
    for thread in threads:
        told = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        assert "0" not in told["Uid"].split() + told["Gid"].split()
        assert told["Groups"].split() == []
        assert {told[name] for name in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    tried = """
import threading, subprocess
found = []
def attempt():
    for what in (lambda: os.setuid(0), lambda: subprocess.run(["/bin/true"]), lambda: open("/etc/shadow"), lambda: os.chroot("/")):
        try:
            what()
            found.append("done")
        except OSError:
            found.append("refused")
one = threading.Thread(target=attempt); one.start(); one.join()
"""
    assert driver.ask("exec", tried) == ["refused"] * 4


def test_the_privileged_processes_of_an_embedding_server_hold_nothing_of_it(driver: Driver) -> None:
    assert driver.call("nan")[0] == "failed"  # the ledger has answered, so it has given up what it had
    (helper,) = children(driver.process.pid)
    crew = children(helper)
    assert len(crew) == 2
    assert {int(status(pid)["Uid"].split()[0]) == 0 for pid in crew} == {True, False}
    for pid in (helper, *crew):
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert [name for name in held if "driver" in name or "/code" in name] == []
    assert [os.readlink(f"/proc/{helper}/fd/{fd}") for fd in "01"] == ["/dev/null"] * 2


def test_a_second_runtime_in_one_process_is_refused(driver: Driver) -> None:
    tried = """
def attempt():
    manager = fumehood.Runtime.open()
    try:
        manager.__aenter__().send(None)
    except fumehood.FumehoodError as error:
        return str(error)
found = attempt()
"""
    assert "a runtime is open in this process already" in driver.ask("exec", tried)


# ---- what comes back -------------------------------------------------------------------------------------------------


def test_lines_that_a_function_prints_are_no_result(driver: Driver) -> None:
    assert driver.call("forged_frames") == ["ok", "'honest'"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan", "result_invalid"), ("deep", "result_invalid"), ("an_object", "result_invalid"),
        ("wrong_type", "result_invalid"), ("huge", "result_too_large"), ("forks_and_dies", "function_died"),
    ],
)  # fmt: skip
def test_a_result_that_is_none_is_a_typed_error(driver: Driver, name: str, reason: str) -> None:
    said = driver.call(name)
    assert said[:2] == ["failed", reason]
    assert said[3] == "failed"


@pytest.mark.parametrize(
    "line",
    [
        '{"token": "TOKEN", "kind": "result", "value": NaN}',
        '{"token": "TOKEN", "kind": "result", "value": 1e999}',
        '{"token": "TOKEN", "kind": "result", "value": 1, "value": 2}',
        '{"token": "TOKEN", "kind": "result", "value": "\\ud800"}',
        '{"token": "TOKEN", "kind": "result", "value": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"token": "TOKEN", "kind": "pickle", "value": "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAV0b3VjaJSFlFKULg=="}',
        '{"token": "TOKEN", "kind": {"a": 1}}',
        '{"token": "TOKEN"}',
    ],
)
def test_a_forged_line_with_the_right_token_is_judged_like_any_other(driver: Driver, line: str) -> None:
    assert driver.call("raw", line=line)[:2] == ["failed", "result_invalid"]


def test_lines_without_end_are_bounded_in_number_and_length(driver: Driver) -> None:
    assert driver.call("raw", line="{}", repeat=20_000)[:2] == ["failed", "result_invalid"]
    assert driver.call("long_line", size=4 * 2**20)[:2] == ["failed", "result_too_large"]
    noisy = '{"token": "TOKEN", "kind": "log", "logger": "handed", "level": 40, "message": "x"}'
    found = driver.ask("raw", {"line": noisy, "repeat": 30_000})
    assert found["said"][:2] == ["failed", "function_died"]
    assert len([record for record in found["records"] if record[0] == "handed"]) == 10_000


def test_exceptions_come_back_only_as_types_that_were_known_before(driver: Driver) -> None:
    assert driver.call("raises", what="mine")[1:3] == ["handed.MineError", "of mine"]
    assert driver.call("raises", what="builtins.ValueError")[1:3] == ["builtins.ValueError", "hostile"]
    remote = "fumehood.delegate.errors.RemoteError"
    for name in ("builtins.KeyboardInterrupt", "builtins.StopIteration", "builtins.eval", "os.system", "fumehood.faults.Refused", "handed.Point"):
        assert driver.call("raises", what=name)[:3] == ["raised", remote, f"{name}: hostile"]
    assert driver.call("raises", what="exit")[1:3] == [remote, "builtins.SystemExit: 3"]
    assert driver.call("raises", what="unprintable")[1] == remote
    for name in ('["builtins", "KeyboardInterrupt"]', '["builtins", ["x"]]', "17", '["a"]', '[{"a": 1}, null]'):
        line = f'{{"token": "TOKEN", "kind": "raised", "type": {name}, "message": {{"a": 1}}, "traceback": 5}}'
        assert driver.call("raw", line=line)[:2] == ["raised", remote]


def test_an_exceptions_words_cannot_drive_a_terminal(driver: Driver) -> None:
    said = driver.call("raises", what="terminal")
    assert said[1] == "builtins.ValueError"
    assert said[2] == "\\u001b]0;owned\\u0007 \\u202e"
    (note,) = said[3]
    assert "\x1b" not in note
    assert "handed.py" in note


def test_a_function_speaks_only_as_its_own_loggers_and_never_louder_than_critical(driver: Driver) -> None:
    records = [tuple(record) for record in driver.ask("logs", {})["records"]]
    names = {name for name, _, _ in records}
    assert {name.split(".")[0] for name in names} == {"handed"}
    assert len(names) <= 66
    assert ("handed", 50, "task done") in records
    assert ("handed", 50, "loud \\u001b[2J") in records
    assert ("handed", 30, "%s %(secret)s") in records
    assert ("handed.own", 40, "own") in records


def test_a_fork_neither_holds_the_call_nor_answers_for_it(driver: Driver) -> None:
    held = driver.ask("forks_and_holds", {})
    assert held["said"] == ["ok", "'parent'"]
    assert held["seconds"] < 10
    assert driver.call("child_answers_first") == ["ok", "'parent'"]


# ---- what it reaches -------------------------------------------------------------------------------------------------


def test_a_function_cannot_write_its_source(driver: Driver, lab: Lab) -> None:
    source = lab.folder / "code" / "handed.py"
    before = source.read_bytes()
    kind, said = driver.call("writes_source")
    assert kind == "ok"
    assert "done" not in said
    assert source.read_bytes() == before


def test_a_function_sees_its_module_and_nothing_beside_it(driver: Driver, lab: Lab) -> None:
    host = [str(lab.folder), str(lab.folder / "code"), fumehood.__file__, "/var/lib/fumehood", "/var/run/docker.sock"]
    kind, said = driver.call("looks_around", paths=host)
    assert kind == "ok"
    assert "'beside': ['handed.py']" in said
    assert "'mounts': ['fumehood-source']" in said
    assert "'there': []" in said
    assert "SERVERS_SECRET" not in said


@pytest.mark.parametrize(
    "arguments",
    [{"point": 1}, {"point": {"x": "1", "label": "a"}}, {}, {"point": {"x": 1, "label": "a"}, "more": [1]}, {"other": 1}],
)
def test_arguments_that_do_not_fit_start_nothing(driver: Driver, arguments: dict[str, Any]) -> None:
    said = driver.call("echo", **arguments)
    assert said[:2] == ["refused", "arguments_invalid"]
    assert driver.ask("echo", arguments)["seconds"] < 0.05


def test_values_arrive_as_the_types_that_the_function_names(driver: Driver) -> None:
    assert driver.call("echo", point={"x": 1, "label": "é"}) == ["ok", "[Point(x=1, label='é')]"]


def test_cancelling_a_call_removes_its_box(driver: Driver, lab: Lab) -> None:
    driver.begin("sleeps", {"seconds": 15}, 2.0)
    until(lambda: boxes(lab) != [], 5)
    found = driver.line()
    assert found["said"][:2] == ["raised", "builtins.TimeoutError"]
    assert found["seconds"] < 6
    assert boxes(lab) == []
