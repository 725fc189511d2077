"""What a box, or anybody else, plants on the host: configuration, profiles, links and setuid files in a workspace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from lab import Lab

pytestmark = pytest.mark.usefixtures("nothing_left")
EVIL = "accept_risk: [cve-2025-31133, cve-2025-52565, cve-2025-52881]\nengine: docker\nboxes: 1\n"


# ---- rule 6: configuration and profiles ------------------------------------------------------------------------------


def test_a_planted_configuration_in_the_working_directory_is_not_read(lab: Lab) -> None:
    folder = lab.workspace("planted")
    for name in ("fumehood.yaml", ".fumehood.yaml", "config.yaml"):
        (folder / name).write_text("this is: [not valid\n")
    unset = {"FUMEHOOD_CONFIG": ""}
    assert lab.python("oci", "print(1)", env=unset, cwd=folder).status == 0
    relative = lab.python("oci", "print(1)", env={"FUMEHOOD_CONFIG": "fumehood.yaml"}, cwd=folder)
    assert (relative.status, relative.said["reason"]) == (125, "config_unsafe")


def test_a_planted_configuration_does_not_accept_a_risk(lab: Lab, has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    folder = lab.workspace("planted")
    (folder / "fumehood.yaml").write_text(EVIL)
    done = lab.python("docker", "print(1)", env={"FUMEHOOD_CONFIG": ""}, cwd=folder)
    # A host whose runc is mended has no risk to accept; then there is nothing to steal either.
    assert (done.status, done.said["reason"]) in {(125, "risk_not_accepted"), (0, None)}


@pytest.mark.parametrize("how", ["writable", "another's", "in a writable folder", "behind another's link"])
def test_a_configuration_that_others_could_have_written_is_refused(lab: Lab, how: str) -> None:
    folder = lab.workspace("others")
    path = folder / "fumehood.yaml"
    path.write_text(EVIL)
    if how == "writable":
        path.chmod(0o666)
    elif how == "another's":
        os.chown(path, 54321, 54321)
    elif how == "in a writable folder":
        folder.chmod(0o777)
    else:
        (folder / "link").symlink_to(path)
        os.chown(folder / "link", 54321, 54321, follow_symlinks=False)
        path = folder / "link"
    done = lab.fumehood("run", "--profile", "python", "--config", str(path), "--", "true")
    assert done.status == 125
    assert "config_unsafe" in done.one_clear_line()


def test_a_profile_in_the_working_directory_is_not_found_and_one_in_the_workspace_refused(lab: Lab) -> None:
    folder = lab.workspace("profiles")
    (folder / "evil.yaml").write_text("extends: python\nseccomp: unix-sockets\n")
    unknown = lab.fumehood("run", "--profile", "evil", "--", "true", cwd=folder)
    assert unknown.status == 125
    assert "profile_unknown" in unknown.one_clear_line()
    for name in (str(folder / "evil.yaml"), "./evil.yaml"):
        done = lab.fumehood("run", "--profile", name, "--workspace", str(folder), "--", "true", cwd=folder)
        assert done.status == 125
        assert "config_unsafe" in done.one_clear_line()
    (lab.folder / "profiles" / "link.yaml").symlink_to(folder / "evil.yaml")
    done = lab.fumehood(
        "run", "--profile", str(lab.folder / "profiles" / "link.yaml"), "--workspace", str(folder), "--", "true"
    )
    assert done.status == 125
    assert "config_unsafe" in done.one_clear_line()


def test_a_bare_profile_name_works_in_the_workspace_itself(lab: Lab) -> None:
    folder = lab.workspace("here")
    (folder / "python").write_text("not looked at")
    (folder / "python.yaml").write_text("not: looked at")
    done = lab.fumehood("run", "--profile", "python", "--workspace", ".", "--engine", "oci", "--", "true", cwd=folder)
    assert (done.status, done.stderr) == (0, "")


def test_a_box_that_plants_hooks_and_configuration_gets_them_held_back(lab: Lab, engine: str) -> None:
    workspace = lab.workspace(f"hooks-{engine}")
    (workspace / "kept").write_text("before")
    code = """
import os
os.makedirs(".git/hooks")
for name in (".git/hooks/post-checkout", "fumehood.yaml", ".envrc", "kept"):
    with open(name, "w") as file: file.write("#!/bin/sh\\nid\\n")
"""
    done = lab.python(engine, code, workspace=workspace)
    assert (done.status, done.said["pending"]) == (0, True)
    assert sorted(path.name for path in workspace.iterdir()) == ["kept"]
    assert (workspace / "kept").read_text() == "before"
    assert lab.fumehood("discard", done.said["task"]).status == 0


# ---- rules 11 and 12: what comes back from a workspace ---------------------------------------------------------------


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "sub/../../../etc/passwd", "/proc/self/root"])
def test_a_link_out_of_the_workspace_is_not_committed(lab: Lab, target: str) -> None:
    workspace = lab.workspace("links")
    done = lab.python("oci", f"import os; os.symlink({target!r}, 'link'); open('fine', 'w')", workspace=workspace)
    assert (done.status, done.said["reason"]) == (125, "commit_refused")
    assert list(workspace.iterdir()) == []
    lab.fumehood("discard", done.said["task"])


def test_a_link_swapped_in_on_the_host_meanwhile_is_not_followed(lab: Lab, engine: str) -> None:
    workspace, outside = lab.workspace(f"swap-{engine}"), lab.workspace(f"outside-{engine}")
    (workspace / "sub").mkdir()
    (outside / "file").write_text("the host's")
    code = "open('sub/file', 'w').write('owned'); open('sub/new', 'w').write('owned'); print('up'); input()"
    with lab.live(engine, code, workspace=workspace) as live:
        assert live.line() == "up"
        (workspace / "sub").rmdir()
        (workspace / "sub").symlink_to(outside)
        live.say("")
        live.end()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "the host's"}
    for task in json.loads(lab.fumehood("tasks", "--json", "--limit", "1").stdout):
        lab.fumehood("discard", task["task"])


def test_files_come_back_as_the_directory_owners_without_special_bits(lab: Lab, engine: str) -> None:
    workspace = lab.workspace(f"owner-{engine}")
    os.chown(workspace, 54321, 54321)
    code = "import os; open('f', 'w').write('x'); os.mkdir('d', 0o777); open('d/g', 'w').write('y'); os.chmod('f', 0o777)"
    done = lab.python(engine, code, workspace=workspace)
    assert done.status == 0, done.said
    for path in (workspace / "f", workspace / "d", workspace / "d" / "g"):
        found = path.stat()
        assert (found.st_uid, found.st_mode & 0o7000) == (54321, 0)


def test_a_killed_tools_changes_vanish(lab: Lab, engine: str) -> None:
    workspace = lab.workspace(f"killed-{engine}")
    (workspace / "kept").write_text("before")
    profile = lab.profile("short", "limits: {wall: 1s}\n")
    code = "import os, time; os.unlink('kept'); open('new', 'w'); time.sleep(60)"
    done = lab.python(engine, code, workspace=workspace, profile=profile)
    assert done.status == 124
    assert {path.name: path.read_text() for path in workspace.iterdir()} == {"kept": "before"}


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_sockets_of_the_host_in_a_workspace_cannot_be_connected(lab: Lab, engine: str, mode: str) -> None:
    workspace = lab.workspace(f"sockets-{engine}-{mode}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(workspace / "s"))
        (workspace / "s").chmod(0o777)
        server.listen(1)
        code = "import socket; s = socket.socket(socket.AF_UNIX)\ntry: s.connect('/workspace/s'); print('in')\nexcept OSError as e: print(e.errno)"
        profile = lab.profile(f"sock-{mode}", f"seccomp: unix-sockets\nfilesystem: {{workspace: {mode}}}\n")
        done = lab.python(engine, code, workspace=workspace, profile=profile)
    assert done.told == "111\n", done.said


def test_a_read_only_workspace_cannot_be_written(lab: Lab, engine: str) -> None:
    workspace = lab.workspace(f"ro-{engine}")
    (workspace / "f").write_text("before")
    (workspace / "f").chmod(0o666)
    code = "import os\nfor a in (lambda: open('f','w'), lambda: open('n','w'), lambda: os.unlink('f'), lambda: os.chmod('f', 0)):\n try: a(); print('changed')\n except OSError as e: print(e.errno)"
    done = lab.python(engine, code, workspace=workspace, profile=lab.profile("ro", "filesystem: {workspace: ro}\n"))
    assert done.told == "30\n" * 4
    assert (workspace / "f").read_text() == "before"


def test_two_calls_on_one_workspace_wait_for_each_other(lab: Lab) -> None:
    workspace = lab.workspace("fair")
    with lab.live("oci", "print('up'); input()  # holds", workspace=workspace) as first:
        assert first.line() == "up"
        assert lab.boxed("# holds")
        done = lab.python("oci", "print(1)", workspace=workspace, profile=lab.profile("impatient", "limits: {wall: 1s}\n"))
        assert (done.status, done.said["reason"]) == (125, "workspace_busy")
        first.say("")
        assert first.end().status == 0


# ---- rule 13: images -------------------------------------------------------------------------------------------------

TOOL = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
extern char **environ;
int main(void) {
  char line[4096];
  FILE *mounts = fopen("/proc/self/mountinfo", "r");
  while (mounts && fgets(line, sizeof line, mounts)) printf("mount %s", line);
  for (char **entry = environ; *entry; entry++) printf("env %s\n", *entry);
  printf("ran %d\n", access("/data/ran", F_OK) && access("/tmp/ran", F_OK));
  return 0;
}
"""


def docker_save(folder: Path) -> Path:
    """A `docker save` archive whose configuration would run things and mount things, did anybody read it."""
    root = folder / "root"
    for name in ("dev", "proc", "sys", "tmp", "workspace", "etc", "data", "bin"):
        (root / name).mkdir(parents=True)
    (folder / "tool.c").write_text(TOOL)
    subprocess.run(["gcc", "-static", "-O1", "-o", str(root / "bin" / "tool"), str(folder / "tool.c")], check=True, timeout=60)
    (root / "bin" / "tool").chmod(0o4755)
    archive = folder / "archive"
    archive.mkdir()
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive / "layer.tar"), "."], check=True, timeout=60)
    config = {
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {
            "Entrypoint": ["/bin/tool", "entry"], "Cmd": ["evil"], "Env": ["LD_PRELOAD=/data/evil.so", "EVIL=1"], "User": "0",
            "Volumes": {"/data": {}}, "Labels": {"fumehood": "forged", "fumehood.task": "forged"}, "WorkingDir": "/data",
            "Healthcheck": {"Test": ["CMD", "/bin/tool"], "Interval": 1_000_000}, "StopSignal": "SIGSTOP", "Shell": ["/bin/tool"],
        },
    }  # fmt: skip
    (archive / "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": ["evil:latest"], "Layers": ["layer.tar"]}]
    (archive / "manifest.json").write_text(json.dumps(manifest))
    subprocess.run(["tar", "-C", str(archive), "-cf", str(folder / "evil.tar"), "."], check=True, timeout=60)
    return folder / "evil.tar"


def test_an_images_healthcheck_volume_entrypoint_env_and_setuid_are_dropped(lab: Lab, engine: str) -> None:
    name = f"evil-{engine}-{os.getpid()}"
    imported = lab.fumehood("image", "import", name, str(docker_save(lab.workspace(name))), "--json", timeout=120)
    assert imported.status == 0, imported.stderr
    try:
        profile = lab.folder / "profiles" / f"{name}.yaml"
        profile.write_text(f"image: {name}\nfilesystem: {{workspace: scratch}}\n")
        done = lab.run(engine, "/bin/tool", profile=str(profile))
        assert (done.status, done.said["outcome"]) == (0, "ok"), done.said
        lines = done.told.splitlines()
        assert "ran 1" in lines
        assert {line.split("=")[0] for line in lines if line.startswith("env ")} == {
            "env PATH", "env HOME", "env TMPDIR", "env LANG", "env LC_ALL",
        }  # fmt: skip
        assert not [line for line in lines if line.startswith("mount ") and " /data " in line]
        digest = imported.said["digest"].replace(":", "-")
        assert not (lab.state / "images" / digest / "rootfs/bin/tool").stat().st_mode & 0o6000
    finally:
        assert lab.fumehood("image", "rm", name).status == 0


@pytest.mark.parametrize("link", ["dev", "proc", "sys", "tmp", "workspace"])
def test_an_image_whose_mount_point_is_a_link_is_refused(lab: Lab, link: str) -> None:
    folder = lab.workspace("linked")
    root = folder / "root"
    for name in {"dev", "proc", "sys", "tmp", "workspace", "etc"} - {link}:
        (root / name).mkdir(parents=True)
    (root / link).symlink_to("/etc")
    subprocess.run(["tar", "-C", str(root), "-cf", str(folder / "root.tar"), "."], check=True, timeout=60)
    done = lab.fumehood("image", "import", f"linked-{os.getpid()}", str(folder / "root.tar"))
    assert done.status == 125
    assert "image_unsafe" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("front_door", ["run", "gateway"])
def test_a_configuration_inside_the_workspace_is_refused_even_when_named(lab: Lab, front_door: str) -> None:
    workspace = lab.workspace("configured")
    (workspace / "fumehood.yaml").write_text("boxes: 2\n")
    env = {**lab.env, "FUMEHOOD_CONFIG": str(workspace / "fumehood.yaml")}
    done = lab.fumehood(front_door, "--profile", "python", "--workspace", str(workspace), "--", "true", env=env)
    assert done.status == 125
    assert "config_unsafe" in done.stderr
