"""A real gateway that wants signed requests: unmodified clients through the proxy, as the guide has it, and what was captured, replayed."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from test_gateway_fronts import Web, token

from certificates import Authority
from fumehood.gateway.sender_keys import read_private_key
from lab import FUMEHOOD, Lab, lab_for, needs
from live_gateway import META, LiveGateway, configure, live_gateway, napping
from signed import Signer, challenge_of

pytestmark = pytest.mark.root
GUIDE = Path(__file__).parents[2] / "docs" / "senders.md"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("python", "s") as made:
        yield made
        assert made.left() == []


def sender(of: Lab, name: str) -> Signer:
    """A registered sender, made as operators make one."""
    path = of.folder / f"{name}.key"
    if not path.exists():
        public = of.fumehood("senders", "keygen", str(path)).stdout
        (of.folder / f"{name}.pub").write_text(public)
        assert of.fumehood("senders", "add", name, "--key", str(of.folder / f"{name}.pub")).status == 0
    return Signer(name, read_private_key(path, os.getuid())._key)


def fronts(of: Lab, **envelope: str) -> str:
    """A configuration with a napper behind HTTP and a unix socket."""
    server, _ = napping(of, "nap")
    asked = json.dumps({"mode": "required", **envelope})
    http = f"{{tokens_file: {of.folder}/tokens, listen: '127.0.0.1:0', envelope: {asked}}}"
    return f"{{servers: {{{server}}}, http: {http}, unix: {{path: {of.folder}/socket, envelope: {asked}}}}}"


def challenge(web: Web, bearer: str) -> str:
    return challenge_of(web.ask(bearer, "server/discover")[1])


def said(web: Web, bearer: str, params: dict[str, Any]) -> str:
    """What comes of a captured call, sent as it was."""
    answer = web.ask(bearer, "tools/call", **params)[1]
    return "done" if "result" in answer else str(answer["error"]["data"]["reason"])


def captured(by: Signer, chal: str, **arguments: Any) -> dict[str, Any]:
    """A signed call, as it goes over the wire."""
    return by.sign("tools/call", {"name": "nap", "arguments": arguments, "_meta": META}, chal)


def calls(of: Lab) -> int:
    """How many calls of tools were recorded."""
    return sum(record["tool"] == "nap" for record in of.fumehood("tasks", "--json").said)


def test_what_was_captured_is_refused_by_the_gateway_itself_a_second_one_and_a_restarted_one(lab: Lab) -> None:
    alice, bearer = sender(lab, "alice"), token(lab, "alice")
    bobs = token(lab, "bob")
    file = configure(lab, fronts(lab))
    with live_gateway(lab, file) as gateway:
        web = Web(gateway)
        call = captured(alice, challenge(web, bearer))
        before = calls(lab)
        assert said(web, bearer, call) == "done"
        assert said(web, bearer, call) == "replayed"
        assert said(web, bobs, call) == "challenge_stale"
        assert web.ask(bearer, "tools/call", name="nap", arguments={})[1]["error"]["data"]["reason"] == "proof_missing"
        other = lab.folder / "second.yaml"
        other.write_text(file.read_text().replace(f"{lab.folder}/socket", f"{lab.folder}/socket2"))
        with live_gateway(lab, other) as second:
            assert said(Web(second), bearer, call) == "challenge_stale"
    with live_gateway(lab, file) as again:
        assert said(Web(again), bearer, call) == "challenge_stale"
    assert calls(lab) == before + 1
    (record,) = [row for row in lab.fumehood("tasks", "--json").said if row["tool"] == "nap"][:1]
    shown = lab.fumehood("task", record["task"], "--json").said
    assert shown["sender"] == "http:alice"
    assert shown["request_digest"] == alice.claims("tools/call", call, "")["bd"]
    assert (shown["proof"]["key"], shown["proof"]["method"]) == (alice.kid, "envelope")


def test_a_revocation_holds_at_once_for_a_gateway_that_runs_and_has_seen_the_key(lab: Lab) -> None:
    carol, bearer = sender(lab, "carol"), token(lab, "carol")
    with live_gateway(lab, configure(lab, fronts(lab))) as gateway:
        web = Web(gateway)
        chal = challenge(web, bearer)
        assert said(web, bearer, captured(carol, chal)) == "done"
        assert lab.fumehood("senders", "revoke", "carol").status == 0
        assert said(web, bearer, captured(carol, chal)) == "sender_revoked"


def test_what_http_asks_of_envelopes_changes_with_a_reload(lab: Lab) -> None:
    bearer = token(lab, "dora")
    with live_gateway(lab, configure(lab, fronts(lab))) as gateway:
        web = Web(gateway)
        assert web.ask(bearer)[1]["error"]["data"]["reason"] == "proof_missing"
        configure(lab, fronts(lab).replace('"required"', '"accepted"', 1))
        assert "served now" in gateway.reload()
        assert "result" in web.ask(bearer)[1]
        configure(lab, fronts(lab).replace('"required"', '"accepted"'))
        assert "`gateway.unix.envelope` was changed" in gateway.reload()


def test_with_its_ledger_killed_a_gateway_takes_no_signed_request(lab: Lab) -> None:
    alice, bearer = sender(lab, "alice"), token(lab, "alice")
    with live_gateway(lab, configure(lab, fronts(lab))) as gateway:
        web = Web(gateway)
        chal = challenge(web, bearer)
        assert said(web, bearer, captured(alice, chal)) == "done"
        ledgers = [pid for pid in gateway.ours()[1:] if _holds(pid, lab.state / "ledger")]
        assert len(ledgers) == 1
        os.kill(ledgers[0], signal.SIGKILL)
        assert said(web, bearer, captured(alice, chal)) == "ledger_unavailable"


def _holds(pid: int, folder: Path) -> bool:
    """Whether a process has a file of the folder open."""
    found = Path(f"/proc/{pid}/fd")
    return any(str(each.readlink()).startswith(str(folder)) for each in found.iterdir())


def guide(of: Lab) -> list[str]:
    """The three blocks of the guide's example, in this lab's folder."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    return [block.replace("/etc/fumehood", f"{of.folder}/guide").replace("127.0.0.1:8080", "127.0.0.1:0") for block in blocks]


@pytest.fixture(scope="module")
def prepared(lab: Lab) -> None:
    """What the guide's first block makes."""
    path = f"{FUMEHOOD.parent}:{lab.env['PATH']}"
    done = subprocess.run(["bash", "-ec", guide(lab)[0]], env={**lab.env, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {stat.S_IMODE(each.stat().st_mode) for each in (lab.folder / "guide").iterdir()} == {0o600}


def proxy(of: Lab, command: str, gateway: LiveGateway) -> StdioServerParameters:
    """The guide's third block, as a client would start it."""
    url = gateway.logged("listening on http").split()[-1]
    words = command.replace("http://127.0.0.1:0/mcp", url).split()
    assert words.pop(0) == "fumehood"
    return StdioServerParameters(command=str(FUMEHOOD), args=words, env=of.env)


@pytest.mark.parametrize("era", ["2026-07-28", "legacy", "auto"])
@pytest.mark.usefixtures("prepared")
def test_the_guides_example_serves_a_client_that_cannot_sign(lab: Lab, era: str) -> None:
    needs("mcp-reference")
    _, serve, connect = guide(lab)

    async def use(params: StdioServerParameters) -> str:
        with anyio.fail_after(60):
            async with Client(params, mode=era) as client:
                assert "get_current_time" in [tool.name for tool in (await client.list_tools()).tools]
                answer = await client.call_tool("get_current_time", {"timezone": "Europe/Zurich"})
                assert not answer.is_error, answer
                return str(answer.meta["fumehood/task"])  # type: ignore[index]

    words = serve.split()
    assert words[:2] == ["fumehood", "gateway"]
    with live_gateway(lab, lab.folder / "fumehood.yaml", options=words[2:]) as gateway:
        task = anyio.run(use, proxy(lab, connect, gateway))
    shown = lab.fumehood("task", task, "--json").said
    assert shown["sender"] == "http:alice"
    assert shown["proof"]["method"] == "envelope"


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
def test_a_client_on_a_unix_socket_signs_through_the_proxy_too(lab: Lab, era: str) -> None:
    sender(lab, "alice")
    token(lab, "alice")

    async def use() -> str:
        words = ["sign-proxy", "--unix", f"{lab.folder}/socket", "--key", f"{lab.folder}/alice.key", "--sender", "alice"]
        with anyio.fail_after(60):
            async with Client(StdioServerParameters(command=str(FUMEHOOD), args=words, env=lab.env), mode=era) as client:
                answer = await client.call_tool("nap", {})
                return str(answer.meta["fumehood/task"])  # type: ignore[index]

    with live_gateway(lab, configure(lab, fronts(lab))) as gateway:
        gateway.logged("listening on unix:")
        task = anyio.run(use)
    assert lab.fumehood("task", task, "--json").said["sender"] == "key:alice"


def test_the_proxy_knows_its_gateway_by_the_certificate_and_says_in_one_line_when_it_is_not_there(lab: Lab) -> None:
    sender(lab, "alice")
    (lab.folder / "alice.token").write_text(token(lab, "alice"))
    (lab.folder / "alice.token").chmod(0o600)
    authority = Authority()
    (lab.folder / "ca.pem").write_text(authority.pem)
    (lab.folder / "other.pem").write_text(Authority().pem)
    certificate, key = authority.certify("localhost").write(lab.folder)
    tls = f"tls: {{certificate: {certificate}, key: {key}}}, listen:"
    with live_gateway(lab, configure(lab, fronts(lab).replace("listen:", tls))) as gateway:
        url = gateway.logged("listening on https").split()[-1].replace("127.0.0.1", "localhost")
        words = ("--key", "alice.key", "--token-file", "alice.token", "--ca")
        assert listed(lab, url, *words, "ca.pem") == ["nap"]
        assert "certificate verify failed" in listed(lab, url, *words, "other.pem")
    assert "All connection attempts failed" in listed(lab, url, "--key", "alice.key")
    assert "expected PEM certificates" in listed(lab, url, "--key", "alice.key", "--ca", "alice.key")


def listed(of: Lab, url: str, *words: str) -> list[str] | str:
    """The tools that a client of the proxy's sees, or its one line."""
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}})
    with subprocess.Popen(
        [FUMEHOOD, "sign-proxy", "--url", url, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=of.env, cwd=of.folder,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
        if line := process.stdout.readline():
            process.stdin.close()
            assert process.wait(20) == 0
            return [tool["name"] for tool in json.loads(line)["result"]["tools"]]
        said = process.stderr.read()
    assert process.returncode == 125
    assert said.count("\n") == 1, said
    return said
