"""Secrets in what a call is asked and in what comes out of real boxes, and what nobody sees in a result. Each test is named by the attack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import RISKS, Lab, lab_for
from live_gateway import LiveGateway, configure, live_gateway

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]
LEAKY = Path(__file__).resolve().parents[1] / "e2e" / "servers" / "leaky.py"
PARTS = ["ghp" + "_", "Ab3dEf6hIj9k" * 3]
SECRET = "".join(PARTS)
MARK = "[secret removed: github-token]"
OURS = "canary-of-the-operator/+" + "0123456789"
SAY = """\
command: [python3, /workspace/leaky.py]
tools: {allow: [say]}
arguments: {open: [say]}
filesystem: {workspace: ro}
limits: {wall: 30s, result: 256KiB}
results: spill
"""
# The operator's secret is given to the box, as a client that takes no placeholder needs it.
ENV = "credentials: {own: {use: own, deliver: env, variable: OWN_TOKEN}}\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "-secrets") as made:
        yield made


def own_secret(lab: Lab) -> str:
    """A part of fumehood.yaml with a secret of the operator's in a file."""
    file = lab.folder / "own-secret"
    file.write_text(OURS)
    file.chmod(0o600)
    return f"credentials: {{own: {{provider: static, token: {{file: {file}}}}}}}"


@pytest.fixture
def gateway(lab: Lab, engine: str) -> Iterator[LiveGateway]:
    workspace = lab.workspace("leaky")
    shutil.copy(LEAKY, workspace / "leaky.py")
    servers = f"{{servers: {{say: {{profile: {lab.profile('say', SAY)}, workspace: {workspace}, engine: {engine}}}}}}}"
    with live_gateway(lab, configure(lab, servers, own_secret(lab))) as opened:
        yield opened


def say(gateway: LiveGateway, where: str, parts: list[str] = PARTS, **more: Any) -> Any:
    return gateway.call("say", parts=parts, where=where, **more)


def test_what_a_server_says_in_a_box_holds_no_secret_wherever_it_says_it(gateway: LiveGateway) -> None:
    for where in ("text", "structured", "embedded", "blob", "error", "rpc", "stderr", "long"):
        for parts, secret in ((PARTS, SECRET), ([OURS[:9], OURS[9:]], OURS)):
            told = say(gateway, where, parts)
            assert secret not in json.dumps(told), where
            if where == "long":
                uri = told["content"][1]["uri"]
                kept = gateway.answer(gateway.send("resources/read", uri=uri))["result"]["contents"][0]["text"]
                assert secret not in kept
                assert json.loads(kept)["content"][0]["text"].startswith("xxx")
    assert SECRET not in gateway.log.read_text()
    assert OURS not in gateway.log.read_text()


def test_a_secret_in_nested_arguments_starts_nothing_and_the_record_has_rule_and_place(gateway: LiveGateway, lab: Lab) -> None:
    for secret, rule in ((SECRET, "github-token"), (OURS, "issued-credential")):
        told = say(gateway, "text", ["x"], more={"a": [{"b": secret}]})
        assert told["isError"] is True
        outcome = told["_meta"]["fumehood/outcome"]
        assert (outcome["reason"], outcome["rule"]) == ("secret_in_arguments", "secrets.arguments")
        assert f"{rule} at /more/a/0/b" in told["content"][0]["text"]
        assert secret not in json.dumps(told)
    assert gateway.end() == 0
    record = lab.record("task", outcome["task"])
    assert "issued-credential at /more/a/0/b" in record["detail"]
    for path in filter(Path.is_file, (lab.state / "ledger").rglob("*")):
        assert OURS.encode() not in path.read_bytes()
        assert SECRET.encode() not in path.read_bytes()


def test_instructions_in_tag_characters_are_seen_by_the_client_as_what_they_are(gateway: LiveGateway) -> None:
    told = say(gateway, "text", ["ok", "".join(chr(0xE0000 + ord(char)) for char in "rm"), "\u202e"])
    assert told["content"][0]["text"] == "it is ok\\u{e0072}\\u{e006d}\\u{202e}."


def test_a_command_prints_its_own_credential_and_a_token_to_both_streams(lab: Lab, engine: str) -> None:
    config = lab.folder / "own.yaml"
    config.write_text(f"accept_risk: [{', '.join(RISKS)}]\n{own_secret(lab)}\n")
    config.chmod(0o644)
    profile = lab.profile("own", ENV)
    code = "import os, sys; t = os.environ['OWN_TOKEN']; print(t, t[::-1]); print('ghp' + '_' + 'Ab3dEf6hIj9k' * 3, file=sys.stderr); print(t.encode().hex())"
    said = lab.run(engine, "python3", "-c", code, profile=profile, env={"FUMEHOOD_CONFIG": str(config)}).said
    assert said["outcome"] == "ok", said
    mark = "[secret removed: issued-credential]"
    assert said["stdout"] == f"{mark} {OURS[::-1]}\n{mark}\n", "turned around it is not found, as docs/secrets.md says"
    assert said["stderr"] == f"{MARK}\n"
    assert "github-token at stderr" in said["detail"]


def test_a_command_line_with_a_secret_runs_nothing(lab: Lab, engine: str) -> None:
    said = lab.run(engine, "echo", SECRET).said
    assert (said["outcome"], said["reason"]) == ("refused", "secret_in_arguments")
    assert "github-token at /argv/1" in said["detail"]


def test_a_terminal_is_shown_no_more_than_what_is_kept(lab: Lab, engine: str) -> None:
    code = "import sys, time\nfor part in ('it is ghp', '_Ab3dEf6hIj9k', 'Ab3dEf6hIj9k' * 2, ' and\\n'):\n sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.1)"
    done = lab.fumehood("run", "--profile", "python", "--engine", engine, "--", "python3", "-c", code)
    assert done.stdout == f"it is ghp{MARK} and\n", "a few bytes that begin a word go on at once, or a prompt would wait"


@pytest.mark.parametrize(
    ("allow", "said"),
    [
        ("{rule: '*', where: say, reason: all of it is fine}", "expected one of"),
        ("{rule: issued-credential, where: say, reason: it is our own one}", "nobody excuses"),
        ("{rule: github-token, where: 'say/*', reason: anything in there}", 'expected "*", a tool'),
        ("{rule: github-token, where: say, reason: ''}", "in 3 words or more"),
        ("{rule: github-token, where: say}", "expected this field"),
    ],
)
def test_an_excuse_that_is_too_wide_is_no_profile(lab: Lab, allow: str, said: str) -> None:
    done = lab.fumehood("profile", "lint", lab.profile("wide", f"secrets: {{allow: [{allow}]}}\n"))
    assert done.status != 0
    assert said in done.stdout + done.stderr
