"""A browser in a box: Playwright's MCP server and Debian's headless Chromium, through the gateway, on each engine."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from browsing import PAGE, browser_lab, browser_profile, browsing, command_of, record_of, sitting, text
from lab import Lab

# What may not be left: a zygote, a renderer.
pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]
SERVED = """\
require("http").createServer((_, answer) => answer.end("<title>served inside</title>")).listen(8080, "127.0.0.1");
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with browser_lab("b") as made:
        yield made


@pytest.fixture
def site(lab: Lab) -> Path:
    """A workspace with a page."""
    workspace = lab.workspace("site")
    (workspace / "page.html").write_text(PAGE)
    (workspace / "serve.js").write_text(SERVED)
    (workspace / "start.ts").write_text("export default async ({page}) => page.goto('file:///workspace/page.html');\n")
    return workspace


def first_pixel(png: bytes) -> tuple[int, int, tuple[int, ...]]:
    """Width, height and the colour of the top left pixel."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colours = struct.unpack(">IIBB", png[16:26])
    assert (depth, colours in (2, 6)) == (8, True)
    at, data = 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    # The first pixel of the first row is as it is, whatever the row's filter.
    return width, height, tuple(zlib.decompress(data)[1:4])


def picture(result: Any) -> tuple[int, int, tuple[int, ...]]:
    """What the one image of a result shows."""
    (image,) = [block for block in result.content if block.type == "image"]
    assert image.mime_type == "image/png"
    return first_pixel(base64.b64decode(image.data))


async def test_a_page_is_opened_in_a_box_of_its_own(lab: Lab, engine: str) -> None:
    profile = browser_profile(lab, "call", "scope: call\n")
    with anyio.fail_after(90):
        async with browsing(lab, engine, profile) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"browser_navigate", "browser_snapshot", "browser_click", "browser_take_screenshot"} <= names
            assert "browser_run_code_unsafe" not in names
            # Scripts run: the title is what one computes.
            page = "data:text/html,<script>document.title = 'sum ' %2b (40 %2b 2)</script>"
            opened = [await client.call_tool("browser_navigate", {"url": page}) for _ in range(2)]
    assert [result.is_error for result in opened] == [False, False]
    assert "Page Title: sum 42" in text(opened[0])
    records = [record_of(lab, result) for result in opened]
    assert [record["result"] for record in records] == ["ok", "ok"]
    assert records[0]["container"] != records[1]["container"]
    assert records[0]["usage"]["memory_peak_bytes"] < 2**29


async def test_a_page_of_the_workspace_is_read_and_pictured_in_one_call(lab: Lab, engine: str, site: Path) -> None:
    profile, server = browser_profile(lab, "call", "scope: call\n"), command_of(lab)
    with anyio.fail_after(90):
        async with browsing(lab, engine, profile, site, *server, "--init-page=/workspace/start.ts") as client:
            snapshot = await client.call_tool("browser_snapshot", {})
            shown = await client.call_tool("browser_take_screenshot", {"scale": "css"})
    assert 'button "Press me"' in text(snapshot)
    assert "not yet" in text(snapshot)
    assert picture(shown) == (1280, 720, (200, 10, 30))


async def test_a_page_served_inside_the_box_is_reached(lab: Lab, engine: str, site: Path) -> None:
    both = ("sh", "-c", 'node /workspace/serve.js & exec "$@"', "sh", *command_of(lab))
    with anyio.fail_after(60):
        async with browsing(lab, engine, "browser", site, *both) as client:
            opened = await client.call_tool("browser_navigate", {"url": "http://127.0.0.1:8080/"})
    assert "Page Title: served inside" in text(opened)


async def click_through(client: Client) -> list[Any]:
    """Open a page, press its button, read what changed, take its picture; the four results."""
    opened = await client.call_tool("browser_navigate", {"url": "file:///workspace/page.html"})
    assert "Page Title: untouched" in text(opened)
    before = text(await client.call_tool("browser_snapshot", {}))
    assert "not yet" in before
    (button,) = [line for line in before.splitlines() if 'button "Press me"' in line]
    target = button.partition("[ref=")[2].partition("]")[0]
    pressed = await client.call_tool("browser_click", {"element": "Press me", "target": target})
    after = await client.call_tool("browser_snapshot", {})
    assert "clicked 1 times" in text(after)
    assert "not yet" not in text(after)
    shown = await client.call_tool("browser_take_screenshot", {"scale": "css"})
    assert picture(shown) == (1280, 720, (200, 10, 30))
    return [opened, pressed, after, shown]


async def test_one_box_holds_a_browser_through_several_calls(lab: Lab, engine: str, site: Path) -> None:
    with anyio.fail_after(60):
        async with sitting(lab, engine, site) as client:
            await click_through(client)


async def test_a_session_clicks_and_sees_what_changed(lab: Lab, engine: str, site: Path) -> None:
    with anyio.fail_after(90):
        async with browsing(lab, engine, "browser", site) as client:
            results = await click_through(client)
    records = [record_of(lab, result) for result in results]
    assert len({record["task"] for record in records}) == 4
    assert len({record["container"] for record in records}) == 1


async def test_a_session_of_server_memory_remembers_and_is_committed_at_its_end(lab: Lab, engine: str) -> None:
    profile = browser_profile(lab, "memory", "scope: session\n", of="mcp-server-memory")
    workspace = lab.workspace("memory")
    with anyio.fail_after(90):
        async with browsing(lab, engine, profile, workspace) as client:
            entity = {"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]}
            made = await client.call_tool("create_entities", {"entities": [entity]})
            read = await client.call_tool("read_graph", {})
            assert not made.is_error
            assert not (workspace / "memory.jsonl").exists(), "a workspace is a transaction of the session"
    assert "wrote the first program" in text(read)
    assert record_of(lab, made)["container"] == record_of(lab, read)["container"]
    assert "wrote the first program" in (workspace / "memory.jsonl").read_text()
