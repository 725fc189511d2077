"""Attacks on what configures a gateway: planted files, readable tokens, and a taken-over worker that wants more of the host."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from fumehood import operating
from lab import Lab, gone, status
from live_gateway import configure, live_gateway, napping

pytestmark = pytest.mark.usefixtures("nothing_left")


# ---- rule 6: nothing that a box could have written -------------------------------------------------------------------


@pytest.mark.parametrize("what", ["configuration", "profile of another server", "tokens", "profile folder"])
def test_what_is_planted_in_a_workspace_of_one_server_is_not_read(lab: Lab, what: str) -> None:
    victim, workspace = napping(lab, "victim")
    other, _ = napping(lab, "other")
    evil = workspace / "evil.yaml"
    evil.write_text("extends: python\ntools: {allow: '*'}\n")
    evil.chmod(0o600)
    gateway, more = f"{{servers: {{{victim}, {other}}}}}", ""
    if what == "profile of another server":
        gateway = f"{{servers: {{{victim}, other: {{profile: {evil}, command: [a]}}}}}}"
    elif what == "tokens":
        gateway = f"{{servers: {{{victim}}}, http: {{tokens_file: {evil}}}}}"
    elif what == "profile folder":
        more = f"profile_folders: [{workspace}]"
    path = configure(lab, gateway, more)
    if what == "configuration":
        path = workspace / "fumehood.yaml"
        path.write_text((lab.folder / "gateway.yaml").read_text())
    done = lab.fumehood("gateway", "--config", str(path))
    assert (done.status, done.stdout) == (125, "")
    assert "config_unsafe" in done.one_clear_line()
    assert f"lies inside the workspace of the server `{workspace.name}`" in done.one_clear_line()


@pytest.mark.parametrize("how", ["readable", "writable", "another's", "in a writable folder"])
def test_a_tokens_file_that_others_could_have_read_or_written_is_refused(lab: Lab, how: str) -> None:
    server, _ = napping(lab, "victim")
    folder = lab.workspace("tokens")
    path = folder / "tokens"
    configure(lab, f"{{servers: {{{server}}}, http: {{listen: '127.0.0.1:0', tokens_file: {path}}}}}")
    config = str(lab.folder / "gateway.yaml")
    assert lab.fumehood("gateway", "token", "alice", "--config", config).status == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert lab.fumehood("gateway", "check", "--config", config).status == 0
    if how == "another's":
        os.chown(path, 54321, 54321)
    else:
        {"readable": path, "writable": path, "in a writable folder": folder}[how].chmod(
            {"readable": 0o640, "writable": 0o602, "in a writable folder": 0o777}[how]
        )
    for command in (["gateway", "--config", config], ["gateway", "token", "eve", "--config", config]):
        done = lab.fumehood(*command)
        assert done.status == 125
        assert "config_unsafe" in done.one_clear_line()
    checked = lab.fumehood("gateway", "check", "--json", "--config", config)
    assert [each["reason"] for each in checked.said["problems"]] == ["config_unsafe"]


# ---- rule 7: a worker gets no directory that the operator has not given ----------------------------------------------

# The worker was taken over: whatever workspace a call has, it gives `other` to the box, writable.
LIES = """
import os, sys
from dataclasses import replace
from fumehood.brokering import BrokerClient
from fumehood.cli.main import main
from fumehood.model import WorkspaceMode
bind = BrokerClient.bind
async def lying(self, task, binding, supplies):
    {before}
    fd = os.open({other!r}, os.O_RDONLY | os.O_DIRECTORY)
    return await bind(self, task, replace(binding, workspace=WorkspaceMode.RW, workspace_fd=fd), supplies)
BrokerClient.bind = lying
sys.argv[0] = "fumehood"
main()
"""

# And it has its own end of the operator process's socket in its hands.
NOTES = """
from fumehood.gateway import changes
OPERATOR = []
made = changes.Operator.__init__
def noting(self, sock):
    OPERATOR.append(sock)
    made(self, sock)
changes.Operator.__init__ = noting
"""


def test_a_taken_over_worker_has_a_new_workspace_only_from_when_the_operator_said_so(lab: Lab) -> None:
    given, workspace = napping(lab, "given")
    later, other = napping(lab, "later")
    program = [sys.executable, "-c", LIES.format(before="", other=str(other))]
    with live_gateway(lab, configure(lab, f"{{servers: {{{given}}}}}"), program) as gateway:
        assert gateway.call("given", write="stolen")["_meta"]["fumehood/outcome"]["reason"] == "workspace_not_allowed"
        # The file alone says nothing: the operator has not asked for it to be read.
        configure(lab, f"{{servers: {{{later}}}}}")
        assert gateway.call("given", write="stolen")["_meta"]["fumehood/outcome"]["reason"] == "workspace_not_allowed"
        assert not (other / "stolen").exists()
        gateway.reload()
        assert gateway.tools() == ["later"]
        assert not gateway.call("later", write="given").get("isError")
        assert (other / "given").exists()
        # And what is taken away is taken away, some seconds later.
        configure(lab, f"{{servers: {{{given}}}}}")
        gateway.reload()
        gateway.until(
            lambda: gateway.call("given").get("_meta", {}).get("fumehood/outcome", {}).get("reason") == "workspace_not_allowed",
            timeout_s=operating.GRACE_S + 10,
        )
        assert gateway.end() == 0
    assert not (workspace / "stolen").exists()


def test_a_taken_over_worker_cannot_give_the_operators_orders(lab: Lab) -> None:
    given, _ = napping(lab, "given")
    _, other = napping(lab, "other")
    order = f"""
    wanted = {{"workspaces": [{str(other)!r}, "/"], "mounts": ["/"]}}
    from fumehood import faults, wire
    try:
        await self._ask("allow", wanted)
    except faults.FumehoodError as error:
        print("the broker says", error, file=sys.stderr)
    wire.send(OPERATOR[0], {{"id": 7, "verb": "allow", "args": wanted}})
    import anyio
    await anyio.sleep(1.5)  # for as long as the operator process needs to be talked into it
"""
    program = [sys.executable, "-c", NOTES + LIES.format(before=order.strip(), other=str(other))]
    with live_gateway(lab, configure(lab, f"{{servers: {{{given}}}}}"), program) as gateway:
        said = gateway.call("given", write="stolen")
        assert said["_meta"]["fumehood/outcome"]["reason"] == "workspace_not_allowed"
        assert "the broker says bad_request" in gateway.log.read_text()
        # All that the request was: the operator's own file, read again.
        assert "served now: given" in gateway.logged("the configuration ")
    assert not (other / "stolen").exists()


def test_the_operator_process_keeps_its_rights_to_itself(lab: Lab) -> None:
    given, workspace = napping(lab, "given")
    with live_gateway(lab, configure(lab, f"{{servers: {{{given}}}}}")) as gateway:
        assert gateway.tools() == ["given"]
        pid = gateway.operator()
        assert status(pid)["Uid"].split() == ["0"] * 4
        assert status(gateway.process.pid)["CapEff"] == "0" * 16
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
        # Of the host it holds nothing open, and of the others only its two sockets: no client's stream, no workspace.
        held = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert held[0] == held[1] == "/dev/null"
        assert sorted(link.split(":")[0] for number, link in held.items() if number > 2) == ["socket", "socket"]
        assert str(workspace) not in held.values()
        assert gateway.end() == 0
        assert gone(pid)


def test_without_a_configuration_nobody_holds_the_way_to_give_orders(lab: Lab) -> None:
    with lab.live("oci", "print('up'); input()") as live:
        assert live.line() == "up"
        assert set(live.ours()) == {"worker", "broker", "ledger"}
        live.say("")
        assert live.end().status == 0


@pytest.mark.parametrize("who", ["worker", "operator"])
def test_killing_one_leaves_no_operator_process_and_no_box(lab: Lab, who: str) -> None:
    given, _ = napping(lab, "given")
    with live_gateway(lab, configure(lab, f"{{servers: {{{given}}}}}")) as gateway:
        assert gateway.tools() == ["given"]
        operator, others = gateway.operator(), gateway.ours()[1:]
        if who == "worker":
            gateway.process.send_signal(signal.SIGKILL)
            assert all(gone(pid) for pid in others)
            assert gateway.process.wait(timeout=10) == -signal.SIGKILL
        else:
            os.kill(operator, signal.SIGKILL)
            # The gateway goes on with what it has, and says why it does not change.
            assert gateway.call("given")["content"][0]["text"] == "given"
            assert "cannot be read again" in gateway.reload() + gateway.log.read_text()
            assert gateway.end() == 0
    if who == "worker":
        assert lab.python("oci", "print(1)").status == 0  # the next start sweeps


# ---- names ------------------------------------------------------------------------------------------------------------


def test_two_servers_whose_prefixed_tools_would_collide_are_refused(lab: Lab) -> None:
    """`a` with the tool `b__x`, and `a__b` with `x`, would both be `a__b__x`."""
    first, _ = napping(lab, "a", tool="b__x")
    second, _ = napping(lab, "other")
    path = configure(lab, f"{{servers: {{{first}, {second.replace('other:', 'a__b:', 1)}}}}}")
    done = lab.fumehood("gateway", "--config", str(path))
    assert done.status == 125
    assert "gateway.servers.a__b: expected a server's name" in done.one_clear_line()
    twice = configure(lab, f"{{servers: {{{first}, {first}}}}}")
    assert "expected each key once" in lab.fumehood("gateway", "--config", str(twice)).one_clear_line()


def test_no_error_repeats_what_a_file_holds_that_an_operator_was_led_to_name(lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    server, _ = napping(lab, "given")
    path = configure(lab, f"{{servers: {{{server}}}, http: {{listen: '127.0.0.1:0', tokens_file: {secret}}}}}")
    done = lab.fumehood("gateway", "--config", str(path))
    assert (done.status, "config" in done.one_clear_line()) == (125, True)
    assert "hunter2" not in done.stderr
