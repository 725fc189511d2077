"""`fumehood gateway` on stdio, HTTP and a unix socket: the SDK's own client in every era, real boxes, one process each."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from lab import FUMEHOOD, Lab, gone, lab_for, needs_oci, status, with_marker

PEER = Path(__file__).parent / "servers" / "peer.py"
# What `socat - UNIX-CONNECT:PATH` does.
FORWARD = """
import os, select, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
while True:
    for ready in select.select([0, s], [], [])[0]:
        data = s.recv(65536) if ready is s else os.read(0, 65536)
        if not data: sys.exit()
        os.write(1, data) if ready is s else s.sendall(data)
"""
HTTP_WORKER_KIB = 110 * 1024
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def transports_lab() -> Iterator[Lab]:
    with lab_for("mcp-reference", "t") as made:
        needs_oci()
        yield made


@dataclass
class Listening:
    """A gateway that listens, and what its clients need."""

    process: subprocess.Popen[str]
    token: str
    url: str
    socket: Path
    lines: list[str]
    certificate: Path | None = None

    @asynccontextmanager
    async def client(self, transport: str, era: str) -> AsyncIterator[Client]:
        """The SDK's client on one of our transports."""
        if transport == "unix":
            argv = ["-c", FORWARD, str(self.socket)]
            async with Client(StdioServerParameters(command=sys.executable, args=argv), mode=era) as client:
                yield client
            return
        verify: Any = True if self.certificate is None else ssl.create_default_context(cafile=str(self.certificate))
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60, verify=verify) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=era) as client,
        ):
            yield client


def token_file(of: Lab, name: str = "tokens") -> tuple[str, Path]:
    token = secrets.token_urlsafe(32)
    path = of.folder / name
    path.write_text(f"alice:{hashlib.sha256(token.encode()).hexdigest()}\n")
    path.chmod(0o600)
    return token, path


@contextmanager
def listening(
    of: Lab, *options: str, on: str = "http", profile: str = "mcp-server-time", argv: tuple[str, ...] = ()
) -> Iterator[Listening]:
    """A gateway on HTTP or a unix socket, ended by a signal."""
    token, path = token_file(of)
    place = of.folder / f"socket-{secrets.token_hex(4)}"
    front = ["--http", "127.0.0.1:0", "--token-file", str(path)] if on == "http" else ["--unix", str(place)]
    command = ["gateway", "--profile", profile, "--engine", "oci", *front]
    process = subprocess.Popen(
        [str(FUMEHOOD), *command, *options, *(["--", *argv] if argv else [])],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=of.env, cwd=of.folder,
    )  # fmt: skip
    assert process.stderr is not None
    lines = [process.stderr.readline().rstrip("\n")]
    reader = threading.Thread(target=lambda: lines.extend(line.rstrip("\n") for line in process.stderr or ()))
    reader.start()
    try:
        assert lines[0].startswith("listening on "), lines
        url = lines[0].removeprefix("listening on ")
        yield Listening(process, token, url, place, lines)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=30) == 0, lines
        finally:
            process.kill()
            process.wait()
            reader.join(5)
            process.stderr.close()
            assert process.stdout is not None
            assert process.stdout.read() == "", "nothing but protocol is ever on stdout"
            process.stdout.close()


@pytest.fixture(scope="module")
def gateway(transports_lab: Lab) -> Iterator[Listening]:
    with listening(transports_lab) as found:
        yield found
    assert transports_lab.left() == []


@pytest.fixture(scope="module")
def unix_gateway(transports_lab: Lab, gateway: Listening) -> Iterator[Listening]:  # noqa: ARG001 - the first judges what is left
    with listening(transports_lab, on="unix") as found:
        yield found


@pytest.mark.anyio
@pytest.mark.parametrize("era", ["auto", "2026-07-28", "legacy"])
@pytest.mark.parametrize("transport", ["stdio", "unix", "http"])
async def test_every_era_on_every_transport(
    transports_lab: Lab, gateway: Listening, unix_gateway: Listening, transport: str, era: str
) -> None:
    with anyio.fail_after(60):
        if transport == "stdio":
            args = ["gateway", "--profile", "mcp-server-time", "--engine", "oci"]
            stdio = StdioServerParameters(command=str(FUMEHOOD), args=args, env=transports_lab.env)
            async with Client(stdio, mode=era) as client:
                tasks = await calls(client)
        else:
            of = gateway if transport == "http" else unix_gateway
            async with of.client(transport, era) as client:
                tasks = await calls(client)
    done = transports_lab.fumehood("tasks", "--json", "--limit", "50")
    records = {record["task"]: record for record in done.said}
    assert {records[task]["result"] for task in tasks} == {"ok"}
    assert len({records[task]["container"] for task in tasks}) == 2


async def calls(client: Client) -> list[str]:
    assert [tool.name for tool in (await client.list_tools()).tools] == ["get_current_time", "convert_time"]
    found = []
    for _ in range(2):
        result = await client.call_tool("get_current_time", {"timezone": "UTC"})
        assert not result.is_error
        assert result.meta is not None
        found.append(str(result.meta["fumehood/task"]))
    return found


@pytest.mark.anyio
async def test_an_idle_worker_that_listens_is_small(gateway: Listening) -> None:
    async with gateway.client("http", "legacy") as client:
        await client.list_tools()
    assert int(status(gateway.process.pid)["VmRSS"].split()[0]) <= HTTP_WORKER_KIB


def test_the_worker_that_listens_is_confined_like_any_other(gateway: Listening) -> None:
    found = status(gateway.process.pid)
    assert set(found["Uid"].split()) != {"0"}
    assert found["CapEff"] == "0" * 16
    assert found["Seccomp"] == "2"


@pytest.mark.anyio
@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_client_that_hangs_up_takes_its_box_along(transports_lab: Lab, era: str) -> None:
    workspace = transports_lab.workspace("peer")
    shutil.copy(PEER, workspace / "peer.py")
    profile = transports_lab.profile("peer", 'tools: {allow: "*"}\narguments: {open: ["*"]}\nfilesystem: {workspace: ro}\n')
    marker = f"marker-http-{era}"
    argv = ("python3", "/workspace/peer.py", "modern", marker)
    with listening(transports_lab, "--workspace", str(workspace), profile=profile, argv=argv) as found:
        async with found.client("http", "2026-07-28" if era == "modern" else "legacy") as client:
            await client.list_tools()

        async def hang() -> None:
            async with httpx2.AsyncClient(timeout=60) as http:
                await http.post(found.url, **await request(found, http, era))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang)
            with anyio.fail_after(20):
                pid = await anyio.to_thread.run_sync(hanging, marker, abandon_on_cancel=True)
            began = time.monotonic()
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(gone, pid, 5)
        assert time.monotonic() - began < 0.5
    record = next(each for each in transports_lab.fumehood("tasks", "--json").said if each["tool"] == "hang")
    assert (record["result"], record["reason"]) == ("killed", "cancelled")


async def request(of: Listening, http: httpx2.AsyncClient, era: str) -> dict[str, Any]:
    """A call of `hang`, by hand: the SDK's client would cancel it in words."""
    headers = {"Authorization": f"Bearer {of.token}", "Accept": "application/json, text/event-stream"}
    params: dict[str, Any] = {"name": "hang", "arguments": {}}
    if era == "modern":
        prefix = "io.modelcontextprotocol/"
        params["_meta"] = {f"{prefix}protocolVersion": "2026-07-28", f"{prefix}clientCapabilities": {}}
        headers |= {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "hang"}
    else:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
        answer = await http.post(of.url, headers=headers, json=body)
        headers |= {"MCP-Protocol-Version": "2025-11-25", "Mcp-Session-Id": answer.headers["mcp-session-id"]}
        await http.post(of.url, headers=headers, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
    return {"headers": headers, "json": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}}


def hanging(marker: str) -> int:
    """The host's pid of the server that sleeps in its call, once there is one."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        for pid in with_marker(marker):
            with suppress(OSError):
                if Path(f"/proc/{pid}/wchan").read_text().startswith("hrtimer_nanosleep"):
                    return pid
        time.sleep(0.02)  # another process's progress, with a deadline
    raise AssertionError("the server never came up")


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_https(transports_lab: Lab) -> None:
    chain, key = transports_lab.folder / "chain.pem", transports_lab.folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    await anyio.run_process(
        [*made, "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1", "-keyout", str(key), "-out", str(chain)]
    )
    key.chmod(0o600)
    with listening(transports_lab, "--tls-certificate", str(chain), "--tls-key", str(key)) as found:
        assert found.url.startswith("https://127.0.0.1:")
        found.certificate = chain
        with anyio.fail_after(60):
            async with found.client("http", "auto") as client:
                assert len(await calls(client)) == 2
        key.chmod(0o640)
        line = refused(transports_lab, "--tls-certificate", str(chain), "--tls-key", str(key))
        assert "config_unsafe" in line


def refused(of: Lab, *options: str, tokens: Path | None = None, address: str = "127.0.0.1:0") -> str:
    """The one line that says why the gateway does not start."""
    path = tokens or token_file(of)[1]
    done = of.fumehood(
        "gateway", "--profile", "mcp-server-time", "--http", address, "--token-file", str(path), *options, timeout=20
    )
    assert done.status == 125, done.stderr
    return done.one_clear_line()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"])
def test_http_beyond_loopback_without_tls_is_refused(transports_lab: Lab, address: str) -> None:
    assert "config_unsafe" in refused(transports_lab, address=address)


@pytest.mark.parametrize("address", ["localhost", "example.org:80", "127.0.0.1:99999", ":80", "::1:80", "127.0.0.1:x"])
def test_an_address_that_is_none_is_refused(transports_lab: Lab, address: str) -> None:
    assert "bad_request" in refused(transports_lab, address=address)


def test_http_without_good_tokens_is_refused(transports_lab: Lab) -> None:
    missing = refused(transports_lab, tokens=transports_lab.folder / "none")
    assert "config_invalid" in missing
    assert "fumehood gateway token" in missing
    _, path = token_file(transports_lab, "loose")
    path.chmod(0o640)
    assert "config_unsafe" in refused(transports_lab, tokens=path)
    done = transports_lab.fumehood("gateway", "--profile", "mcp-server-time", "--http", "127.0.0.1:0")
    assert "token" in done.one_clear_line()


def test_what_guards_the_door_does_not_lie_in_a_workspace(transports_lab: Lab) -> None:
    workspace = transports_lab.workspace("planted")
    _, inner = token_file(transports_lab, "workspaces/planted/tokens")
    assert "config_unsafe" in refused(transports_lab, "--workspace", str(workspace), tokens=inner)
    done = transports_lab.fumehood(
        "gateway", "--profile", "mcp-server-time", "--workspace", str(workspace), "--unix", str(workspace / "s")
    )
    assert "config_unsafe" in done.one_clear_line()


def test_a_port_that_is_taken_is_one_clear_line(
    transports_lab: Lab, gateway: Listening, unix_gateway: Listening
) -> None:
    address = gateway.url.removeprefix("http://").removesuffix("/mcp")
    assert "in use" in refused(transports_lab, address=address)
    done = transports_lab.fumehood("gateway", "--profile", "mcp-server-time", "--unix", str(unix_gateway.socket))
    assert "in use" in done.one_clear_line()


def test_stdio_does_not_pay_for_http(transports_lab: Lab) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    process = subprocess.Popen(
        [str(FUMEHOOD), "gateway", "--profile", "mcp-server-time", "--engine", "oci"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**transports_lab.env, "PYTHONPROFILEIMPORTTIME": "1"},
        stderr=subprocess.PIPE,
    )  # fmt: skip
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode()
    answer, imported = process.communicate(body + b"\n", timeout=30)
    assert json.loads(answer)["id"] == 1
    assert b"fumehood.gateway.adapter" in imported
    # The SDK imports much of HTTP whatever is spoken; the server proper, and ours, is not among it.
    for name in (b"uvicorn.protocols", b"h11", b"fumehood.gateway.http_server", b"fumehood.gateway.unix"):
        assert name not in imported, name
