"""Pages and callers that try to leave the box by way of its browser."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from browsing import browser_lab, browser_profile, browsing, record_of, sitting, text
from lab import Lab, gone, pids

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with browser_lab("h") as made:
        yield made


@pytest.fixture
def host_address() -> str:
    """An address of this host that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address: str = probe.getsockname()[0]
    return address


async def test_a_page_reaches_no_network_beyond_the_boxs_loopback(lab: Lab, engine: str, host_address: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener, anyio.fail_after(90):  # noqa: S104 - what must not be reached
        listener.setblocking(False)
        port = listener.getsockname()[1]
        with socket.create_connection((host_address, port), timeout=5):
            listener.accept()[0].close()  # the host itself reaches it
        async with sitting(lab, engine, lab.workspace("empty")) as client:
            for address in ("127.0.0.1", host_address, "169.254.169.254", "example.com"):
                result = await client.call_tool("browser_navigate", {"url": f"http://{address}:{port}/"})
                assert result.is_error, address
                assert "net::ERR_" in text(result), address
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_file_url_reads_no_file_of_the_host(lab: Lab, engine: str) -> None:
    name = f"canary-{os.getpid()}"
    canaries = [folder / name for folder in (Path("/var/tmp"), Path("/root"), lab.folder)]
    site = lab.workspace("files")
    (site / "page.html").write_text("<title>of the workspace</title>")
    try:
        for canary in canaries:
            canary.write_text("<title>of the host</title>")
            (site / f"link-{canary.parent.name}").symlink_to(canary)
        paths = [str(canary) for canary in canaries] + [f"/workspace/link-{canary.parent.name}" for canary in canaries]
        paths += [f"/proc/1/root{canaries[0]}", f"/proc/self/root{canaries[0]}", "/etc/shadow", "/proc/1/environ"]
        with anyio.fail_after(90):
            async with sitting(lab, engine, site) as client:
                shown = await client.call_tool("browser_navigate", {"url": "file:///workspace/page.html"})
                assert "Page Title: of the workspace" in text(shown)
                for path in paths:
                    result = await client.call_tool("browser_navigate", {"url": f"file://{path}"})
                    assert result.is_error, path
                    assert "net::ERR_" in text(result), path
    finally:
        for canary in canaries:
            canary.unlink(missing_ok=True)


async def test_no_process_of_a_browser_outlives_its_call(lab: Lab, engine: str) -> None:
    profile = browser_profile(lab, "short", "scope: call\nlimits: {wall: 8s}\n")
    before = chromiums()
    seen: set[int] = set()
    with anyio.fail_after(60):
        async with browsing(lab, engine, profile) as client, anyio.create_task_group() as tasks:
            await client.list_tools()

            async def watch() -> None:
                while True:
                    seen.update(chromiums() - before)
                    await anyio.sleep(0.1)  # another program's progress, with a deadline

            tasks.start_soon(watch)
            result = await client.call_tool("browser_wait_for", {"time": 30})
            tasks.cancel_scope.cancel()
    assert result.meta["fumehood/outcome"]["reason"] == "wall"
    assert len(seen) >= 3, "the browser, its zygote and a renderer were there"
    assert all(gone(pid, 2) for pid in seen)


def chromiums() -> set[int]:
    """The pids of every Chromium process in some box."""
    found = set()
    for pid in pids():
        try:
            if b"chromium" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                found.add(pid)
        except OSError:
            continue
    return found


async def test_a_page_that_takes_all_memory_is_recorded_as_out_of_memory(lab: Lab, engine: str) -> None:
    profile = browser_profile(lab, "small", "scope: call\nlimits: {memory: 400MiB, wall: 30s}\n")
    page = "data:text/html,<script>held = []; while (true) held.push(new Uint8Array(2**24).fill(1))</script>"
    with anyio.fail_after(60):
        async with browsing(lab, engine, profile) as client:
            result = await client.call_tool("browser_navigate", {"url": page})
    assert result.is_error
    usage = record_of(lab, result)["usage"]
    assert usage["oom_kills"] >= 1
    assert usage["memory_peak_bytes"] <= 400 * 2**20
