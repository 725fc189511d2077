"""Real servers on loopback for what a box reaches through its gate: DNS, HTTPS, git, sshd, S3. Each is a context manager.

All of them run beside the test, not in a box, on ports of their own; their names are what `NameServer` says, which a test gives to
the gate as `Outward.resolvers`, and loopback is a range that a rule has to name (`addresses: [127.0.0.0/8]`).
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import pwd
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from certificates import Authority
from postgres_server import as_somebody

LOOPBACK = "127.0.0.1"


@dataclass
class NameServer:
    """A DNS server. `answers` maps a name to its addresses, and may be changed at any time; `asked` is every question.

    A name with several lists (`turns`) gives them one after the other, and the last one from then on: a name that is rebound.
    """

    place: str
    ttl_s: int = 0
    answers: dict[str, list[str]] = field(default_factory=dict)
    turns: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, wire: bytes) -> bytes:
        """The answer to one question."""
        query = dns.message.from_wire(wire)
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if kind == "A" and self.turns.get(name):
            self.answers[name] = self.turns[name].pop(0)
        if name not in self.answers:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        found = [each for each in self.answers.get(name, []) if kind == ("AAAA" if ":" in each else "A")]
        if found:
            reply.answer.append(dns.rrset.from_text_list(question.name, self.ttl_s, "IN", kind, found))
        return reply.to_wire()


@contextmanager
def name_server(answers: dict[str, list[str]] | None = None) -> Iterator[NameServer]:
    """Hold a DNS server, on UDP and TCP of one port."""

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, sock = self.request
            sock.sendto(served.answer(wire), self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            (length,) = struct.unpack("!H", self.rfile.read(2))
            reply = served.answer(self.rfile.read(length))
            self.wfile.write(struct.pack("!H", len(reply)) + reply)

    udp, tcp = _pair_of_servers(Datagram, Stream)
    with udp, tcp:
        served = NameServer(f"{LOOPBACK}:{udp.server_address[1]}", answers=dict(answers or {}))
        with serving(udp), serving(tcp):
            yield served


def _pair_of_servers(
    datagram: type[socketserver.BaseRequestHandler], stream: type[socketserver.BaseRequestHandler]
) -> tuple[socketserver.ThreadingUDPServer, socketserver.ThreadingTCPServer]:
    """Two servers at one port, which must be free for both."""
    while True:
        udp = socketserver.ThreadingUDPServer((LOOPBACK, 0), datagram)
        try:
            return udp, socketserver.ThreadingTCPServer(udp.server_address, stream)
        except OSError:
            udp.server_close()


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve from a thread for the body."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def free_port() -> int:
    """A port of loopback that nobody listens at, now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: Any = probe.getsockname()[1]
        return int(port)


@dataclass
class Request:
    """One request that a server got."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the header, of the first if there are several."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)


@dataclass
class Answer:
    """What a server answers. `pieces` are sent one by one, chunked."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: Iterable[bytes] | None = None


Respond = Callable[[Request], Answer]


@dataclass
class HttpsServer:
    """An HTTPS server. It echoes requests as JSON, but where `routes` has a path's beginning; `requests` is what it got."""

    port: int
    authority: Authority
    routes: dict[str, Respond] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def respond(self, request: Request) -> Answer:
        """The answer to a request."""
        self.requests.append(request)
        for prefix, respond in self.routes.items():
            if request.target.startswith(prefix):
                return respond(request)
        said = {
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body": request.body.decode("latin-1"),
        }
        return Answer(headers={"Content-Type": "application/json"}, body=json.dumps(said).encode())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    served: HttpsServer

    def handle(self) -> None:
        # What a client that leaves in mid-talk, or refuses our certificate, does to us is its own affair.
        with suppress(OSError):
            super().handle()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._do
        raise AttributeError(name)

    def _do(self) -> None:
        request = Request(self.command, self.path, list(self.headers.items()), self._body())
        answer = self.served.respond(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.pieces is None:
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return data

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing: tests read `requests`."""


class _TlsServer(socketserver.ThreadingTCPServer):
    """Handshakes in the connection's own thread, so that one that stalls keeps nobody waiting."""

    daemon_threads = True
    block_on_close = False
    context: ssl.SSLContext

    def get_request(self) -> tuple[Any, Any]:
        connection, address = self.socket.accept()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that refuse our certificate, on purpose."""


@contextmanager
def https_server(authority: Authority, *names: str, folder: Path, address: str = LOOPBACK) -> Iterator[HttpsServer]:
    """Hold an HTTPS server, certified for these names."""
    with _TlsServer((address, 0), type("Handler", (_Handler,), {})) as server:
        server.context = authority.certify(*names).server_context(folder)
        served = HttpsServer(server.server_address[1], authority)
        server.RequestHandlerClass.served = served  # type: ignore[attr-defined]
        with serving(server):
            yield served


@dataclass
class GitRepository:
    """A bare repository, served below `/git/` of an HTTPS server to whoever has the token."""

    folder: Path
    token: str

    def git(self, *words: str) -> str:
        """Run git on it."""
        done = subprocess.run(["git", "-C", self.folder, *words], capture_output=True, text=True, check=True, env=GIT)
        return done.stdout.strip()

    def respond(self, request: Request) -> Answer:
        """What `git http-backend` answers, to who has the token (as the password of Basic, with any user)."""
        kind, _, value = (request.header("Authorization") or "").partition(" ")
        if kind != "Basic" or base64.b64decode(value).partition(b":")[2].decode() != self.token:
            return Answer(401, {"WWW-Authenticate": 'Basic realm="git"'})
        path, _, query = request.target.partition("?")
        environment = {
            **GIT, "GIT_PROJECT_ROOT": str(self.folder.parent), "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "git",
            "REMOTE_ADDR": LOOPBACK, "PATH_INFO": path.removeprefix("/git"), "QUERY_STRING": query,
            "REQUEST_METHOD": request.method, "CONTENT_TYPE": request.header("Content-Type") or "",
            "CONTENT_LENGTH": str(len(request.body)), "HTTP_CONTENT_ENCODING": request.header("Content-Encoding") or "",
            "GIT_PROTOCOL": request.header("Git-Protocol") or "",
        }  # fmt: skip
        done = subprocess.run(
            ["git", "http-backend"], input=request.body, capture_output=True, check=True, env=environment
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return Answer(int(headers.pop("Status", "200").split()[0]), headers, body)


GIT = {
    "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example",
}  # fmt: skip


def git_repository(folder: Path, token: str) -> GitRepository:
    """A repository `site.git` with one commit of one file, `README`, on `main`."""
    made = GitRepository(folder / "site.git", token)
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", made.folder], check=True, env=GIT)
    made.git("config", "http.receivepack", "true")
    blob = subprocess.run(
        ["git", "-C", made.folder, "hash-object", "-w", "--stdin"], input=b"hello\n", capture_output=True, check=True
    ).stdout.decode()
    tree = subprocess.run(
        ["git", "-C", made.folder, "mktree"],
        input=f"100644 blob {blob.strip()}\tREADME\n".encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    made.git("update-ref", "refs/heads/main", made.git("commit-tree", tree.strip(), "-m", "first"))
    return made


@dataclass
class SshServer:
    """OpenSSH's sshd. Whatever is asked for, it runs `echo` with the command; only `key` may log in, as `user`."""

    port: int
    user: str
    key: str
    known_host: str
    folder: Path

    @property
    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log").read_text(errors="replace")


@contextmanager
def ssh_server() -> Iterator[SshServer]:
    """Hold an sshd, run by a user without rights."""
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("sshd is not installed; ./scripts/counterparts installs it")
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="fumehood-sshd-"))
    try:
        for name in ("host", "client"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name]
            subprocess.run(words, check=True)
        port = free_port()
        lines = [
            f"ListenAddress {LOOPBACK}:{port}", f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/client.pub",
            f"PidFile {folder}/pid", "StrictModes no", "UsePAM no", "PasswordAuthentication no", "LogLevel VERBOSE",
            'ForceCommand echo "ran: $SSH_ORIGINAL_COMMAND"',
        ]  # fmt: skip
        (folder / "config").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user, user)
        with (folder / "log").open("wb") as log:
            command = [*as_somebody(), "/usr/sbin/sshd", "-D", "-e", "-f", folder / "config"]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        host = " ".join((folder / "host.pub").read_text().split()[:2])
        server = SshServer(port, user, (folder / "client").read_text(), host, folder)
        try:
            _wait_listening(port, process)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=10)
    finally:
        shutil.rmtree(folder)


def _wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        else:
            return


@dataclass
class CloudServer:
    """moto: AWS's STS, IAM and S3 over HTTPS, which check every signature. `key_id` and `key` may do anything."""

    port: int
    key_id: str
    key: str
    role_arn: str


@contextmanager
def cloud_server(authority: Authority, *names: str, folder: Path) -> Iterator[CloudServer]:
    """Hold a moto server, with a role `tool` that may use S3, and a key that may assume it."""
    from moto import settings
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            """Nothing."""

    context = authority.certify(*names, LOOPBACK).server_context(folder)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(LOOPBACK, 0, app, threaded=True, request_handler=Quiet, ssl_context=context)
    with serving(server):
        made = _role_and_key(authority, server.server_port, folder)
        before = settings.INITIAL_NO_AUTH_ACTION_COUNT
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from now on it asks who it is, and checks the signature
        try:
            yield made
        finally:
            settings.INITIAL_NO_AUTH_ACTION_COUNT = before
    server.server_close()


def _role_and_key(authority: Authority, port: int, folder: Path) -> CloudServer:
    import boto3
    from moto.moto_api._internal import moto_api_backend

    roots = folder / "cloud-roots.pem"
    roots.write_text(authority.pem)
    client = boto3.client(
        "iam", endpoint_url=f"https://{LOOPBACK}:{port}", verify=str(roots), region_name="us-east-1",
        aws_access_key_id="setup", aws_secret_access_key="setup",  # noqa: S106
    )  # fmt: skip
    moto_api_backend.reset()  # what an earlier server of this process had made is still there: moto keeps it in the module
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}],
    }
    client.create_user(UserName="owner")
    client.put_user_policy(UserName="owner", PolicyName="all", PolicyDocument=json.dumps(everything))
    key = client.create_access_key(UserName="owner")["AccessKey"]
    role = client.create_role(RoleName="tool", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
    client.put_role_policy(RoleName="tool", PolicyName="all", PolicyDocument=json.dumps(everything))
    return CloudServer(port, key["AccessKeyId"], key["SecretAccessKey"], role["Arn"])

@dataclass
class ConnectProxy:
    """An HTTP proxy that connects to wherever it is told, unless `refuses`. `asked` is every place, in its words."""

    place: str
    refuses: bool = False
    asked: list[str] = field(default_factory=list)


@contextmanager
def connect_proxy() -> Iterator[ConnectProxy]:
    """Hold a proxy."""

    class Tunnel(socketserver.StreamRequestHandler):
        rbufsize = 0  # what comes behind the head is the tunnel's

        def handle(self) -> None:
            method, place, _ = self.rfile.readline().decode().split(" ")
            while self.rfile.readline() not in {b"\r\n", b""}:
                pass
            served.asked.append(place)
            if method != "CONNECT" or served.refuses:
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            host, _, port = place.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), timeout=30) as there:
                self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                back = threading.Thread(target=self.pour, args=(there, self.connection))
                back.start()
                self.pour(self.connection, there)
                back.join()

        @staticmethod
        def pour(source: socket.socket, target: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(2**16):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server((LOOPBACK, 0), Tunnel) as server, serving(server):
        served = ConnectProxy(f"http://{LOOPBACK}:{server.server_address[1]}")
        yield served
