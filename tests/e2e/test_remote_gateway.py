"""`fumehood gateway --config` before a remote server: the real processes, and a token out of the operator's own file."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal
from remote_world import Asked, authority, everything

from lab import Lab, lab_for
from live_gateway import configure, live_gateway

pytestmark = pytest.mark.root
TOKEN = "an-operators-own-token-0123456789"  # noqa: S105 - a token of the tests' own
PROFILE = "remote: true\ntools: {allow: [test_simple_text, test_tool_with_progress]}\nlimits: {wall: 20s}\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "remote") as made:
        yield made


def test_a_remote_server_is_called_by_the_real_gateway_under_its_own_token(lab: Lab, nothing_left: None) -> None:  # noqa: ARG001
    seen: list[Asked] = []
    profile, trusted, token = (lab.folder / name for name in ("profiles/far.yaml", "authority.pem", "token"))
    profile.write_text(PROFILE)
    trusted.write_text(authority().pem)
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(everything(seen=seen)) as url:
        upstream = f"{{url: '{url}', credential: issuer, addresses: [127.0.0.0/8]}}"
        more = f"egress: {{authorities: {trusted}}}\ncredentials: {{issuer: {{provider: static, token: {{file: {token}}}}}}}"
        file = configure(lab, f"{{servers: {{far: {{profile: {profile}, upstream: {upstream}}}}}}}", more)
        checked = lab.fumehood("gateway", "check", "--config", str(file))
        assert checked.status == 0, checked.stderr
        with live_gateway(lab, file) as gateway:
            assert gateway.tools() == ["test_simple_text", "test_tool_with_progress"]
            done = gateway.call("test_simple_text")
            assert done["content"][0]["text"] == "This is a simple text response for testing."
            refused = gateway.call("test_image_content")
            assert "tool_not_allowed" in json.dumps(refused)
            asked = len(seen)
            assert "was read again" in gateway.reload()
            assert gateway.call("test_simple_text")["content"] == done["content"]
            assert len(seen) == asked + 1, "what did not change keeps its pins"
            gateway.end()
        log = gateway.log.read_text()
    assert {asked.headers["authorization"] for asked in seen} == {f"Bearer {TOKEN}"}
    task = done["_meta"]["fumehood/task"]
    told = lab.fumehood("task", task, "--json")
    assert told.status == 0, told.stderr
    assert told.said["engine"] == "remote"
    assert told.said["container"] == "remote:localhost"
    shown = lab.fumehood("task", task)
    assert "remote:localhost" in shown.stdout
    assert TOKEN not in log + told.stdout + shown.stdout


@pytest.mark.parametrize("helps", [True, False])
def test_stop_ends_a_call_that_has_no_box_whether_the_worker_helps_or_not(lab: Lab, nothing_left: None, *, helps: bool) -> None:  # noqa: ARG001
    """A worker that was taken over has its connections to remote servers, and no box that it could lose."""
    seen: list[Asked] = []
    name = f"slow-{helps}".lower()  # each run's server has an address of its own: under one name it would be a changed server
    profile, trusted = lab.folder / "profiles/slow.yaml", lab.folder / "authority.pem"
    profile.write_text("remote: true\ntools: {allow: [slow_compute]}\nlimits: {wall: 60s}\n")
    trusted.write_text(authority().pem)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(everything(seen=seen)) as url:
        upstream = f"{{url: '{url}', addresses: [127.0.0.0/8]}}"
        file = configure(lab, f"{{servers: {{{name}: {{profile: {profile}, upstream: {upstream}}}}}}}", f"egress: {{authorities: {trusted}}}")
        with live_gateway(lab, file) as gateway:
            assert gateway.tools() == ["slow_compute"]
            asked = len(seen)
            number = gateway.send("tools/call", name="slow_compute", arguments={"seconds": 50})
            gateway.until(lambda: len(seen) > asked)
            if not helps:
                gateway.process.send_signal(signal.SIGSTOP)
            done = lab.fumehood("stop", "--all", "--json")
            assert done.seconds < 5
            assert (done.status, done.said["boxes_killed"], done.said["calls_ended"]) == (0, 0, 1), done
            if helps:
                outcome = gateway.answer(number)["result"]["_meta"]["fumehood/outcome"]
                assert (outcome["result"], outcome["reason"]) == ("killed", "operator")
                asked = len(seen)
                assert "stopped" in json.dumps(gateway.call("slow_compute", seconds=0))
                assert len(seen) == asked, "nothing is asked of a remote server either"
            else:
                assert gateway.process.wait(timeout=10) == -signal.SIGKILL
    assert lab.fumehood("start").status == 0
