"""`fumehood profile ...` as people and machines use it."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fumehood.cli import profile
from fumehood.faults import Refused


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = tmp_path / "fumehood.yaml"
    config.write_text(f"profile_folders: [{tmp_path}/profiles]\n")
    config.chmod(0o644)
    (tmp_path / "profiles").mkdir(mode=0o755, exist_ok=True)
    monkeypatch.setenv("FUMEHOOD_CONFIG", str(config))
    app = typer.Typer()
    app.callback()(lambda: None)
    profile.register(app)
    return lambda *args: CliRunner().invoke(app, ["profile", *args])


def test_list_names_every_profile_with_its_file(run: Any, shelf: Any) -> None:
    shelf.put("mine", "image: a\n")
    listed = json.loads(run("list", "--json").stdout)
    assert {"name": "mine", "file": f"{shelf.folder}/mine.yaml"} in listed
    assert "python" in run("list").stdout


def test_lint_of_everything_that_ships_passes(run: Any) -> None:
    result = run("lint")
    assert result.exit_code == 0
    # A shipped filter that is wider than the default is told of, whoever ships it.
    (told,) = json.loads(run("lint", "--json").stdout)
    assert told["message"] == "allows other system calls than the default (browser)"


def test_lint_tells_every_error_and_exits_125(run: Any, shelf: Any) -> None:
    path = shelf.put("bad", "image: a\nlimts: {}\ndevices: [x]\n")
    result = run("lint", str(path))
    assert result.exit_code == 125
    assert f"{path}:2:1: limts: expected a known field; nearest valid name: limits" in result.stdout
    found = json.loads(run("lint", "bad", "--json").stdout)
    assert [(entry["line"], entry["reason"]) for entry in found] == [(2, "profile_invalid"), (3, "unenforceable")]


def test_lint_of_a_missing_or_unsafe_profile_exits_125(run: Any, shelf: Any) -> None:
    result = run("lint", "pyton")
    assert (result.exit_code, "nearest valid name: python" in result.stdout) == (125, True)
    shelf.put("mine", "image: a\n").chmod(0o666)
    result = run("lint", "mine")
    assert (result.exit_code, "can be written by others" in result.stdout) == (125, True)


def test_lint_warns_without_failing(run: Any, shelf: Any) -> None:
    shelf.put("mine", "image: a\nenvironment: {LD_PRELOAD: x}\n")
    result = run("lint", "mine")
    assert (result.exit_code, "warning: environment.LD_PRELOAD" in result.stdout) == (0, True)


def test_lint_says_what_the_broker_would_refuse(run: Any, shelf: Any) -> None:
    shelf.put("seccomp/bad", "extends: default\nrules:\n- {names: [ptrace], reason: for a debugger}\n")
    shelf.put("mine", "image: a\nseccomp: bad\n")
    result = run("lint", "mine")
    assert result.exit_code == 125
    assert "mine.yaml:2:10: seccomp: the system call policy was refused: it allows ptrace" in result.stdout


def test_show_fills_in_defaults(run: Any) -> None:
    text = run("show", "python").stdout
    assert "memory: 512MiB" in text
    assert json.loads(run("show", "python", "--json").stdout)["profile"]["limits"]["pids"] == 128


def test_explain_is_sentences(run: Any) -> None:
    assert "It has no network but its own loopback" in run("explain", "mcp-server-time").stdout
    assert all(said.endswith(".") for said in json.loads(run("explain", "node", "--json").stdout)["sentences"])


@pytest.mark.parametrize("kind", ["profile", "seccomp", "config"])
def test_schema_is_json_schema(run: Any, kind: str) -> None:
    schema = json.loads(run("schema", kind).stdout)
    assert schema["additionalProperties"] is False
    assert schema == json.loads(run("schema", kind, "--json").stdout)
    assert run("schema", "nonsense").exit_code == 2


def test_the_schema_and_the_loader_agree(run: Any) -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json.loads(run("schema").stdout))
    assert validator.is_valid(
        {"image": "a", "limits": {"memory": "1GiB", "disk": "unlimited"}, "tools": {"allow": "*"}}
    )
    for wrong in ({"imag": "a"}, {"limits": {"memory": 512}}, {"limits": {"wall": "60"}}, {"credentials": ["x"]}):
        assert not validator.is_valid(wrong), wrong
    for name in ("python", "mcp-server-git"):
        assert validator.is_valid(json.loads(run("show", name, "--json").stdout)["profile"])


def test_a_broken_profile_is_refused_with_its_reason(run: Any, shelf: Any) -> None:
    shelf.put("bad", "image: a\nx: 1\n")
    for command in ("show", "explain"):
        assert isinstance(run(command, "bad").exception, Refused)
