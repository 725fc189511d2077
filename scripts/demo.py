"""The main job on real MCP servers, on every engine of this host: `./scripts/demo`.

A real MCP client talks to `fumehood gateway`, which runs each call of an unmodified server in a box of its own. Afterwards the
records are read back: every call must have its own container. Exit status 0 only if all is as it should be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from rich.console import Console
from rich.table import Table

FUMEHOOD = Path(sys.executable).with_name("fumehood")
# Piped output has no width of its own: wide enough for whole names.
console = Console() if sys.stdout.isatty() else Console(width=130)


@dataclass(frozen=True)
class Step:
    """One tool call and what its answer must contain."""

    profile: str
    tool: str
    arguments: dict[str, Any]
    expected: str
    workspace: str | None = None


@dataclass(frozen=True)
class Done:
    """A call that was made."""

    step: Step
    engine: str
    task: str
    good: bool
    said: str


def steps(repository: str, folder: str) -> list[Step]:
    return [
        Step("mcp-server-git", "git_log", {"repo_path": "/workspace", "max_count": 5}, "second thoughts", repository),
        Step("mcp-server-git", "git_diff_unstaged", {"repo_path": "/workspace"}, "+a change that waits", repository),
        Step("mcp-server-time", "get_current_time", {"timezone": "Europe/Rome"}, "Europe/Rome"),
        Step("mcp-server-filesystem", "write_file", {"path": "/workspace/note.txt", "content": "from a box"}, "note.txt", folder),
        Step("mcp-server-filesystem", "read_text_file", {"path": "/workspace/note.txt"}, "from a box", folder),
    ]


async def call_all(engine: str, wanted: list[Step], env: dict[str, str]) -> list[Done]:
    """Make the calls, a gateway for each (profile, workspace) in turn."""
    done: list[Done] = []
    for profile, workspace in dict.fromkeys((step.profile, step.workspace) for step in wanted):
        command = ["gateway", "--profile", profile, "--engine", engine, *(["--workspace", workspace] if workspace else [])]
        async with Client(StdioServerParameters(command=str(FUMEHOOD), args=command, env=env), mode="auto") as client:
            for step in wanted:
                if (step.profile, step.workspace) != (profile, workspace):
                    continue
                with console.status(f"{engine}: {profile} {step.tool}"):
                    result = await client.call_tool(step.tool, step.arguments)
                text = " ".join(getattr(part, "text", "") for part in result.content)
                task = (result.meta or {}).get("fumehood/task", "")
                done.append(Done(step, engine, task, not result.is_error and step.expected in text, text))
    return done


def engines(env: dict[str, str]) -> list[str]:
    """The engines that `doctor` finds working: docker needs its runtime's known holes accepted, which the demo does by name."""
    said = subprocess.run([FUMEHOOD, "doctor", "--json"], env=env, capture_output=True, text=True, check=False)
    if not said.stdout:
        sys.exit(said.stderr)
    found = json.loads(said.stdout)["engines"]
    names = [name for name in ("oci", "docker") if any(key.split()[0] == name and row["works"] for key, row in found.items())]
    if "docker" not in names:
        console.print("[yellow]No Docker engine works here, so the demo shows the daemonless engine alone.[/yellow]")
    return names


@contextmanager
def scene() -> Iterator[Path]:
    """A folder that only root can write: a configuration, a real git repository, a directory to write into."""
    place = Path(tempfile.mkdtemp(prefix="fumehood-demo-", dir="/run"))
    try:
        (place / "fumehood.yaml").write_text("accept_risk: [cve-2025-31133, cve-2025-52565, cve-2025-52881]\n")
        (place / "files").mkdir()
        repository = place / "repository"
        git = ["git", "-C", str(repository), "-c", "user.name=Demo", "-c", "user.email=demo@example.org"]
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(repository)], check=True)
        for text, message in (("first\n", "first words"), ("first\nsecond\n", "second thoughts")):
            (repository / "text.txt").write_text(text)
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "--quiet", "--message", message], check=True)
        (repository / "text.txt").write_text("first\nsecond\na change that waits\n")
        yield place
    finally:
        shutil.rmtree(place)


def show(done: list[Done], records: dict[str, dict[str, Any]]) -> None:
    table = Table("tool", "engine", "container", "ms", "CPU ms", "peak MiB", "result", title="Each call in its own container")
    for call in done:
        record = records.get(call.task, {})
        usage, timings = record.get("usage") or {}, record.get("timings_ms") or {}
        cpu = sum(usage.get(name) or 0 for name in ("cpu_user_s", "cpu_system_s")) * 1000
        peak = (usage.get("memory_peak_bytes") or 0) / 2**20
        total = timings.get("total", 0)
        table.add_row(
            call.step.tool, call.engine, str(record.get("container") or "?")[-12:], f"{total:.0f}", f"{cpu:.0f}", f"{peak:.1f}",
            "[green]as expected[/green]" if call.good else f"[red]{call.said[:60]}[/red]",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    with scene() as place:
        env = {**os.environ, "FUMEHOOD_CONFIG": str(place / "fumehood.yaml")}
        done: list[Done] = []
        for engine in engines(env):
            done += anyio.run(call_all, engine, steps(str(place / "repository"), str(place / "files")), env)
            written = place / "files" / "note.txt"
            if not written.exists() or written.read_text() != "from a box" or written.stat().st_uid != place.stat().st_uid:
                sys.exit(f"{engine}: the file written in the box did not come back as its owner's")
            written.unlink()
        listed = subprocess.run([FUMEHOOD, "tasks", "--limit", "50", "--json"], env=env, capture_output=True, text=True, check=True)
        records = {record["task"]: record for record in json.loads(listed.stdout)}
        show(done, records)
        subprocess.run([FUMEHOOD, "tasks", "--limit", str(len(done) + 6)], env=env, check=True)
    containers = [records.get(call.task, {}).get("container") for call in done]
    if not all(call.good for call in done) or None in containers or len(set(containers)) != len(done):
        sys.exit("Not everything was as it should be.")
    console.print(f"{len(done)} calls, {len(set(containers))} containers, none of them left.")


if __name__ == "__main__":
    main()
