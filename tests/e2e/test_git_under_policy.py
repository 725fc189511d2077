"""A git server under policy, end to end: log and diff run, commit asks a person, push is denied after a stranger's words were read.

`mcp-server-git` unchanged and a forge of our own behind one gateway, the SDK's client of either era, and an approver with a key.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from lab import FUMEHOOD, RISKS, Lab, lab_for

pytestmark = [pytest.mark.root, pytest.mark.anyio]

SERVERS = Path(__file__).parent / "servers"
POLICY = """\
@id("commit")
@why("a commit becomes part of the history")
forbid (principal, action == Action::"call", resource == Tool::"git/git_commit");

@id("push")
@why("what a stranger wrote was read before")
forbid (principal, action, resource == Tool::"forge/push")
when { context.conversation.taint.contains("untrusted") };

@id("diff-first")
@why("look at the changes before they are committed")
forbid (principal, action, resource == Tool::"git/git_commit")
unless { context.conversation.since.contains("git/git_diff_unstaged") };
"""
GIT = """\
extends: mcp-server-git
tools: {allow: [git_log, git_diff_unstaged, git_add, git_commit]}
filesystem: {workspace: rw, protect: []}
environment: {GIT_AUTHOR_NAME: t, GIT_AUTHOR_EMAIL: t@x.example, GIT_COMMITTER_NAME: t, GIT_COMMITTER_EMAIL: t@x.example}
"""
FORGE = """\
extends: mcp-server-git
command: [python3, /mnt/servers/forge.py, modern]
tools: {allow: [issue, push]}
arguments: {open: ["*"]}
filesystem: {workspace: rw, protect: [], mounts: [{source: "%s", name: servers}]}
labels: {issue: {returns: untrusted}, push: {effect: external}}
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One a test: what a conversation holds outlives connections."""
    with lab_for("mcp-reference", "git") as made:
        yield made


@pytest.fixture(params=["modern", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


class World:
    """A repository with a change in it, the configuration, and the approver's key."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.repository = lab.workspace("repository")
        self.git("init", "-q", "-b", "main")
        (self.repository / "a.txt").write_text("one\n")
        self.git("add", "a.txt")
        self.git("-c", "user.name=t", "-c", "user.email=t@x.example", "commit", "-qm", "first")
        self.git("init", "-q", "--bare", "origin.git")
        (self.repository / ".git" / "info" / "exclude").write_text("origin.git\n")
        (self.repository / "a.txt").write_text("one\ntwo\n")
        self.key = lab.folder / "alice.key"
        self.key.unlink(missing_ok=True)
        public = lab.fumehood("senders", "keygen", str(self.key), "--json").said["public"]["x"]
        servers = lab.folder / "servers"
        servers.mkdir(exist_ok=True)
        for name in ("stateful.py", "forge.py"):
            shutil.copy(SERVERS / name, servers / name)
        policies = lab.folder / "git.cedar"
        policies.write_text(POLICY)
        policies.chmod(0o600)
        git, forge = lab.folder / "profiles" / "git.yaml", lab.folder / "profiles" / "forge.yaml"
        git.write_text(GIT)
        forge.write_text(FORGE % servers)
        self.config = lab.folder / "git.yaml"
        self.config.write_text(f"""\
accept_risk: [{", ".join(RISKS)}]
engine: oci
mount_roots: [{servers}]
policy: {{files: [{policies}], shipped: [owner]}}
approvals: {{wait: 40s, approvers: {{alice: {{key: "{public}"}}}}}}
gateway:
  servers:
    git: {{profile: {git}, workspace: {self.repository}}}
    forge: {{profile: {forge}, workspace: {self.repository}}}
""")
        self.config.chmod(0o600)

    def git(self, *args: str) -> str:
        done = subprocess.run(["git", "-C", str(self.repository), *args], capture_output=True, text=True, check=True)
        return done.stdout

    def pushed(self) -> bool:
        return "refs/heads/main" in self.git("--git-dir", str(self.repository / "origin.git"), "for-each-ref")

    @asynccontextmanager
    async def client(self, era: str) -> AsyncIterator[Client]:
        args = ["gateway", "--config", str(self.config)]
        server = StdioServerParameters(command=str(FUMEHOOD), args=args, env=self.lab.env)
        async with Client(server, mode="auto" if era == "modern" else "legacy") as client:
            yield client

    async def waiting(self) -> dict[str, Any]:
        """The one question that waits."""
        with anyio.fail_after(60):
            while True:
                done = await anyio.to_thread.run_sync(lambda: self.lab.fumehood("approvals", "list", "--config", str(self.config), "--json"))
                if found := [row for row in done.said if row["kind"] == "call" and row["state"] == "open"]:
                    (row,) = found
                    return dict(row)
                await anyio.sleep(0.2)

    def answer(self, row: dict[str, Any], decision: str, reason: str) -> dict[str, Any]:
        signed = self.lab.fumehood(
            "approvals", "sign", row["id"], row["binding"], decision, "--key", str(self.key), "--as", "alice", "--reason", reason
        ).stdout
        done: dict[str, Any] = self.lab.fumehood("approvals", "answer", "-", "--config", str(self.config), "--json", input=signed).said
        return done


def text(result: Any) -> str:
    return "\n".join(each.text for each in result.content)


def outcome(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.meta["fumehood/outcome"]
    return found


async def test_log_and_diff_run_commit_asks_and_push_is_denied_after_untrusted_content_was_read(lab: Lab, era: str) -> None:
    world = World(lab)
    where = {"repo_path": "/workspace"}
    async with world.client(era) as client:
        log = await client.call_tool("git__git_log", where)
        assert not log.is_error, text(log)
        assert "first" in text(log)

        early = await client.call_tool("git__git_commit", {**where, "message": "second"})
        assert (outcome(early)["reason"], outcome(early)["rule"]) == ("policy_denied", "policy.diff-first")

        diff = await client.call_tool("git__git_diff_unstaged", where)
        assert "+two" in text(diff), text(diff)
        added = await client.call_tool("git__git_add", {**where, "files": ["a.txt"]})
        assert not added.is_error, text(added)

        results: list[Any] = []

        async def commit(message: str) -> None:
            results.append(await client.call_tool("git__git_commit", {**where, "message": message}))

        for decision, message in (("deny", "no good"), ("approve", "second")):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(commit, message)
                row = await world.waiting()
                assert row["what"].startswith("git_commit")
                shown = await anyio.to_thread.run_sync(lambda row=row: lab.fumehood("approvals", "show", row["id"], "--config", str(world.config)))
                assert message in shown.stdout
                assert "a commit becomes part of the history" in shown.stdout
                await anyio.to_thread.run_sync(world.answer, row, decision, "as I see it")
        denied, committed = results
        assert outcome(denied)["reason"] == "approval_denied"
        assert "as I see it" in text(denied)
        assert not committed.is_error, text(committed)
        assert world.git("log", "--format=%s").split() == ["second", "first"]

        pushed = await client.call_tool("forge__push", {})
        assert not pushed.is_error, text(pushed)
        assert world.pushed()

        issue = await client.call_tool("forge__issue", {})
        assert "Push everything" in text(issue)
        assert issue.meta["fumehood/returns"] == "untrusted"
        refused = await client.call_tool("forge__push", {"branch": "main"})
        told = outcome(refused)
        assert (told["reason"], told["rule"], told["again"]) == ("policy_denied", "policy.push", "changed")
        assert "by another way, is decided alike" in text(refused)

    async with world.client(era) as another:  # a new connection launders nothing
        refused = await another.call_tool("forge__push", {})
        assert outcome(refused)["rule"] == "policy.push"
    record = lab.fumehood("task", outcome(refused)["task"], "--json").said
    assert (record["result"], record["reason"]) == ("refused", "policy_denied")
    receipt = json.dumps(lab.fumehood("task", committed.meta["fumehood/task"], "--json").said["events"])
    assert "alice" in receipt
    assert lab.left() == []


async def test_what_is_read_while_a_person_thinks_counts(lab: Lab) -> None:
    world = World(lab)
    policies = lab.folder / "git.cedar"
    policies.write_text(POLICY + """
@id("push-asks")
forbid (principal, action == Action::"call", resource == Tool::"forge/push");
""")
    results: list[Any] = []

    async def push(client: Client) -> None:
        results.append(await client.call_tool("forge__push", {}))

    async with world.client("modern") as client, anyio.create_task_group() as tasks:
        tasks.start_soon(push, client)
        row = await world.waiting()
        async with world.client("modern") as another:
            assert not (await another.call_tool("forge__issue", {})).is_error
        assert (await anyio.to_thread.run_sync(world.answer, row, "approve", ""))["state"] == "approved"
    (refused,) = results
    assert (outcome(refused)["reason"], outcome(refused)["rule"]) == ("policy_denied", "policy.push")
    assert not world.pushed()
    assert lab.left() == []
