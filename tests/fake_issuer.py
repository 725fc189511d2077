"""A FAKE authorization server: real keys, real tokens and, where it is served, real HTTPS; and a client that proves it has a DPoP key.

`FakeIssuer.token` makes whatever a test wants, also what no honest issuer would sign. `Holder` is a client with a key and a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import httpx2
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from fumehood.oauth_config import Binding, IssuerConfig, KeysConfig, OAuthConfig, SubjectConfig

ISSUER = "https://login.example.org"
AnyKey = ECKey | OKPKey | RSAKey | OctKey


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, key: AnyKey | None) -> str:
    """A compact JWS, by joserfc's algorithm of that name; `none` has no signature."""
    text = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    first = f"{b64(json.dumps(header).encode())}.{b64(text)}"
    if key is None:
        return f"{first}."
    return f"{first}.{b64(JWSRegistry.algorithms[header['alg']].sign(first.encode(), key))}"


def generated(algorithm: str) -> AnyKey:
    """A new key for an algorithm."""
    if algorithm in ("RS256", "PS256"):
        return RSAKey.generate_key(2048)
    return OKPKey.generate_key("Ed25519") if algorithm in ("EdDSA", "Ed25519") else ECKey.generate_key("P-256")


@dataclass
class FakeIssuer:
    """One issuer with keys by id; the first signs unless a test says otherwise."""

    issuer: str = ISSUER
    resource: str = "https://localhost/mcp"
    algorithm: str = "ES256"
    keys: dict[str, tuple[str, AnyKey]] = field(default_factory=dict)
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.keys:
            self.keys["k1"] = (self.algorithm, generated(self.algorithm))

    def rotate(self, name: str) -> None:
        """Sign with a new key from now on, and publish no other."""
        self.keys = {name: (self.algorithm, generated(self.algorithm))}

    def jwks(self) -> str:
        """Its public keys."""
        return json.dumps({"keys": [{**key.as_dict(private=False), "kid": name, "use": "sig"} for name, (_, key) in self.keys.items()]})

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What an honest token says; None leaves a claim out."""
        now = int(time.time())
        usual = {
            "iss": self.issuer, "aud": self.resource, "sub": "a-1", "client_id": "tests", "iat": now, "exp": now + 300,
            "jti": uuid.uuid4().hex, "scope": "mcp other",
        }  # fmt: skip
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, header: Mapping[str, Any] | None = None, key: AnyKey | None = None, **changes: Any) -> str:
        """A token, honest but for the changes."""
        name, (algorithm, own) = next(iter(self.keys.items()))
        whole = {"typ": "at+jwt", "alg": algorithm, "kid": name, **(header or {})}
        return signed({name: value for name, value in whole.items() if value is not None}, self.claims(**changes), key or own)

    def config(self, **changes: Any) -> IssuerConfig:
        """What an operator writes who believes it, and serves `a-1` as alice and `b-1` as bob."""
        people = {"alice": (("sub", "a-1"),), "bob": (("sub", "b-1"),)}
        usual = {
            "issuer": self.issuer, "keys": KeysConfig(file="/etc/jwks"), "algorithms": (self.algorithm,),
            "senders": tuple(SubjectConfig(name=name, claims=claims) for name, claims in people.items()),
        }  # fmt: skip
        return IssuerConfig(**{**usual, **changes})


def oauth_config(*issuers: IssuerConfig, binding: Binding = Binding.DPOP, resource: str = "https://localhost/mcp", **more: Any) -> OAuthConfig:
    return OAuthConfig(resource=resource, issuers=issuers, binding=binding, **more)


@dataclass
class Holder:
    """A client with a key of its own and a token that was issued to it."""

    issuer: FakeIssuer
    url: str
    algorithm: str = "ES256"
    nonce: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = generated(self.algorithm)
        self.token = self.issuer.token(cnf={"jkt": self.thumbprint}, **self.changes)

    @property
    def thumbprint(self) -> str:
        return self.key.thumbprint()

    def proof(
        self, method: str = "POST", *, header: Mapping[str, Any] | None = None, key: AnyKey | None = None, **changes: Any
    ) -> str:
        """A proof for a request, honest but for the changes; None leaves a claim out."""
        usual = {
            "htm": method, "htu": self.url, "iat": int(time.time()), "jti": uuid.uuid4().hex, "nonce": self.nonce,
            "ath": b64(hashlib.sha256(self.token.encode()).digest()),
        }  # fmt: skip
        claims = {name: value for name, value in {**usual, **changes}.items() if value is not None}
        public = self.key.as_dict(private=False)
        whole = {"typ": "dpop+jwt", "alg": self.algorithm, "jwk": {name: public[name] for name in public if name != "kid"}, **(header or {})}
        return signed(whole, claims, key or self.key)

    def headers(self, method: str = "POST", **changes: Any) -> dict[str, str]:
        """What it sends."""
        return {"authorization": f"DPoP {self.token}", "dpop": self.proof(method, **changes)}


class DPoP(httpx2.Auth):
    """A holder as an HTTP client: proves each request, and once more when it is told a nonce."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        for last in (False, True):
            request.headers.update(self.holder.headers(request.method))
            answer = yield request
            self.holder.nonce = answer.headers.get("dpop-nonce", self.holder.nonce)
            if answer.status_code != 401 or last or "use_dpop_nonce" not in answer.headers.get("www-authenticate", ""):
                return


@contextmanager
def served(issuer: FakeIssuer, tls: ssl.SSLContext) -> Iterator[FakeIssuer]:
    """The issuer on HTTPS at a free port of loopback, its name with it: keys, metadata, and tokens for the one client it knows.

    A client asks with its id and a secret, and names the resource (RFC 8707); what it asked for is what it gets.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            endpoints = {"token_endpoint": f"{issuer.issuer}/token", "authorization_endpoint": f"{issuer.issuer}/authorize"}
            known = {
                "/jwks": issuer.jwks(),
                "/.well-known/oauth-authorization-server": json.dumps(
                    {"issuer": issuer.issuer, "response_types_supported": ["code"], **endpoints}
                ),
            }
            self.answer(200 if self.path in known else 404, known.get(self.path, "{}"))

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            issuer.asked.append(form)
            token = issuer.token(aud=form["resource"][0], scope=form.get("scope", [""])[0])
            self.answer(200, json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 300}))

        def answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        issuer.issuer = f"https://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
