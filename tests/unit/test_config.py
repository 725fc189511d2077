"""fumehood.yaml: where it comes from, and what it may say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fumehood import config
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

UID = os.getuid()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / ".config" / "fumehood"
    folder.mkdir(parents=True, mode=0o755)
    return tmp_path / "home"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_no_file_means_defaults(home: Path) -> None:
    assert config.load(None, {"HOME": str(home)}, UID) == config.Config()


def test_the_first_place_wins(home: Path, tmp_path: Path) -> None:
    user = write(home / ".config/fumehood/fumehood.yaml", "boxes: 2\n")
    named = write(tmp_path / "named.yaml", "boxes: 3\n")
    explicit = write(tmp_path / "explicit.yaml", "boxes: 4\n")
    env = {"HOME": str(home)}
    assert config.load(None, env, UID).boxes == 2
    assert config.load(None, env, UID).file == str(user)
    env["FUMEHOOD_CONFIG"] = str(named)
    assert config.load(None, env, UID).boxes == 3
    assert config.load(str(explicit), env, UID).boxes == 4


def test_a_file_planted_in_the_working_directory_is_not_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = home / "workspace"
    workspace.mkdir()
    write(workspace / "fumehood.yaml", "boxes: 1\nmount_roots: [/]\n")
    monkeypatch.chdir(workspace)
    for env in ({"HOME": str(home)}, {}, {"HOME": "."}, {"XDG_CONFIG_HOME": "."}):
        assert config.load(None, env, UID) == config.Config()
    with pytest.raises(FumehoodError) as caught:
        config.load(None, {"FUMEHOOD_CONFIG": "fumehood.yaml"}, UID)
    assert caught.value.reason is Reason.CONFIG_UNSAFE


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_an_unsafe_file_is_refused_not_passed_over(home: Path, mode: int) -> None:
    write(home / ".config/fumehood/fumehood.yaml", "boxes: 2\n").chmod(mode)
    with pytest.raises(FumehoodError) as caught:
        config.load(None, {"HOME": str(home)}, UID)
    assert caught.value.reason is Reason.CONFIG_UNSAFE


def test_a_named_file_must_exist(home: Path) -> None:
    missing = str(home / "none.yaml")
    for explicit, env in ((missing, {}), (None, {"FUMEHOOD_CONFIG": missing})):
        with pytest.raises(FumehoodError) as caught:
            config.load(explicit, env, UID)
        assert caught.value.reason is Reason.CONFIG_INVALID
    (home / ".config/fumehood/fumehood.yaml").symlink_to("nowhere")
    with pytest.raises(FumehoodError):
        config.load(None, {"HOME": str(home)}, UID)


def test_every_field_arrives() -> None:
    text = """
state: /s
engine: docker
boxes: 5
workspace_roots: [/home, /srv/]
mount_roots: [/data]
profile_folders: [/p]
docker_host: unix:///run/d.sock
runtimes: {runc: /opt/runc, crun: /opt/crun}
accept_risk: [cve-1]
"""
    assert config.parse(text, "f") == config.Config(
        state="/s",
        engine="docker",
        boxes=5,
        workspace_roots=("/home", "/srv"),
        mount_roots=("/data",),
        profile_folders=("/p",),
        docker_host="unix:///run/d.sock",
        runtimes=(("crun", "/opt/crun"), ("runc", "/opt/runc")),
        accept_risk=("cve-1",),
        file="f",
    )
    assert config.parse("", "f") == config.Config(file="f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("boxs: 1", "f:1:1: boxs: expected a known field; nearest valid name: boxes"),
        ("boxes: 0", "f:1:8: boxes: expected at least 1, found 0"),
        ("boxes: 99999", "f:1:8: boxes: expected at most 4095, found 99999"),
        ("boxes: '3'", "f:1:8: boxes: expected a whole number, found '3'"),
        ("state: ./here", "f:1:8: state: expected an absolute path without `..`"),
        ("mount_roots: /a", "f:1:14: mount_roots: expected a list, found '/a'"),
        ("mount_roots: [a]", "f:1:15: mount_roots[0]: expected an absolute path"),
        ("docker_host: tcp://h:1", "f:1:14: docker_host: expected unix:///path"),
        ("engine: dokcer", "nearest valid name: docker"),
        ("runtimes: {youki: /x}", "runtimes.youki: expected "),
        ("a: *x", "expected no anchors or aliases"),
        ("boxes: 1\nboxes: 2", "expected each key once"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, said: str) -> None:
    with pytest.raises(FumehoodError) as caught:
        config.parse(text, "f")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert said in caught.value.detail


def test_without_a_file_no_parser_is_imported(home: Path) -> None:
    code = (
        "import sys, fumehood.config as c; c.load(None, {'HOME': sys.argv[1]}, 0); import fumehood.profile;"
        "sys.exit(any(m.split('.')[0] in ('pydantic', 'ruamel', 'pyseccomp') for m in sys.modules))"
    )
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code, str(home)], env=env, timeout=30, check=False).returncode == 0
