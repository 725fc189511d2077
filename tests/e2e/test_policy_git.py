"""A real git server under policies: looking runs, committing wants a look first, and after a stranger's content nothing leaves unasked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lab_for
from live_gateway import configure, live_gateway
from people import at_terminal, waiting

pytestmark = pytest.mark.root

POLICIES = """
@id("look")
permit (principal, action == Action::"call", resource) when { resource in [Tool::"git/git_log", Tool::"git/git_diff_staged"] };
@id("add")
permit (principal, action == Action::"call", resource == Tool::"git/git_add");
@id("lists")
permit (principal, action == Action::"call", resource in Server::"git") when { context.kind == "command" };
@id("commit")
permit (principal, action == Action::"call", resource == Tool::"git/git_commit")
when { context.conversation.since.contains("git/git_diff_staged") };
@id("commit-unseen")
@why("nobody looked at what is staged")
permit (principal, action == Action::"call_with_approval", resource == Tool::"git/git_commit");
"""
PROFILE = """extends: mcp-server-git
tools: {allow: [git_log, git_diff_staged, git_add, git_commit, git_status]}
filesystem: {workspace: rw, protect: []}
labels: {git_log: {returns: untrusted}, git_diff_staged: {reads: private}, git_status: {effect: external}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("mcp-reference", "y") as made:
        yield made
        assert made.left() == []


def repository(of: Lab, name: str) -> Path:
    place = of.workspace(name)
    run = ["git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(place)], check=True)
    for words in (["config", "user.name", "t"], ["config", "user.email", "t@example.com"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*run, *words], check=True)
    (place / "a.txt").write_text("one\n")
    return place


def test_a_commit_that_nobody_looked_at_runs_once_a_person_has(lab: Lab) -> None:
    place = repository(lab, "approved")
    (lab.folder / "git.cedar").write_text(POLICIES)
    (lab.folder / "git.cedar").chmod(0o644)
    (lab.folder / "git.yaml").write_text(PROFILE)
    served = f"{{servers: {{git: {{profile: {lab.folder}/git.yaml, workspace: {place}, engine: oci}}}}}}"
    file = configure(lab, served, f"approvals: {{wait: 25s}}\npolicy: {{files: [{lab.folder}/git.cedar], shipped: [taint]}}")
    at = {"repo_path": "/workspace"}
    with live_gateway(lab, file) as gateway:
        lab.fumehood("policy", "forget", "root")
        assert rule(gateway.call("git_add", **at, files=["a.txt"])) is None
        number = gateway.send("tools/call", name="git_commit", arguments={**at, "message": "unseen"})
        (row,) = waiting(lab)
        status, said = at_terminal(lab, "approve", row["id"])
        assert status == 0, said
        assert "because    nobody looked at what is staged" in said
        assert '"message": "unseen"' in said
        assert rule(gateway.answer(number)["result"]) is None
        number = gateway.send("tools/call", name="git_commit", arguments={**at, "message": "unseen"})
        (again,) = waiting(lab)
        assert again["id"] != row["id"], "it was for one commit"
        status, _ = at_terminal(lab, "deny", again["id"], "--reason", "once is enough")
        assert "once is enough" in gateway.answer(number)["result"]["content"][0]["text"]
        # What decides changes while a person thinks.
        number = gateway.send("tools/call", name="git_commit", arguments={**at, "message": "late"})
        (late,) = waiting(lab)
        (lab.folder / "git.cedar").write_text(POLICIES + '@id("freeze") forbid (principal, action, resource == Tool::"git/git_commit");')
        assert "read again" in gateway.reload() or gateway.reload()
        status, said = at_terminal(lab, "approve", late["id"])
        assert status == 0, said
        assert rule(gateway.answer(number)["result"]) == "policy.freeze"
        assert gateway.end() == 0
    log = subprocess.run(["git", "-C", str(place), "log", "--format=%s"], check=True, capture_output=True, text=True).stdout
    assert log.split() == ["unseen", "first"]


def rule(result: Any) -> str | None:
    outcome = result["_meta"].get("fumehood/outcome", {})
    return outcome.get("rule") if result.get("isError") else None


def test_log_and_diff_run_commit_wants_a_look_first_and_what_is_not_named_is_denied(lab: Lab, engine: str) -> None:
    place = repository(lab, f"order-{engine}")
    (lab.folder / "git.cedar").write_text(POLICIES)
    (lab.folder / "git.cedar").chmod(0o644)
    (lab.folder / "git.yaml").write_text(PROFILE)
    served = f"{{servers: {{git: {{profile: {lab.folder}/git.yaml, workspace: {place}, engine: {engine}}}}}}}"
    file = configure(lab, served, f"policy: {{files: [{lab.folder}/git.cedar], shipped: [taint]}}")
    at = {"repo_path": "/workspace"}
    with live_gateway(lab, file) as gateway:
        lab.fumehood("policy", "forget", "root")
        assert rule(gateway.call("git_log", **at)) is None
        assert rule(gateway.call("git_add", **at, files=["a.txt"])) is None
        assert rule(gateway.call("git_commit", **at, message="unseen")) == "policy.commit-unseen"
        assert rule(gateway.call("git_diff_staged", **at)) is None
        assert rule(gateway.call("git_commit", **at, message="seen")) is None
        assert rule(gateway.call("git_commit", **at, message="again")) == "policy.commit-unseen"
        assert rule(gateway.call("git_status", **at)) == "policy.taint"
        assert gateway.end() == 0
    log = subprocess.run(["git", "-C", str(place), "log", "--format=%s"], check=True, capture_output=True, text=True).stdout
    assert log.split() == ["seen", "first"]
