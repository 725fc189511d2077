"""The operator's secrets at rest in a runtime: in the worker's memory, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, memory_holds

CANARY = "canary-of-an-operator-f31c77"
CODE = "print('up'); input()  # held-secrets"


@pytest.fixture
def configured(lab: Lab) -> Iterator[Lab]:
    """A lab whose configuration has a credential in a file, and one that a command prints."""
    file, secret = Path(lab.env["FUMEHOOD_CONFIG"]), lab.folder / "secret"
    before = file.read_text() if file.exists() else None
    secret.write_text(CANARY)
    secret.chmod(0o600)
    credentials = (
        f"\ncredentials:\n  held: {{provider: static, token: {{file: {secret}}}}}\n"
        f"  printed: {{provider: static, token: {{command: [/bin/cat, {secret}]}}}}\n"
    )
    file.write_text((before or "") + credentials)
    file.chmod(0o644)
    yield lab
    secret.unlink()
    if before is None:
        file.unlink()
    else:
        file.write_text(before)


@pytest.mark.usefixtures("nothing_left")
def test_the_operators_secrets_are_in_the_workers_memory_alone(configured: Lab) -> None:
    needle = CANARY.encode()
    with configured.live("oci", CODE) as live:
        assert live.line() == "up"
        pids = {**live.ours(), "tool": configured.boxed("held-secrets")}
        assert {name for name, pid in pids.items() if memory_holds(pid, needle)} == {"worker"}
        for name, pid in pids.items():
            for told in ("cmdline", "environ", "status"):
                assert needle not in Path(f"/proc/{pid}/{told}").read_bytes(), (name, told)
        live.say("")
        assert live.end().status == 0
    held = [path for path in configured.state.rglob("*") if path.is_file() and needle in path.read_bytes()]
    assert held == []


def test_a_secret_that_others_can_read_ends_the_start_before_anything_runs(configured: Lab) -> None:
    (configured.folder / "secret").chmod(0o644)
    done = configured.fumehood("run", "--profile", "python", "--", "python3", "-c", "print('ran')")
    assert (done.status, done.stdout) == (125, "")
    assert "config_unsafe: credentials.held.token: " in done.stderr
    assert CANARY not in done.stderr
