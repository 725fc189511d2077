"""What the tests of the browser share: its image, which no set-up builds, and one way to make a call through a gateway."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

from lab import FUMEHOOD, Lab, lab_for, needs

ROOT = Path(__file__).resolve().parents[1]
# Says what it is by its title and its words, changes both on a click, and has a colour that no empty page has.
PAGE = """\
<!doctype html><title>untouched</title>
<body style="background: rgb(200, 10, 30)">
<button onclick="document.title = 'clicked'; said.textContent = 'clicked ' + ++times + ' times'">Press me</button>
<p id="said">not yet</p>
<script>let times = 0</script>
"""


@contextmanager
def browser_lab(mark: str) -> Iterator[Lab]:
    """A lab with the image `browser`, which is built on first need (a minute) and then only checked."""
    needs()
    subprocess.run([str(ROOT / "scripts" / "build-images"), "browser"], check=True, timeout=900)
    with lab_for("browser", mark) as lab:
        yield lab


def browser_profile(lab: Lab, name: str, text: str = "", *, of: str = "browser") -> str:
    """A profile that extends a shipped one."""
    path = lab.folder / "profiles" / f"{name}.yaml"
    path.write_text(f"extends: {of}\n{text}")
    return str(path)


@asynccontextmanager
async def browsing(
    lab: Lab, engine: str, profile: str = "browser", workspace: Path | None = None, *argv: str
) -> AsyncIterator[Client]:
    """A client of a gateway in front of the browser."""
    given = str(workspace or lab.workspace("empty"))
    args = ["gateway", "--profile", profile, "--engine", engine, "--workspace", given, *(["--", *argv] if argv else [])]
    async with Client(StdioServerParameters(command=str(FUMEHOOD), args=args, env=lab.env)) as client:
        yield client


@asynccontextmanager
async def sitting(lab: Lab, engine: str, workspace: Path) -> AsyncIterator[Client]:
    """A client of the server itself, in one box that lasts for the body: `fumehood run` passes its streams through."""
    args = ["run", "--profile", "browser", "--engine", engine, "--workspace", str(workspace), "--", *command_of(lab)]
    async with Client(StdioServerParameters(command=str(FUMEHOOD), args=args, env=lab.env)) as client:
        yield client


def command_of(lab: Lab) -> list[str]:
    """The server's argv, as the profile says it."""
    argv: list[str] = lab.fumehood("profile", "show", "browser", "--json").said["profile"]["command"]
    return argv


def text(result: Any) -> str:
    """The words of a result."""
    return "\n".join(block.text for block in result.content if block.type == "text")


def record_of(lab: Lab, result: Any) -> dict[str, Any]:
    """The closed record of the call that gave this result."""
    done = lab.fumehood("task", result.meta["fumehood/task"], "--json")
    assert done.status == 0, done.stderr
    found: dict[str, Any] = done.said
    assert found["state"] == "closed"
    return found
