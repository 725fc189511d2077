"""Checkpoints leave the host: into a file, to a server; and what becomes of calls when they cannot."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lab_for, needs_oci

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    needs_oci()
    with lab_for("python", "witness") as made:
        yield made


class Server:
    """An HTTP witness that keeps what it gets, or answers as it is told."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.status = 204
        self.hang = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if outer.status == 0:
                    outer.hang.wait(30)
                    return
                if outer.status < 300:
                    outer.kept.append(body)
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/checkpoints"


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.hang.set()
        server.server.shutdown()
        thread.join()
        server.server.server_close()


@contextmanager
def configured(lab: Lab, *witnesses: dict[str, Any]) -> Iterator[None]:
    file = lab.folder / "fumehood.yaml"
    before = file.read_text()
    file.write_text(before + f"evidence: {json.dumps({'witness': list(witnesses)})}\n")
    try:
        yield
    finally:
        file.write_text(before)


@pytest.fixture
def outside(lab: Lab) -> Iterator[Path]:
    folder = lab.folder / "outside"
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


def test_a_file_has_the_end_of_each_chain_and_an_old_copy_is_found_with_it(lab: Lab, outside: Path) -> None:
    file = outside / "checkpoints.jsonl"
    with configured(lab, {"file": str(file)}):
        assert lab.python("oci", "pass").status == 0
        old = {path: path.read_bytes() for path in (lab.state / "ledger").iterdir() if path.is_file()}
        assert lab.python("oci", "pass").status == 0
    assert len(file.read_text().splitlines()) == 2
    assert file.stat().st_mode & 0o777 == 0o600
    done = lab.fumehood("audit", "verify", "--witness", str(file))
    assert (done.status, "2 checkpoints of the witness were compared" in done.stdout) == (0, True), done.stdout
    assert str(file) in lab.fumehood("audit", "heads").stdout
    newest = {path: path.read_bytes() for path in old}
    for path, content in old.items():
        path.write_bytes(content)
    assert lab.fumehood("audit", "verify").status == 0
    found = lab.fumehood("audit", "verify", "--witness", str(file), "--json")
    assert (found.status, found.said["faults"][0]["group"]) == (1, "witness")
    for path, content in newest.items():
        path.write_bytes(content)


def test_a_server_is_posted_the_signed_checkpoint_by_a_process_that_has_no_key(lab: Lab) -> None:
    with serving() as server, configured(lab, {"http": server.url}):
        assert lab.python("oci", "pass").status == 0
        (kept,) = server.kept
    witness = lab.folder / "kept.jsonl"
    witness.write_text(kept + "\n")
    assert lab.fumehood("audit", "verify", "--witness", str(witness)).status == 0


def test_a_witness_that_fails_costs_a_call_nothing_and_is_shown(lab: Lab) -> None:
    with serving() as server, configured(lab, {"http": server.url}):
        server.status = 500
        done = lab.python("oci", "print('ran')")
        assert (done.status, done.told) == (0, "ran\n")
        assert "status 500" in done.stderr
        assert "FAILS since" in lab.fumehood("audit", "verify").stdout
        (known,) = [each for each in lab.fumehood("audit", "heads", "--json").said["witnesses"] if each["name"] == server.url]
        assert "status 500" in known["error"]


def test_a_server_that_never_answers_is_not_waited_for_by_a_call(lab: Lab) -> None:
    with serving() as server, configured(lab, {"http": server.url}):
        server.status = 0
        done = lab.python("oci", "print('ran')")
        assert done.told == "ran\n"
        assert done.seconds < 12
        assert done.said["timings_ms"]["total"] < 4000, "only the process's end waits, and not for long"


def test_a_required_witness_that_could_not_be_told_refuses_calls_until_it_can_be(lab: Lab) -> None:
    with serving() as server, configured(lab, {"http": server.url, "required": True}):
        server.status = 503
        assert lab.python("oci", "pass").status == 0, "nobody knows yet"
        refused = lab.python("oci", "pass")
        assert refused.said["reason"] == "witness_unavailable"
        assert "503" in refused.said["detail"]
        server.status = 204
        assert lab.python("oci", "pass").status == 0
        assert server.kept


@pytest.mark.parametrize(
    ("witness", "said"),
    [
        ({"file": "relative"}, "absolute path"),
        ({"http": "ftp://x/y"}, "http(s)://HOST"),
        ({"http": "https://name:word@x/y"}, "no place for a secret"),
        ({"file": "/a", "http": "http://x/y"}, "exactly one of file, http"),
        ({}, "exactly one of file, http"),
        ({"file": "/a", "requird": True}, "requird"),
        ({"file": "/nonexistent/a"}, "no folder"),
        ({"file": "/tmp/a"}, "written by others"),
    ],
)
def test_a_witness_that_is_configured_wrongly_is_one_line_and_nothing_runs(lab: Lab, witness: dict[str, Any], said: str) -> None:
    with configured(lab, witness):
        done = lab.python("oci", "pass")
    assert (done.status, done.said["task"]) == (125, "")
    assert said in done.said["detail"]


def test_a_link_in_place_of_the_file_is_not_followed(lab: Lab, outside: Path) -> None:
    target = lab.folder / "target"
    target.write_text("mine")
    (outside / "w").symlink_to(target)
    with configured(lab, {"file": str(outside / "w")}):
        assert "cannot be appended to" in lab.python("oci", "pass").said["detail"]
    assert target.read_text() == "mine"


def test_a_file_inside_the_workspace_is_refused_because_a_box_could_write_it(lab: Lab) -> None:
    workspace = lab.workspace("w")
    with configured(lab, {"file": str(workspace / "w.jsonl")}):
        done = lab.run("oci", "true", workspace=workspace)
    assert (done.status, done.said["reason"]) == (125, "config_unsafe")


def test_the_witness_process_has_the_workers_uid_no_capability_and_a_filter(lab: Lab, outside: Path) -> None:
    with configured(lab, {"file": str(outside / "w")}), lab.live("oci", "print('here'); input()") as live:
        live.line()
        children = [int(pid) for pid in Path(f"/proc/{live.worker}/task/{live.worker}/children").read_text().split()]
        appending = []
        for pid in children:
            files = []
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    files.append(os.readlink(fd))
                except OSError:
                    continue
            if str(outside / "w") in files:
                appending.append(pid)
        (pid,) = appending
        told = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        worker = dict(line.split(":\t", 1) for line in Path(f"/proc/{live.worker}/status").read_text().splitlines() if ":\t" in line)
        assert told["Uid"] == worker["Uid"]
        assert told["Uid"].split()[0] != "0"
        assert int(told["CapPrm"], 16) == int(told["CapEff"], 16) == 0
        assert told["Seccomp"] == "2"
        live.say("")
        assert live.end().status == 0
