"""A gateway on the fronts that its configuration names, and what a reload changes of them: real boxes, real sockets."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lab_for
from live_gateway import META, LiveGateway, configure, live_gateway, napping

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def front_lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("python", "f") as made:
        yield made
        assert made.left() == []


def token(of: Lab, name: str) -> str:
    """A new token of a sender's, made as operators make one."""
    done = of.fumehood("gateway", "token", name, "--tokens-file", str(of.folder / "tokens"), "--json")
    assert done.status == 0, done.stderr
    made: str = done.said["token"]
    return made


def certify(of: Lab) -> str:
    """A new certificate and its key in the operator's folder; its SHA-256."""
    certificate, key = of.folder / "c.pem", of.folder / "k.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", *words, *names], check=True, capture_output=True)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()


def gateway_certificate(of: Lab) -> str:
    """The file that clients know the gateway by."""
    return str(of.folder / "c.pem")


class Web:
    """An HTTP client of a live gateway."""

    def __init__(self, gateway: LiveGateway) -> None:
        self.gateway = gateway
        scheme, rest = gateway.logged("listening on http").split()[-1].split("://")
        self.tls = scheme == "https"
        self.port = int(rest.partition("/")[0].rpartition(":")[2])
        self.certificate = ""

    def ask(self, bearer: str, method: str = "tools/list", host: str = "127.0.0.1", **params: Any) -> tuple[int, Any]:
        """The status and the answer of one request, on a connection of its own."""
        context = ssl.create_default_context(cafile=gateway_certificate(self.gateway.lab)) if self.tls else None
        if context is not None:
            context.check_hostname = False  # it names nobody; that it is this very one is what is tested
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
            if self.tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        )
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": META, **params}})
        headers = {
            "Host": f"{host}:{self.port}", "Authorization": f"Bearer {bearer}", "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method,
            **({"Mcp-Name": params["name"]} if "name" in params else {}),
        }  # fmt: skip
        try:
            connection.connect()
            if isinstance(connection.sock, ssl.SSLSocket):
                shown = connection.sock.getpeercert(binary_form=True)
                assert shown is not None
                self.certificate = hashlib.sha256(shown).hexdigest()
            connection.request("POST", "/mcp", body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        lines = [line[5:] for line in text.splitlines() if line.startswith("data:")]
        return answer.status, json.loads(lines[-1] if lines else text or "null")


def test_http_serves_the_senders_of_the_file_and_a_reload_changes_them(front_lab: Lab) -> None:
    server, _ = napping(front_lab, "nap")
    alice = token(front_lab, "alice")
    names = "listen: '127.0.0.1:0'"
    http_front = f"tokens_file: {front_lab.folder}/tokens, {names}"
    with live_gateway(front_lab, configure(front_lab, f"{{servers: {{{server}}}, http: {{{http_front}}}}}")) as gateway:
        web = Web(gateway)
        status, said = web.ask(alice, "tools/call", name="nap", arguments={})
        assert (status, said["result"]["content"][0]["text"]) == (200, "nap")
        task = said["result"]["_meta"]["fumehood/task"]
        assert [web.ask(wrong)[0] for wrong in ("", alice[:-1], "fh_guess")] == [401, 401, 401]
        assert web.ask(alice, host="tools.example")[0] == 421
        # A sender more, one less, and another name; what was open before is closed now.
        (front_lab.folder / "tokens").unlink()
        bob = token(front_lab, "bob")
        assert web.ask(bob)[0] == 401, "the file alone changes nothing"
        configure(front_lab, f"{{servers: {{{server}}}, http: {{{http_front}, allowed_hosts: [tools.example]}}}}")
        assert "served now" in gateway.reload()
        assert (web.ask(bob)[0], web.ask(alice, host="tools.example")[0]) == (421, 401)
        assert web.ask(bob, host="tools.example")[0] == 200
        # A tokens file that others can read refuses the whole, and the senders stay.
        (front_lab.folder / "tokens").chmod(0o644)
        assert "config_unsafe" in gateway.reload()
        assert web.ask(bob, host="tools.example")[0] == 200
        (front_lab.folder / "tokens").chmod(0o600)
        configure(front_lab, f"{{servers: {{{server}}}, http: {{tokens_file: {front_lab.folder}/tokens, listen: '127.0.0.1:1'}}}}")
        assert "`gateway.http.listen` was changed" in gateway.reload()
    records = front_lab.fumehood("tasks", "--json").said
    assert [record["sender"] for record in records if record["task"] == task] == ["http:alice"]


def test_a_new_certificate_is_shown_after_a_reload_and_a_broken_one_is_refused(front_lab: Lab) -> None:
    server, _ = napping(front_lab, "nap")
    alice, first = token(front_lab, "alice"), certify(front_lab)
    tls = f"tls: {{certificate: {front_lab.folder}/c.pem, key: {front_lab.folder}/k.pem}}"
    http_front = f"tokens_file: {front_lab.folder}/tokens, listen: '127.0.0.1:0', {tls}"
    with live_gateway(front_lab, configure(front_lab, f"{{servers: {{{server}}}, http: {{{http_front}}}}}")) as gateway:
        web = Web(gateway)
        assert (web.ask(alice)[0], web.certificate) == (200, first)
        second = certify(front_lab)
        assert second != first
        assert "served now" in gateway.reload()
        assert (web.ask(alice)[0], web.certificate) == (200, second)
        (front_lab.folder / "k.pem").write_text("not a key")
        assert "are no certificate and its key" in gateway.reload()
        assert (web.ask(alice)[0], web.certificate) == (200, second)
        configure(front_lab, f"{{servers: {{{server}}}, http: {{{http_front.replace(f', {tls}', '')}}}}}")
        assert "whether there is `gateway.http.tls` was changed" in gateway.reload()


@pytest.mark.parametrize("named_by", ["configuration", "option"])
def test_a_unix_socket_serves_its_owner(front_lab: Lab, named_by: str) -> None:
    server, _ = napping(front_lab, "nap")
    other, _ = napping(front_lab, "other")
    path = front_lab.folder / "socket"
    unix = f", unix: {{path: {path}}}" if named_by == "configuration" else ""
    options = ["--unix", str(path)] if named_by == "option" else []
    file = configure(front_lab, f"{{servers: {{{server}}}{unix}}}")
    with live_gateway(front_lab, file, options=options) as gateway:
        gateway.logged("listening on unix:")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert _listed(path) == ["nap"]
        configure(front_lab, f"{{servers: {{{other}, {server}}}{unix}}}")
        assert "served now: other, nap" in gateway.reload()
        assert _listed(path) == ["other__other", "nap__nap"]


def _listed(path: Path) -> list[str]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
        client.sendall(json.dumps(request).encode() + b"\n")
        said = json.loads(client.makefile().readline())
    return [tool["name"] for tool in said["result"]["tools"]]
