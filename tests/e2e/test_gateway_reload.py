"""A gateway whose configuration is read again while calls are in flight: real boxes, on the daemonless engine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fumehood import operating
from lab import Lab, lab_for, needs_oci
from live_gateway import configure, live_gateway, napping, naps

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def reload_lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("python", "r") as made:
        needs_oci()
        yield made
        assert made.left() == []


def test_a_call_in_flight_ends_under_the_old_configuration_and_the_new_server_is_listed(reload_lab: Lab) -> None:
    old, before = napping(reload_lab, "old")
    new, after = napping(reload_lab, "new")
    with live_gateway(reload_lab, configure(reload_lab, f"{{servers: {{{old}}}}}")) as gateway:
        assert gateway.tools() == ["old"]
        # Longer than the old directories stay allowed: it is bound to its own, and commits to it all the same.
        nap = gateway.send("tools/call", name="old", arguments={"seconds": operating.GRACE_S + 2, "write": "slept"})
        gateway.until(lambda: naps(before.name))
        began_s = time.monotonic()
        configure(reload_lab, f"{{servers: {{{new}}}}}")
        assert "served now: new" in gateway.reload()
        assert time.monotonic() - began_s < operating.GRACE_S
        assert gateway.tools() == ["new"]
        assert gateway.call("new", write="here")["content"][0]["text"] == "new"
        assert gateway.call("old")["data"]["reason"] == "tool_unknown"
        assert nap not in gateway._answers, "the nap was cut short"
        assert gateway.answer(nap)["result"]["content"][0]["text"] == "old"
        configure(reload_lab, f"{{servers: {{{new}, {old}}}}}")
        assert "served now: new, old" in gateway.reload()
        assert gateway.tools() == ["new__new", "old__old"]
        assert gateway.call("old__old")["content"][0]["text"] == "old"
        assert gateway.end() == 0
    assert (before / "slept").read_text() == "old"
    assert (after / "here").read_text() == "new"


def test_reloads_leave_no_descriptor_behind(reload_lab: Lab) -> None:
    one, workspace = napping(reload_lab, "one")
    two, other = napping(reload_lab, "two")
    with live_gateway(reload_lab, configure(reload_lab, f"{{servers: {{{one}, {two}}}}}")) as gateway:
        assert gateway.tools() == ["one__one", "two__two"]

        def held() -> list[str]:
            folder = Path(f"/proc/{gateway.process.pid}/fd")
            links = [os.readlink(folder / name) for name in os.listdir(folder)]
            return sorted(link for link in links if link.startswith(str(reload_lab.folder / "workspaces")))

        assert held() == [str(workspace), str(other)]
        before = len(os.listdir(f"/proc/{gateway.process.pid}/fd"))
        for servers in (one, f"{one}, {two}", two, f"{two}, {one}", f"{one}, {two}") * 2:
            configure(reload_lab, f"{{servers: {{{servers}}}}}")
            gateway.reload()
        assert gateway.call("two__two")["content"][0]["text"] == "two"
        gateway.until(lambda: held() == [str(workspace), str(other)])
        assert len(os.listdir(f"/proc/{gateway.process.pid}/fd")) <= before
        assert gateway.end() == 0


def test_a_directory_that_was_replaced_is_given_anew(reload_lab: Lab) -> None:
    server, workspace = napping(reload_lab, "nap")
    with live_gateway(reload_lab, configure(reload_lab, f"{{servers: {{{server}}}}}")) as gateway:
        assert gateway.call("nap", write="first")["content"][0]["text"] == "nap"
        _, again = napping(reload_lab, "nap")  # removed and made anew, at the same path
        assert again == workspace
        gateway.reload()
        assert gateway.call("nap", write="second")["content"][0]["text"] == "nap"
        assert (workspace / "second").exists()
        assert gateway.end() == 0


def test_a_broken_configuration_is_one_line_in_the_log_and_the_old_one_stays(reload_lab: Lab) -> None:
    server, workspace = napping(reload_lab, "nap")
    good = f"{{servers: {{{server}}}}}"
    broken = {
        "{servers: {": "not YAML",
        "{servers: {a: {profile: no-such}}}": "profile_unknown: gateway.servers.a:",
        f"{{servers: {{{server}, b: {{profile: no-such}}}}}}": "profile_unknown: gateway.servers.b:",
        f"{{servers: {{{server}}}, http: {{listen: '0.0.0.0:1', tokens_file: /t}}}}": "in clear",
        f"{{servers: {{{server}}}, unix: {{path: /run/other}}}}": "`gateway.unix.path` was changed",
        good.replace(f"workspace: {workspace}", f"workspace: {reload_lab.folder}"): "config_unsafe",
    }
    with live_gateway(reload_lab, configure(reload_lab, good)) as gateway:
        assert gateway.tools() == ["nap"]
        for text, said in broken.items():
            configure(reload_lab, text)
            line = gateway.reload()
            assert line.startswith("fumehood: the configuration was not read again, the old one stays: "), line
            assert said in line
        configure(reload_lab, good, more="boxes: 3")
        assert "`boxes` was changed" in gateway.reload()
        configure(reload_lab, good, more="queue: {most: 3}")
        assert "`queue` was changed" in gateway.reload()
        configure(reload_lab, good, more="credentials: {api: {provider: static, token: {env: HOME}}}")
        assert "`egress` or `credentials` was changed" in gateway.reload()
        gateway.file.chmod(0o666)
        assert "config_unsafe" in gateway.reload()
        gateway.file.unlink()
        assert "does not exist" in gateway.reload()
        assert gateway.tools() == ["nap"]
        assert gateway.call("nap")["content"][0]["text"] == "nap"
        configure(reload_lab, good)
        assert "served now: nap" in gateway.reload()
        assert gateway.end() == 0
    assert len(gateway.log.read_text().splitlines()) == len(broken) + 6
