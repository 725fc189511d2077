"""Servers that hand their tools' work over, with real clients: the examples, on each engine."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

import fumehood
from handing import boxes, until
from lab import Lab, lab_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("python", "d") as made:
        yield made


@pytest.fixture(scope="module")
def engine(engine: str, lab: Lab) -> str:
    """The engine, which the examples' runtimes learn from the configuration."""
    with (lab.folder / "fumehood.yaml").open("a+") as file:
        file.seek(0)
        text = re.sub(r"^engine:.*\n", "", file.read(), flags=re.MULTILINE)
        file.truncate(0)
        file.write(f"{text}engine: {engine}\n")
    return engine


def server(lab: Lab, script: str) -> StdioServerParameters:
    """An example, from a folder that only root could have written."""
    folder = lab.folder / "code"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "examples" / "delegation", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder, *folder.iterdir()):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    env = {**lab.env, "PYTHONPATH": str(Path(fumehood.__file__).parents[1])}
    return StdioServerParameters(command=sys.executable, args=[str(folder / script)], env=env, cwd=str(folder))


def records(lab: Lab, tool: str) -> list[dict[str, Any]]:
    """The records of a tool, oldest first, after the server's end."""
    with sqlite3.connect(f"file:{lab.state}/ledger/ledger.db?mode=ro&immutable=1", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM records WHERE tool = ? ORDER BY task", (tool,))]


def text(result: Any) -> str:
    return "\n".join(block.text for block in result.content)


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_the_example_server_answers_from_boxes(lab: Lab, engine: str, era: Any) -> None:
    steps: list[tuple[float, float | None]] = []

    async def progress(done: float, total: float | None, _message: str | None) -> None:
        steps.append((done, total))

    before = len(records(lab, "count_words")) if (lab.state / "ledger").exists() else 0
    with anyio.fail_after(60):
        async with Client(server(lab, "server.py"), mode=era) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"count_words", "match_lines"}
            assert tools["count_words"].input_schema["required"] == ["text"]
            assert "ctx" not in str(tools["match_lines"].input_schema)
            counted = [await client.call_tool("count_words", {"text": "a b a", "at_most": 1}) for _ in range(2)]
            matched = await client.call_tool("match_lines", {"pattern": "b+", "lines": ["abc", "x"]}, progress_callback=progress)
            wrong = await client.call_tool("match_lines", {"pattern": "(", "lines": []})
            unfit = await client.call_tool("count_words", {"text": "a", "at_most": "many"})
    assert [one.structured_content for one in counted] == [{"result": [{"text": "a", "count": 2}]}] * 2
    assert matched.structured_content == {"result": ["abc"]}
    assert steps == [(1, 2), (2, 2)]
    assert wrong.is_error
    assert "no regular expression" in text(wrong)
    assert unfit.is_error
    found = records(lab, "count_words")[before:]
    assert len({record["container"] for record in found}) == 2
    assert {(record["result"], record["engine"], record["front_door"]) for record in found} == {("ok", engine, "delegate")}


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_the_fastmcp_example_answers_from_a_box(lab: Lab, engine: str) -> None:
    pytest.importorskip("fastmcp")
    steps: list[float] = []

    async def progress(done: float, _total: float | None, _message: str | None) -> None:
        steps.append(done)

    with anyio.fail_after(60):
        async with Client(server(lab, "fastmcp_server.py")) as client:
            found = await client.call_tool("compare", {"old": ["a"], "new": ["b"]}, progress_callback=progress)
            equal = await client.call_tool("compare", {"old": ["a"], "new": ["a"]})
    assert found.structured_content == {"result": ["- a", "+ b"]}
    assert steps == [0]
    assert (equal.is_error, text(equal)) == (True, "they are equal")
    assert [record["engine"] for record in records(lab, "compare")][-2:] == [engine] * 2


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_client_that_cancels_has_the_box_removed(lab: Lab, engine: str) -> None:
    del engine
    endless = {"pattern": "^(a+)+$", "lines": ["a" * 40 + "b"]}
    with anyio.fail_after(60):
        async with Client(server(lab, "server.py")) as client:
            with anyio.move_on_after(3):
                await client.call_tool("match_lines", endless)
            began = time.monotonic()
            # The server's own part never ran the expression: it answers at once.
            await client.list_tools()
            assert time.monotonic() - began < 1
            await anyio.to_thread.run_sync(until, lambda: boxes(lab) == [], 10)
    record = records(lab, "match_lines")[-1]
    assert (record["result"], record["reason"]) == ("killed", "cancelled")


GUIDE = (ROOT / "docs" / "delegation.md").read_text()
EXAMPLES = re.findall(r"```python\n# file: (\w+\.py)\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.usefixtures("nothing_left")
def test_the_guides_programs_work_as_they_are_written(lab: Lab, engine: str) -> None:
    folder = lab.folder / f"guide-{engine}"
    folder.mkdir(mode=0o755)
    for name, code in EXAMPLES:
        (folder / name).write_text(code)
        (folder / name).chmod(0o644)
    env = {**lab.env, "PYTHONPATH": str(Path(fumehood.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, folder / "program.py"], capture_output=True, text=True, check=False, timeout=60, env=env, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1, 1, 2, 3, 5]\nValueError: at least one\n42\n"
