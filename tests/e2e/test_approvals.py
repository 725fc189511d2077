"""Calls that wait for a person, as clients meet them: the SDK's own client in both eras, HTTP, a webhook, and a callback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mcp import Client, StdioServerParameters
from mcp_types import ElicitResult

from fumehood.approvals.answers import made
from fumehood.thumbprint import text_of
from lab import Lab, lab_for
from live_gateway import META, configure, live_gateway, napping
from people import asks, at_terminal, listed, program, waiting

pytestmark = [pytest.mark.root, pytest.mark.anyio]
ALICE = Ed25519PrivateKey.generate()
KEY = text_of(ALICE.public_key().public_bytes_raw())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "-asking") as found:
        yield found
        assert found.left() == []


@asynccontextmanager
async def client_of(lab: Lab, need: str = "Need()", wait: str = "20s", **options: Any) -> AsyncIterator[Client]:
    server, _ = napping(lab, "napper")
    file = configure(lab, f"{{servers: {{{server}}}}}", f"approvals: {{wait: {wait}}}\n")
    argv = program(asks(need))
    command = StdioServerParameters(command=argv[0], args=[*argv[1:], "gateway", "--config", str(file)], env=lab.env)
    with anyio.fail_after(90):
        async with Client(command, **options) as client:
            await client.list_tools()
            yield client


async def approved(lab: Lab) -> str:
    """What a person at a terminal saw before they said yes."""
    (row,) = await anyio.to_thread.run_sync(waiting, lab)
    status, said = await anyio.to_thread.run_sync(at_terminal, lab, "approve", row["id"])
    assert status == 0, said
    return said


def text(result: Any) -> str:
    found: str = result.content[0].text
    return found


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_a_client_with_a_form_is_told_and_its_answer_runs_nothing(lab: Lab, era: str) -> None:
    told: list[str] = []

    async def elicit(_: Any, params: Any) -> ElicitResult:
        told.append(params.message)
        return ElicitResult(action="accept", content={"confirm": True})

    found: list[Any] = []
    async with client_of(lab, elicitation_callback=elicit, mode=era) as client, anyio.create_task_group() as tasks:

        async def call() -> None:
            found.append(await client.call_tool("napper", {"era": era}))

        tasks.start_soon(call)
        with anyio.fail_after(20):
            while not told:  # noqa: ASYNC110 - another process's progress, with a deadline
                await anyio.sleep(0.05)
        assert "this call waits for a person's approval" in told[0]
        assert "it is a test" in told[0]
        await anyio.sleep(0.5)
        assert found == [], "the client said yes, and nobody else has"
        await approved(lab)
    assert text(found[0]) == "napper"
    assert len(told) == 1


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_where_the_rule_lets_the_requester_confirm_it_is_recorded_as_that(lab: Lab, era: str) -> None:
    async def elicit(_: Any, params: Any) -> ElicitResult:
        assert "confirm" in json.dumps(params.requested_schema)
        return ElicitResult(action="accept", content={"confirm": True})

    async with client_of(lab, "Need(requester=True)", elicitation_callback=elicit, mode=era) as client:
        result = await client.call_tool("napper", {"confirm": era})
    assert text(result) == "napper"
    assert result.meta is not None
    record = lab.fumehood("task", result.meta["fumehood/task"], "--json").said
    (granted,) = [event["facts"] for event in record["events"] if event["state"] == "granted"]
    assert [(vote["how"], vote["identity"]) for vote in granted["approval"]["votes"]] == [("requester-confirmed", "requester")]


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_a_client_that_declines_takes_its_request_back(lab: Lab, era: str) -> None:
    async def elicit(_: Any, __: Any) -> ElicitResult:
        return ElicitResult(action="decline")

    async with client_of(lab, elicitation_callback=elicit, mode=era) as client:
        result = await client.call_tool("napper", {"decline": era})
    assert "approval_withdrawn" in text(result)


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_a_client_without_forms_hears_progress_is_told_that_it_waits_and_goes_on(lab: Lab, era: str) -> None:
    heard: list[str | None] = []

    async def progress(_: float, __: float | None, message: str | None) -> None:
        heard.append(message)

    async with client_of(lab, wait="2s", mode=era) as client:
        result = await client.call_tool("napper", {"plain": era}, progress_callback=progress)
        assert result.is_error
        assert "approval_pending" in text(result)
        assert "Send the same request again" in text(result)
        row = next(row for row in listed(lab) if row["state"] == "open")
        assert f"waits for the approval {row['id']}" in heard
        await approved(lab)
        assert text(await client.call_tool("napper", {"plain": era}, progress_callback=progress)) == "napper"


def test_a_state_of_a_round_is_good_once_and_for_its_own_request(lab: Lab) -> None:
    server, _ = napping(lab, "napper")
    file = configure(lab, f"{{servers: {{{server}}}}}", "approvals: {wait: 4s}\n")
    forms = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
    with live_gateway(lab, file, program(asks())) as gateway:
        gateway.tools()

        def ask(**more: Any) -> Any:
            params = {"name": "napper", "arguments": {"round": 1}, "_meta": forms, **more}
            said = gateway.answer(gateway.send("tools/call", **params))
            return said.get("result", said.get("error"))

        first = ask()
        assert first["resultType"] == "input_required"
        assert list(first["inputRequests"]) == ["fumehood-approval"]
        answers = {"fumehood-approval": {"action": "accept", "content": {}}}
        state = first["requestState"]
        tampered = ask(requestState=state[:-2] + "xx", inputResponses=answers)
        other = ask(requestState=state, inputResponses=answers, arguments={"round": 2})
        for refused in (tampered, other):
            assert refused["code"] == -32602
        ended = ask(requestState=state, inputResponses=answers)
        assert ended["_meta"]["fumehood/outcome"]["reason"] == "approval_pending", "the retry goes on waiting"
        assert ask(requestState=state, inputResponses=answers)["code"] == -32602, "and its state is used up"
        late = ask()
        anyio.run(anyio.sleep, 5)  # the call ends while its client has the form open
        assert ask(requestState=late["requestState"], inputResponses=answers)["_meta"]["fumehood/outcome"]["reason"] == "approval_pending"
    for row in listed(lab):
        lab.fumehood("approvals", "deny", row["id"])


def test_a_task_says_that_it_waits(lab: Lab) -> None:
    server, _ = napping(lab, "napper")
    file = configure(lab, f"{{servers: {{{server}}}}}", "approvals: {wait: 40s}\n")
    tasks = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
    with live_gateway(lab, file, program(asks())) as gateway:
        gateway.tools()
        number = gateway.send("tools/call", name="napper", arguments={"task": 1}, _meta=tasks)
        given = gateway.answer(number)["result"]
        (row,) = waiting(lab)
        assert (given["resultType"], given["status"]) == ("task", "working")
        assert given["statusMessage"] == f"waits for the approval {row['id']}"
        assert gateway.answer(gateway.send("tasks/get", taskId=given["taskId"], _meta=tasks))["result"]["statusMessage"]
        assert gateway.answer(gateway.send("tasks/cancel", taskId=given["taskId"], _meta=tasks))["result"] is not None
        gateway.until(lambda: not [each for each in listed(lab) if each["state"] == "open"])


@contextmanager
def receiver(statuses: list[int]) -> Iterator[tuple[int, list[tuple[dict[str, str], bytes]]]]:
    """A webhook's receiver: its port, and what came; it answers with these statuses, then with 200."""
    came: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.send_header("location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(port: int, path: str, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"host": f"127.0.0.1:{port}", "content-length": str(len(body)), **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_approver_is_told_by_a_webhook_and_answers_by_the_callback(lab: Lab) -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    kept = lab.folder / "webhook.secret"
    kept.write_text(secret)
    kept.chmod(0o600)
    done = lab.fumehood("gateway", "token", "agent", "--tokens-file", str(lab.folder / "tokens"), "--json")
    assert done.status == 0, done.stderr
    server, _ = napping(lab, "napper")
    with receiver([503, 302]) as (port, came):
        section = (
            f"approvals: {{wait: 30s, callback: /approvals/callback, approvers: {{alice: {{key: {KEY}}}}}, "
            f"webhook: {{url: 'http://127.0.0.1:{port}/hook', secret: {{file: {kept}}}}}}}\n"
        )
        http_ = f"http: {{listen: '127.0.0.1:0', tokens_file: {lab.folder}/tokens}}"
        file = configure(lab, f"{{servers: {{{server}}}, {http_}}}", section)
        with live_gateway(lab, file, program(asks())) as gateway:
            front = int(gateway.logged("listening on http").rpartition(":")[2].partition("/")[0])
            result: list[Any] = []

            def call() -> None:
                connection = http.client.HTTPConnection("127.0.0.1", front, timeout=60)
                message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "napper", "arguments": {}, "_meta": META}}
                connection.request("POST", "/mcp", json.dumps(message), {
                    "host": f"127.0.0.1:{front}", "authorization": f"Bearer {done.said['token']}", "content-type": "application/json",
                    "accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call",
                    "mcp-name": "napper",
                })  # fmt: skip
                result.append(connection.getresponse().read())
                connection.close()

            calling = threading.Thread(target=call)
            calling.start()
            gateway.until(lambda: len(came) == 3, 40)
            headers, body = came[-1]
            assert came[0][1] == body, "tried again, and no redirect followed"
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            expected = base64.b64encode(hmac.new(b"k" * 32, signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
            said = json.loads(body)
            assert "tool napper of the server napper" in said["text"]
            assert "http:agent" in said["text"]
            now = int(headers["webhook-timestamp"])
            claims = {
                "iss": "alice", "aud": "fumehood", "iat": now, "exp": now + 250, "jti": "a" * 20, "approval": said["id"],
                "binding": said["binding"], "decision": "approve", "reason": "seen in the chat",
            }  # fmt: skip
            good = made(ALICE.sign, claims).encode()
            path = "/approvals/callback"
            forged = made(Ed25519PrivateKey.generate().sign, claims).encode()
            other = made(ALICE.sign, {**claims, "binding": "sha256:" + "0" * 64, "jti": "b" * 20}).encode()
            unknown = made(ALICE.sign, {**claims, "approval": "0" * 26, "jti": "c" * 20}).encode()
            assert [post(front, path, each) for each in (forged, other, unknown, b"{}", b"\xff")] == [403] * 5
            assert post(front, path, b"x" * 9000) == 413
            assert post(front, path, good, origin="https://evil.example") == 403
            assert post(front, path, good, host="evil.example") == 421
            assert post(front, "/approvals/other", good) == 404
            assert post(front, path, good) == 204
            assert post(front, path, good) == 403, "an answer counts once"
            calling.join(40)
            assert b'"text": "napper"' in result[0] or b'"text":"napper"' in result[0], result
    (row,) = [each for each in listed(lab, "--all") if each["id"] == said["id"]]
    assert (row["told"], row["state"], row["votes"][0]["how"], row["votes"][0]["reason"]) == ("told", "spent", "signed", "seen in the chat")


def test_a_webhook_that_cannot_be_reached_costs_nothing_but_a_word(lab: Lab) -> None:
    server, _ = napping(lab, "napper")
    secret = lab.folder / "plain.secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    section = f"approvals: {{wait: 20s, webhook: {{url: 'http://127.0.0.1:9/x', secret: {{file: {secret}}}}}}}\n"
    with live_gateway(lab, configure(lab, f"{{servers: {{{server}}}}}", section), program(asks())) as gateway:
        gateway.tools()
        number = gateway.send("tools/call", name="napper", arguments={"hook": 1})
        (row,) = waiting(lab)
        status, _ = at_terminal(lab, "approve", row["id"])
        assert status == 0
        assert gateway.answer(number)["result"]["content"][0]["text"] == "napper"


def test_an_approver_signs_with_the_command_on_any_host(lab: Lab) -> None:
    key = lab.folder / "approver.pem"
    public = lab.fumehood("senders", "keygen", str(key), "--json").said["public"]["x"]
    server, _ = napping(lab, "napper")
    file = configure(lab, f"{{servers: {{{server}}}}}", f"approvals: {{wait: 20s, approvers: {{carol: {{key: {public}}}}}}}\n")
    with live_gateway(lab, file, program(asks())) as gateway:
        gateway.tools()
        number = gateway.send("tools/call", name="napper", arguments={"sign": 1})
        (row,) = waiting(lab)
        signed = lab.fumehood("approvals", "sign", row["id"], row["binding"], "approve", "--key", str(key), "--as", "carol")
        assert signed.status == 0, signed.stderr
        answer = Path(lab.folder / "answer")
        answer.write_text(signed.stdout)
        assert lab.fumehood("approvals", "answer", str(answer), "--config", str(file), "--json").said["state"] == "approved"
        assert gateway.answer(number)["result"]["content"][0]["text"] == "napper"


def test_a_command_of_the_operators_waits_too_and_says_so(lab: Lab) -> None:
    patch = asks().replace("Kind.TOOL", "Kind.COMMAND")
    found: list[Any] = []
    (lab.folder / "gateway.yaml").unlink(missing_ok=True)
    thread = threading.Thread(target=lambda: found.append(lab.run("oci", "echo", "hello", program=program(patch))))
    thread.start()
    (row,) = waiting(lab)
    status, said = at_terminal(lab, "approve", row["id"])
    assert status == 0, said
    thread.join(40)
    assert found[0].status == 0, found[0].stderr
    assert found[0].told == "hello\n"
    assert f"fumehood approvals show {row['id']}" in found[0].stderr
