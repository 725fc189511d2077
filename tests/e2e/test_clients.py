"""Clients of others against `fumehood gateway`: each lists, calls and is refused, as its own users would see it.

The programs are in tests/peers/clients; `scripts/peers` installs what they need. Which engine makes the box is nothing that a
client can see, so one is enough here.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import FUMEHOOD, Lab, lab_for

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "tests" / "peers" / "clients"
PROFILE = "mcp-server-time"
TOOLS = ["get_current_time", "convert_time"]
CALL = {"tool": "get_current_time", "arguments": {"timezone": "UTC"}}
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("mcp-reference", "cl") as made:
        yield made


@pytest.fixture(scope="module")
def peers() -> Path:
    done = subprocess.run([ROOT / "scripts" / "peers", "--installed"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs ./scripts/peers: the clients of others")
    return Path(done.stdout.strip())


@pytest.fixture(params=["stdio", "http"])
def reached(request: pytest.FixtureRequest, lab: Lab) -> Iterator[dict[str, Any]]:
    """How a client reaches the gateway: a command to start, or an address and headers."""
    command = [str(FUMEHOOD), "gateway", "--profile", PROFILE, "--engine", "oci"]
    if request.param == "stdio":
        yield {"command": command, "env": _environment(lab)}
        return
    with listening(lab, command) as (url, token):
        yield {"url": url, "headers": {"Authorization": f"Bearer {token}"}}


def _environment(lab: Lab) -> dict[str, str]:
    # A client starts the gateway with an environment of its own making; PYTHONPATH is how a checkout is tested.
    return {**lab.env, **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}}


@contextmanager
def listening(lab: Lab, command: list[str]) -> Iterator[tuple[str, str]]:
    """A gateway on a free loopback port: its address and its token."""
    token = secrets.token_urlsafe(48)
    path = lab.folder / "tokens"
    path.touch(mode=0o600)
    path.write_text(f"tester:{hashlib.sha256(token.encode()).hexdigest()}\n")
    process = subprocess.Popen(
        [*command, "--http", "127.0.0.1:0", "--token-file", str(path)],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment(lab),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if "listening on http" in line:
                break
        else:
            pytest.fail(f"the gateway ended: {''.join(told)}")
        yield told[-1].split()[-1], token
    finally:
        process.terminate()
        process.communicate(timeout=20)
        path.unlink()


def node(program: str) -> Callable[[Path], list[str]]:
    return lambda peers: [str(peers / "bin" / "node"), str(CLIENTS / program)]


def ours(program: str) -> Callable[[Path], list[str]]:
    return lambda _: [sys.executable, str(CLIENTS / program)]


def theirs(program: str) -> Callable[[Path], list[str]]:
    return lambda peers: [str(peers / "venv" / "bin" / "python"), str(CLIENTS / program)]


PROGRAMS = [
    ("typescript-1", node("typescript_v1.mjs"), "", "2025-11-25"),
    ("typescript-2", node("typescript_v2.mjs"), "auto", "2026-07-28"),
    ("typescript-2-legacy", node("typescript_v2.mjs"), "legacy", "2025-11-25"),
    ("python", ours("python_sdk.py"), "auto", "2026-07-28"),
    ("python-legacy", ours("python_sdk.py"), "legacy", "2025-11-25"),
    ("fastmcp", theirs("fastmcp_client.py"), "auto", "2026-07-28"),
    ("fastmcp-legacy", theirs("fastmcp_client.py"), "legacy", "2025-11-25"),
]


@pytest.mark.parametrize(("program", "mode", "version"), [row[1:] for row in PROGRAMS], ids=[row[0] for row in PROGRAMS])
def test_a_client_of_others_lists_calls_and_is_refused(
    lab: Lab,
    peers: Path,
    reached: dict[str, Any],
    program: Callable[[Path], list[str]],
    mode: str,
    version: str,
) -> None:
    done = subprocess.run(
        [*program(peers), json.dumps({**reached, **CALL, "mode": mode})], capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "FUMEHOOD_PEERS_FOLDER": str(peers)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["version"] == version
    assert told["tools"] == TOOLS
    assert told["answer"]["timezone"] == "UTC"
    assert told["refused"].startswith("fumehood: arguments_invalid")
    if "command" in reached:  # its ledger has ended, so the record can be read
        record = lab.record("task", told["task"])
        assert (record["result"], record["front_door"]) == ("ok", "gateway")
    assert lab.left() == [] or "url" in reached


def test_the_inspector_lists_and_calls(peers: Path, reached: dict[str, Any]) -> None:
    if "command" in reached:
        first, last = [], ["--", *reached["command"]]
        options = [word for name, value in reached["env"].items() for word in ("-e", f"{name}={value}")]
    else:
        first, last = [reached["url"]], []  # before its options: `--tool-arg` would take it for one more argument
        options = ["--transport", "http"]
        options += [word for name, value in reached["headers"].items() for word in ("--header", f"{name}: {value}")]
    inspector = [str(peers / "bin" / "node"), str(peers / "node_modules" / ".bin" / "inspector"), "--cli", *first, *options]

    def ask(*words: str) -> Any:
        done = subprocess.run(
            [*inspector, *words, *last], capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": f"{peers / 'bin'}:{os.environ['PATH']}", "HOME": str(peers)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    assert [tool["name"] for tool in ask("--method", "tools/list")["tools"]] == TOOLS
    found = ask("--method", "tools/call", "--tool-name", CALL["tool"], "--tool-arg", "timezone=UTC")
    assert found["structuredContent"]["timezone"] == "UTC"
