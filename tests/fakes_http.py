"""Fakes of the HTTP APIs behind credentials: FakeGitHub, FakeVault, FakeTokenServer. They keep what they granted, and speak on loopback.

Each does what the real one does as far as a provider can tell, after its documentation; none was compared with the real one.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import RSAKey

Reply = tuple[int, dict[str, Any] | None]


class FakeApi:
    """What the fakes share: one handler, and a log of what was asked."""

    url = ""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lost = False  # do what is asked, and lose the answer
        self.redirect: str | None = None

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        raise NotImplementedError


@contextmanager
def serving(api: FakeApi) -> Iterator[None]:
    """Serve a fake at `api.url` for the body."""

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.asked.append(f"{self.command} {self.path}")
            if api.redirect is not None:
                self.send_response(307)
                self.send_header("Location", api.redirect)
                self.end_headers()
                return
            status, fields = api.answer(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            if api.lost:
                self.close_connection = True
                return
            content = b"" if fields is None else json.dumps(fields).encode()
            self.send_response(status)
            if content:
                self.send_header("Content-Type", "application/json")
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do  # noqa: N815 - the library's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def sts_server() -> Iterator[str]:
    """moto's server of AWS's APIs, which is no fake of ours; its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class FakeGitHub(FakeApi):
    """The two calls of a GitHub App's installation tokens."""

    def __init__(self, public_key: str, app_id: int = 7, installation: int = 42) -> None:
        super().__init__()
        self._key = RSAKey.import_key(public_key)
        self._app, self._path = app_id, f"/app/installations/{installation}/access_tokens"
        self.tokens: dict[str, dict[str, Any]] = {}
        self.generous: dict[str, Any] = {}

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if (method, path) == ("POST", self._path):
            claims = jwt.decode(token, self._key, algorithms=["RS256"]).claims
            if scheme != "Bearer" or claims["iss"] != str(self._app) or not 0 < claims["exp"] - time.time() <= 600:
                return 401, {"message": "bad credentials"}
            asked = json.loads(body)
            made = "ghs_" + secrets.token_hex(18)
            granted = {
                "permissions": {"metadata": "read", **asked["permissions"]}, "repository_selection": "selected",
                "repositories": [{"full_name": f"acme/{name}"} for name in asked["repositories"]], **self.generous,
            }
            self.tokens[made] = granted
            return 201, {"token": made, "expires_at": "2099-01-01T00:00:00Z", **granted}
        if (method, path) == ("DELETE", "/installation/token"):
            return (204, None) if self.tokens.pop(token, None) else (401, {"message": f"bad credentials {token}"})
        return 404, {"message": "no such thing"}


class FakeTokenServer(FakeApi):
    """An authorization server: token exchange (RFC 8693), client credentials, revocation (RFC 7009)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, dict[str, list[str]]] = {}
        self.extra_scope = ""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        form = parse_qs(body.decode())
        client = base64.b64decode(headers.get("authorization", "Basic ").partition(" ")[2]).decode()
        if client != "fumehood:s%26cret" and form.get("client_secret") != ["s&cret"]:
            return 401, {"error": "invalid_client"}
        if path == "/revoke" and method == "POST":
            self.tokens.pop(form["token"][0], None)
            return 200, None
        if path != "/token" or method != "POST":
            return 404, {"error": "not_found"}
        kind = form["grant_type"][0]
        if kind == "urn:ietf:params:oauth:grant-type:token-exchange":
            if form["subject_token"] != ["the-subject"]:
                return 400, {"error": "invalid_grant", "error_description": f"not {form['subject_token'][0]}"}
        elif kind != "client_credentials":
            return 400, {"error": "unsupported_grant_type"}
        made = secrets.token_urlsafe(24)
        self.tokens[made] = form
        scope = " ".join([*form.get("scope", []), self.extra_scope]).strip()
        return 200, {"access_token": made, "token_type": "Bearer", "expires_in": 300, "scope": scope}


@dataclass
class FakeVault(FakeApi):
    """Tokens with accessors, one dynamic secrets engine at database/creds/, one KV at kv/data/."""

    token: str = "root-token"  # noqa: S105 - a fake's
    children: dict[str, dict[str, Any]] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        token = headers.get("x-vault-token", "")
        fields = json.loads(body) if body else {}
        if method == "POST" and token != self.token:
            return 403, {"errors": ["permission denied"]}
        match method, path.removeprefix("/v1/"):
            case "POST", "auth/token/create":
                child, accessor = "hvs." + secrets.token_hex(12), secrets.token_hex(12)
                self.children[accessor] = {"token": child, **fields}
                return 200, {"auth": {"client_token": child, "accessor": accessor, "lease_duration": 60}}
            case "POST", "auth/token/revoke-accessor":
                child = self.children.pop(fields["accessor"], None)
                if child is None:
                    return 400, {"errors": ["1 error occurred:\n\t* invalid accessor\n\n"]}
                self.leases = {lease: owner for lease, owner in self.leases.items() if owner != child["token"]}
                return 204, None
            case "POST", "sys/leases/revoke":
                if self.leases.pop(fields["lease_id"], None) is None:
                    return 400, {"errors": ["invalid lease"]}
                return 204, None
            case "GET", secret if token in {child["token"] for child in self.children.values()}:
                if secret.startswith("kv/data/"):
                    return 200, {"lease_id": "", "lease_duration": 0, "data": {"data": {"username": "u", "password": "kept"}, "metadata": {}}}
                lease = f"{secret}/{secrets.token_hex(8)}"
                self.leases[lease] = token
                return 200, {"lease_id": lease, "lease_duration": 30, "data": {"username": "v-user", "password": "v-" + lease[-16:]}}
            case _:
                return 403, {"errors": ["permission denied"]}
