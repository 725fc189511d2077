"""`fumehood policy`: files and cases as an operator keeps them, and the examples of the guide as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fumehood import config
from fumehood.cli.app import tree
from fumehood.faults import FumehoodError

GUIDE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)


def block(kind: str, words: str) -> str:
    """The example of the guide with these words in it."""
    (found,) = [text for language, text in BLOCKS if language == kind and words in text]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's policies, its cases, and a configuration that names it."""
    policies = tmp_path / "policies"
    policies.mkdir(mode=0o755)
    write(policies / "git.cedar", block("cedar", "commit-unseen"))
    write(policies / "git.cases.yaml", block("yaml", "cases:"))
    write(tmp_path / "fumehood.yaml", block("yaml", "few-writes").replace("/etc/fumehood/policies", str(policies)))
    monkeypatch.setenv("FUMEHOOD_CONFIG", str(tmp_path / "fumehood.yaml"))
    return policies


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def said(*words: str, status: int = 0) -> Any:
    done = CliRunner().invoke(tree("policy"), ["policy", *words, "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    return json.loads(done.stdout)


def told(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(tree("policy"), ["policy", *words])
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def test_the_guides_policies_are_valid_and_its_cases_come_out_and_touch_all_of_them(folder: Path) -> None:
    assert said("check")["problems"] == []
    found = said("test")
    assert len(found["cases"]) == 7
    assert all(case["passed"] for case in found["cases"])
    assert found["untouched"] == []
    assert "7 of 7 cases" in told("test")
    assert folder.is_dir()


def test_the_guides_lines_for_all_senders_are_a_configuration() -> None:
    found = config.parse(block("yaml", "[owner, senders, taint]"), "f").policy
    assert found.shipped == ("owner", "senders", "taint")


def test_a_case_that_fails_says_what_was_found_and_sets_the_status(folder: Path) -> None:
    text = (folder / "git.cases.yaml").read_text()
    write(folder / "git.cases.yaml", text.replace("expect: ask", "expect: allow").replace("rule: night", "rule: commit"))
    out = told("test", status=1)
    assert "who did not look is asked about: expected allow by commit-unseen, found ask by commit-unseen" in out
    assert "nobody commits at night: expected deny by commit, found deny by night" in out
    write(folder / "git.cases.yaml", "cases: []")
    assert said("test", status=1)["untouched"][0]["id"] == "lists"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cases: [{name: a, expect: allow}]", "1:9: .*expected exactly one of tool, prompt"),
        ("cases: [{name: a, tool: a/b, expect: maybe}]", "expected allow, ask or deny"),
        ("cases: [{name: a, tool: a/b, expect: ask, at: '2026-03-02'}]", "expected a time with its zone"),
        ("cases: [{name: a, tool: a/b, expect: ask, label: [x]}]", "expected a known field"),
    ],
)
def test_cases_that_are_none_are_refused_with_file_and_line(folder: Path, text: str, message: str) -> None:
    write(folder / "git.cases.yaml", text)
    done = CliRunner().invoke(tree("policy"), ["policy", "test"])
    assert isinstance(done.exception, FumehoodError)
    assert re.search(message, str(done.exception)), str(done.exception)


def test_all_that_is_wrong_with_policies_is_named_with_file_and_line(folder: Path) -> None:
    write(folder / "a.cedar", 'permit (principal, action resource);\n\n@aprovers("bob") permit (principal, action, resource);\n')
    found = said("check", status=125)
    assert [problem.partition(": ")[0] for problem in found["problems"]] == [f"{folder}/a.cedar:1", f"{folder}/a.cedar:3"]


def test_what_is_in_force_is_shown_with_ours_marked(folder: Path) -> None:
    found = said("show")
    assert [(rule["id"], rule["shipped"]) for rule in found["policies"]][:3] == [("owner", True), ("taint", True), ("lists", False)]
    out = told("show")
    assert "// owner: ships with fumehood, owner.cedar" in out
    assert f"// night: {folder}/git.cedar:" in out
    assert "budget few-writes: 20 calls in 1h for each sender, tools git/git_commit; then denies" in out


def test_the_decision_is_explained_with_the_smallest_change_that_loosens_it(folder: Path) -> None:
    asked = ("explain", "git/git_commit", "--sender", "key:alice", "--group", "dev")
    found = said(*asked)
    assert folder.is_dir()
    if found["decision"] == "ask":  # by day
        assert found["rules"][0]["id"] == "commit-unseen"
        assert {"changes": ["git/git_diff has ended well before (since this last did)"], "decision": "allow"} in found["flips"]
    else:
        assert found["rules"][0]["id"] == "night"
    outsider = said("explain", "git/git_log", "--sender", "key:eve")
    assert outsider["decision"] == "deny"
    assert {"changes": ["the sender is in the group dev"], "decision": "allow"} in outsider["flips"]
    reading = said("explain", "files/read_file", "--sender", "key:alice", "--group", "dev", "--argument", "path=/etc/passwd")
    assert {"changes": ["with `path`: '/workspace/src/x'"], "decision": "allow"} in reading["flips"]
    tainted = said("explain", "web/send", "--label", "external", "--taint", "untrusted", "--taint", "private")
    assert (tainted["decision"], tainted["rules"][0]["id"]) == ("ask", "taint")
    assert {tuple(flip["changes"]) for flip in tainted["flips"]} == {
        ("the conversation holds nothing private",), ("the conversation holds nothing untrusted",), ("the profile does not label it external",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("explain",), "either SERVER/TOOL or --task"),
        (("explain", "git"), "is not SERVER/TOOL"),
        (("explain", "git/a", "--label", "public"), "'public': expected one of"),
        (("explain", "git/a", "--argument", "x"), "expected NAME=JSON"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_line(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(tree("policy"), ["policy", *words])
    assert isinstance(done.exception, FumehoodError)
    assert message in str(done.exception)
    assert folder.is_dir()


def test_a_pattern_that_matches_nothing_is_an_error(folder: Path) -> None:
    (folder / "git.cedar").unlink()
    done = CliRunner().invoke(tree("policy"), ["policy", "check"])
    assert "nothing matches" in str(done.exception)


def test_a_configured_servers_labels_are_part_of_the_question(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "web.yaml", "image: python\ntools: {allow: '*'}\nlabels: {send: {effect: external}}\n")
    file = tmp_path / "fumehood.yaml"
    write(file, file.read_text() + f"gateway: {{servers: {{web: {{profile: {tmp_path}/web.yaml, command: [x]}}}}}}\n")
    found = said("explain", "web/send", "--taint", "untrusted", "--taint", "private")
    assert (found["decision"], found["rules"][0]["id"]) == ("ask", "taint")
    assert said("explain", "web/other", "--taint", "untrusted", "--taint", "private")["decision"] == "allow"
    assert folder.is_dir()


def test_of_a_denied_call_the_permits_that_are_about_it_are_shown_with_the_conditions_that_it_does_not_meet(folder: Path) -> None:
    write(folder / "near.cedar", """
@id("tight") @why("permit (nobody)")
permit (principal, action == Action::"call", resource == Tool::"bank/pay")
when { context.text.hasTag("a") && context.text.getTag("a") == "x" && context.number.hasTag("b") && context.number.getTag("b") < 10
  && context.flag.hasTag("c") && context.flag.getTag("c") };
""")
    found = said("explain", "bank/pay", "--sender", "key:eve")
    assert found["decision"] == "deny"
    assert [flip["changes"] for flip in found["flips"]] == [["the owner of the state folder asks, on a local connection"]]
    assert [(rule["id"], rule["where"]) for rule in found["nearest"]] == [("owner", "owner.cedar"), ("tight", f"{folder}/near.cedar:2")]
    assert "its conditions are not met, tight" in told("explain", "bank/pay", "--sender", "key:eve")
