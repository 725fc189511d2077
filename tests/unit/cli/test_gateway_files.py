"""`fumehood gateway check` and `token`, and how `fumehood gateway` tells its commands from a server's argv."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fake_issuer import FakeIssuer
from fumehood.cli import gateway
from fumehood.faults import FumehoodError
from fumehood.gateway.senders import read_senders

PROFILE = "image: no-such-image\ncommand: [serve]\nfilesystem: {workspace: rw}\ntools: {allow: [x, y]}\n"


class Operator:
    """An operator's folder and command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = typer.Typer()
        self.app.callback()(lambda: None)
        gateway.register(self.app)

    def configure(self, text: str) -> None:
        path = self.folder / "fumehood.yaml"
        path.write_text(f"profile_folders: [{self.folder}/profiles]\nstate: {self.folder}/state\n{text}\n")
        path.chmod(0o644)

    def run(self, *args: str) -> Any:
        return CliRunner().invoke(self.app, ["gateway", *args])


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    for name in ("profiles", "workspace"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "profiles/mine.yaml").write_text(PROFILE)
    monkeypatch.setenv("FUMEHOOD_CONFIG", str(tmp_path / "fumehood.yaml"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FUMEHOOD_STATE", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return Operator(tmp_path)


def test_check_tells_of_every_server_and_starts_nothing(operator: Operator) -> None:
    here = operator.folder
    operator.configure(
        f"gateway: {{servers: {{a: {{profile: mine, workspace: {here}/workspace}}, b: {{profile: mien}},"
        f" c: {{profile: mine, workspace: {here}/none}}}}}}"
    )
    result = operator.run("check", "--json")
    assert result.exit_code == 125
    said = json.loads(result.stdout)
    problems = {server["name"]: [each["reason"] for each in server["problems"]] for server in said["servers"]}
    assert problems == {"a": ["image_missing"], "b": ["profile_unknown"], "c": ["workspace_unreadable"]}
    first = said["servers"][0]
    assert (first["tools"], first["command"], first["workspace_mode"]) == (["x", "y"], ["serve"], "rw")
    assert said["problems"] == []
    text = operator.run("check").stdout
    for words in ("nearest valid name: mine", f"{here}/none: No such file", "image_missing: gateway.servers.a"):
        assert words in text
    assert not (here / "state").exists()


def test_check_tells_what_concerns_all_servers(operator: Operator) -> None:
    operator.configure(
        f"gateway: {{servers: {{a: {{profile: mine, workspace: {operator.folder}}}}},"
        f" http: {{listen: '127.0.0.1:80', tokens_file: {operator.folder}/none}}}}"
    )
    said = json.loads(operator.run("check", "--json").stdout)
    assert [each["reason"] for each in said["problems"]] == ["config_invalid", "config_unsafe"]
    operator.configure("gateway: {}")
    assert "no servers are named" in operator.run("check").stdout


@pytest.mark.parametrize(("binding", "said"), [("dpop", "bound by dpop"), ("none", "bound to nobody: whoever gets hold of one can use it")])
def test_check_tells_whose_access_tokens_are_taken_and_what_they_are_bound_to(operator: Operator, binding: str, said: str) -> None:
    issuer = FakeIssuer()
    keys = operator.folder / "jwks"
    keys.write_text(issuer.jwks())
    keys.chmod(0o644)
    operator.configure(
        "gateway: {servers: {a: {profile: mine}}, http: {listen: '127.0.0.1:80', oauth: {resource: 'https://localhost/mcp',"
        f" binding: {binding}, issuers: [{{issuer: '{issuer.issuer}', jwks: {{file: {keys}}}, algorithms: [ES256],"
        " senders: {alice: {sub: a-1}}}]}}}"
    )
    text = operator.run("check").stdout
    assert f"http://127.0.0.1:80 for oauth:alice@{issuer.issuer.removeprefix('https://')}" in text
    assert said in text
    told = json.loads(operator.run("check", "--json").stdout)["http"]["oauth"]
    assert (told["binding"], told["issuers"], told["senders"]) == (binding, [issuer.issuer], ["oauth:alice@login.example.org"])
    keys.write_text("{}")
    assert "gateway.http.oauth.issuers[0].jwks.file" in operator.run("check").stdout


def test_a_token_is_shown_once_and_kept_as_a_digest(operator: Operator) -> None:
    path = operator.folder / "tokens"
    operator.configure(f"gateway: {{http: {{tokens_file: {path}}}}}")
    first = operator.run("token", "alice").stdout.split()[0]
    second = json.loads(operator.run("token", "bob", "--json").stdout)
    assert (second["sender"], second["tokens_file"]) == ("bob", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text()
    assert second["token"] not in path.read_text()
    known = read_senders(path, os.getuid())
    assert [known.of(token).name for token in (first, second["token"])] == ["http:alice", "http:bob"]  # type: ignore[union-attr]


def test_a_token_is_added_below_what_is_there(operator: Operator) -> None:
    path = operator.folder / "tokens"
    path.write_text("# ours, without an end of line")
    path.chmod(0o600)
    made = operator.run("token", "alice", "--tokens-file", str(path)).stdout.split()[0]
    assert path.read_text().startswith("# ours, without an end of line\nalice:")
    assert read_senders(path, os.getuid()).of(made) is not None


def _refused(operator: Operator, *args: str) -> FumehoodError:
    error = operator.run(*args).exception
    assert isinstance(error, FumehoodError)
    return error


def test_no_token_goes_where_others_could_read_it_or_put_their_own(operator: Operator) -> None:
    path = operator.folder / "tokens"
    path.write_text("")
    path.chmod(0o644)
    assert "is open to others" in _refused(operator, "token", "alice", "--tokens-file", str(path)).detail
    shared = operator.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "can be written by others" in _refused(operator, "token", "alice", "--tokens-file", f"{shared}/t").detail
    assert not (shared / "t").exists()
    assert path.read_text() == ""


@pytest.mark.parametrize("name", ["", "Alice", "a b", "a:b", "a\nb", "#a"])
def test_what_is_no_name_gets_no_token(operator: Operator, name: str) -> None:
    _refused(operator, "token", name, "--tokens-file", str(operator.folder / "tokens"))
    assert not (operator.folder / "tokens").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--http", "127.0.0.1:1", "--unix", "/s"], "two ways to serve"),
        (["--http", "example.org:1"], "--http: expected a literal address"),
        (["--http", "127.0.0.1"], "--http: expected HOST:PORT"),
        (["--engine", "oci"], "go with --profile"),
        (["--workspace", "/"], "go with --profile"),
        (["--", "check"], "go with --profile"),
        (["serve", "--", "token"], "go with --profile"),
    ],
)
def test_options_that_do_not_fit_are_one_line(operator: Operator, args: list[str], said: str) -> None:
    operator.configure("gateway: {servers: {a: {profile: mine}}}")
    assert said in str(_refused(operator, *args))


def test_a_servers_command_is_never_taken_for_one_of_ours(operator: Operator) -> None:
    # `check` after the options is the server's argv: the refusal is about the engine, so `serve` was reached.
    assert "--engine no" in str(_refused(operator, "--profile", "mine", "--engine", "no", "--", "check"))
    assert "--engine no" in str(_refused(operator, "--profile", "mine", "--engine", "no", "token"))
