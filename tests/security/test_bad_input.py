"""Mistakes and hostile arguments: each ends in one clear line, the documented exit status, and a closed record if a task began."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import FUMEHOOD, PARENT, Done, Lab

pytestmark = pytest.mark.usefixtures("nothing_left")


def refused(done: Done, reason: str, status: int = 125) -> str:
    line = done.one_clear_line()
    assert done.status == status, line
    assert line.startswith(f"fumehood: {reason}: "), line
    return line


def cli(lab: Lab, *args: str, **options: object) -> Done:
    """`run` without --json: what a person sees."""
    return lab.fumehood("run", *args, **options)  # type: ignore[arg-type] # passed on


# ---- profiles, images, engines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["limits: {memory: lots}\n", "nonsense: 1\n", "limits: [\n", "devices: [kvm]\n", "network: {egress: [x]}\n", "limits: {pids: -1}\n"]
)
def test_a_broken_profile(lab: Lab, text: str) -> None:
    done = cli(lab, "--profile", lab.profile("broken", text), "--", "true")
    assert done.status == 125
    assert "broken.yaml:" in done.one_clear_line()


def test_an_unknown_profile(lab: Lab) -> None:
    refused(cli(lab, "--profile", "no-such-profile", "--", "true"), "profile_unknown")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "/dev/zero", "/proc/self/mem", "x" * 5000, "a\nb"])
def test_a_profile_name_that_is_none(lab: Lab, name: str) -> None:
    done = cli(lab, "--profile", name, "--", "true")
    assert done.status == 125
    done.one_clear_line()


@pytest.mark.parametrize("image", ["no-such-image", "sha256:" + "0" * 64])
def test_a_missing_image_closes_the_record_as_refused(lab: Lab, image: str) -> None:
    profile = lab.profile("no-image", f"image: {image}\n")
    refused(cli(lab, "--profile", profile, "--", "true"), "image_missing")
    record = lab.record("profile", profile)
    assert (record["state"], record["result"], record["reason"]) == ("closed", "refused", "image_missing")


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://192.0.2.1:2375", "ssh://nobody@192.0.2.1", "npipe://x", "garbage"])
def test_no_engine_or_a_remote_one(lab: Lab, host: str) -> None:
    done = cli(lab, "--profile", "python", "--engine", "docker", "--", "true", env={"DOCKER_HOST": host}, timeout=30)
    refused(done, "engine_unavailable")


def test_an_engine_that_does_not_exist(lab: Lab) -> None:
    refused(cli(lab, "--profile", "python", "--engine", "podman", "--", "true"), "bad_request")


def test_a_profile_that_insists_on_a_user_namespace_is_refused_by_docker(lab: Lab, has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    profile = lab.profile("userns", "user_namespace: always\n")
    refused(cli(lab, "--profile", profile, "--engine", "docker", "--", "true"), "unenforceable")
    assert lab.run("oci", "true", profile=profile).status == 0


def test_a_runtime_with_known_holes_needs_the_risk_named(lab: Lab) -> None:
    old = lab.folder / "old" / "runc"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'runc version 1.1.5'\n")
    old.chmod(0o755)
    config = lab.folder / "old.yaml"
    config.write_text(f"runtimes: {{runc: {old}}}\n")
    profile = lab.profile("risky", "runtime: runc\n")
    line = refused(cli(lab, "--profile", profile, "--engine", "oci", "--config", str(config), "--", "true"), "risk_not_accepted")
    assert "accept_risk" in line


# ---- workspaces ------------------------------------------------------------------------------------------------------


def test_a_workspace_that_is_not_there_or_is_a_file(lab: Lab) -> None:
    for path in (lab.folder / "nowhere", lab.folder / "fumehood.yaml", Path("/dev/null")):
        refused(cli(lab, "--profile", "python", "--workspace", str(path), "--", "true"), "workspace_unreadable")


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/self", "/sys", "/dev", "/dev/shm", "STATE", "PARENT", "STATE/images"])
def test_a_workspace_that_is_never_given(lab: Lab, path: str) -> None:
    real = path.replace("STATE", str(lab.state)).replace("PARENT", str(PARENT))
    if path == "STATE/images":
        real = str(lab.state / "ids")
    # Without the lab's configuration: that lies below some of these, which is a refusal of its own.
    done = cli(lab, "--profile", "python", "--workspace", real, "--", "true", env={"FUMEHOOD_CONFIG": ""})
    refused(done, "workspace_not_allowed")
    record = lab.record("profile", "python")
    assert (record["state"], record["reason"]) == ("closed", "workspace_not_allowed")


def test_a_link_to_a_workspace_that_is_never_given(lab: Lab) -> None:
    link = lab.folder / "link"
    link.symlink_to("/proc")
    refused(cli(lab, "--profile", "python", "--workspace", str(link), "--", "true"), "workspace_not_allowed")


def test_put_and_get_stay_inside_the_workspace(lab: Lab) -> None:
    source = lab.folder / "put-source"
    source.write_text("content")
    for place in ("/etc/x", "/workspace/../x"):
        done = cli(lab, "--profile", "python", "--put", f"{source}:{place}", "--", "true")
        assert done.status == 125, place
        done.one_clear_line()
    code = "import os; os.symlink('/etc/passwd', 'link'); os.mkfifo('fifo'); os.mkdir('d')"
    for place in ("link", "fifo", "d"):
        target = lab.folder / "got"
        done = cli(lab, "--profile", "python", "--get", f"{place}:{target}", "--", "python3", "-c", code, timeout=30)
        assert done.status != 0, place
        done.one_clear_line()
        assert target.read_bytes() == b""


# ---- commands --------------------------------------------------------------------------------------------------------


def test_a_command_that_is_not_there_or_not_executable(lab: Lab, engine: str) -> None:
    for command in ("no-such-command", "/etc/passwd", "") if engine == "oci" else ("/nowhere",):
        done = lab.run(engine, command)
        assert (done.status, done.said["outcome"], done.said["reason"]) == (127, "failed", "not_executable"), command
        assert lab.record("task", done.said["task"])["state"] == "closed"


def test_no_command_at_all(lab: Lab) -> None:
    done = lab.fumehood("run", "--profile", "python", "--")
    assert done.status != 0
    assert "Traceback" not in done.stderr


def test_a_huge_command_line(lab: Lab) -> None:
    profile = lab.profile("huge", "limits: {wall: 20s}\n")
    done = cli(lab, "--profile", profile, "--", "true", *["x" * 60_000] * 4)
    refused(done, "bad_request")
    assert lab.record("profile", profile)["state"] == "closed"
    assert cli(lab, "--profile", "python", "--", "true", *["x"] * 15_000).status == 0


def test_odd_bytes_in_arguments_arrive_as_they_are(lab: Lab) -> None:
    code = "import os, sys; sys.stdout.buffer.write(os.fsencode(sys.argv[1]))"
    odd = b"\xff\xfe \x01 \xc3\xa9"
    done = subprocess.run(
        [str(FUMEHOOD), "run", "--profile", "python", "--engine", "oci", "--", "python3", "-c", code, odd],
        capture_output=True, env=lab.env, cwd=lab.folder, timeout=30, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout == odd
    assert done.stderr == b""


def test_exit_statuses_are_the_tools_own(lab: Lab) -> None:
    assert cli(lab, "--profile", "python", "--", "python3", "-c", "raise SystemExit(42)").status == 42
    assert cli(lab, "--profile", "python", "--", "python3", "-c", "import os; os.kill(os.getpid(), 15)").status == 143


# ---- the state folder ------------------------------------------------------------------------------------------------


def test_a_state_folder_of_a_newer_version(lab: Lab) -> None:
    state = lab.folder / "newer"
    state.mkdir(mode=0o711)
    (state / "version").write_text("999\n")
    refused(cli(lab, "--profile", "python", "--", "true", env={"FUMEHOOD_STATE": str(state)}), "state_newer")


@pytest.mark.parametrize("how", ["writable", "another's", "a file", "a garbled version"])
def test_a_state_folder_that_cannot_be_trusted(lab: Lab, how: str) -> None:
    state = lab.folder / "untrusted"
    shutil.rmtree(state, ignore_errors=True)
    state.unlink() if state.is_file() else None
    if how == "a file":
        state.write_text("")
    else:
        state.mkdir(mode=0o711)
        if how == "writable":
            state.chmod(0o777)
        elif how == "another's":
            os.chown(state, 54321, 54321)
        else:
            (state / "version").write_text("one\n")
    refused(cli(lab, "--profile", "python", "--", "true", env={"FUMEHOOD_STATE": str(state)}), "state_unavailable")
    state.unlink() if state.is_file() else shutil.rmtree(state)


def test_a_full_disk_under_the_state_folder(lab: Lab) -> None:
    place = lab.folder / "full"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size=256k,mode=711 tmpfs {place} && ln -s {lab.state}/images {place}/images"
        f" && head -c 1M /dev/zero > {place}/fill 2>/dev/null; exec {FUMEHOOD} run --profile python --engine oci -- echo ran"
    )
    done = lab.fumehood(program=["unshare", "-m", "sh", "-c", script], env={"FUMEHOOD_STATE": str(place)})
    assert done.status == 125
    assert done.stdout == ""
    line = done.one_clear_line()
    assert "state_unavailable" in line or "ledger_unavailable" in line, line


def test_a_disk_with_no_room_for_records_runs_nothing(lab: Lab) -> None:
    place = lab.folder / "little"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size=2m,mode=711 tmpfs {place} && ln -s {lab.state}/images {place}/images"
        f" && exec {FUMEHOOD} run --profile python --engine oci -- echo ran"
    )
    done = lab.fumehood(program=["unshare", "-m", "sh", "-c", script], env={"FUMEHOOD_STATE": str(place)})
    assert (done.status, done.stdout) == (125, "")
    assert "ledger_unavailable" in done.stderr or "state_unavailable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_strict_umask_changes_nothing(lab: Lab, engine: str) -> None:
    state = lab.folder / f"umask-{engine}"
    state.mkdir(mode=0o711)
    (state / "images").symlink_to(lab.state / "images")
    script = f"umask 077; exec {FUMEHOOD} run --profile python --engine {engine} -- echo ran"
    done = lab.fumehood(program=["sh", "-c", script], env={"FUMEHOOD_STATE": str(state)})
    assert (done.status, done.stdout) == (0, "ran\n"), done.stderr


def test_a_user_without_rights_is_told_so_in_one_line(lab: Lab) -> None:
    done = lab.fumehood(
        program=["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", str(FUMEHOOD), "run", "--profile", "python", "--", "true"],
        env={"FUMEHOOD_CONFIG": "", "FUMEHOOD_STATE": "", "HOME": "/nonexistent"},
    )  # fmt: skip
    refused(done, "unenforceable")
