"""Certificate-bound tokens (RFC 8705): the same token over a connection with another certificate, with none, or with one nobody vouches for."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from oauth_door import OAuthDoor, denied, front_of, oauth_door

from certificates import Authority
from fake_issuer import FakeIssuer, Holder
from fumehood.oauth_config import Binding

pytestmark = pytest.mark.anyio
INVALID = "invalid_token"
Identity = tuple[Path, Path]


def identity(folder: Path, name: str, of: Authority) -> Identity:
    """A client's certificate and key."""
    return of.certify(name, usage=ExtendedKeyUsageOID.CLIENT_AUTH).write(folder, name)


def digest(who: Identity) -> str:
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(who[0].read_text())).digest()
    return base64.urlsafe_b64encode(shown).rstrip(b"=").decode()


@asynccontextmanager
async def mtls_door(issuer: FakeIssuer, trusted: str, binding: Binding = Binding.MTLS) -> AsyncIterator[OAuthDoor]:
    front = front_of(issuer, binding=binding, client_authorities="/etc/clients.pem")
    async with oauth_door(replace(front, authorities=trusted)) as door:
        yield door


@pytest.fixture
def clients() -> Authority:
    return Authority("clients' authority")


async def test_a_token_over_its_own_certificates_connection_and_over_others(clients: Authority, tmp_path: Path) -> None:
    issuer = FakeIssuer()
    alice, bob = identity(tmp_path, "alice", clients), identity(tmp_path, "bob", clients)
    token = issuer.token(cnf={"x5t#S256": digest(alice)})
    async with mtls_door(issuer, clients.pem) as door:
        mine, another = replace(door, identity=alice), replace(door, identity=bob)
        answer = await mine.call("echo", authorization=f"Bearer {token}")
        assert answer.status == 200
        (call,) = [call for call in door.spine.ledger.calls.values() if call.front_door == "gateway"]
        assert call.proof is not None
        assert (call.proof.method, call.proof.key, call.proof.nonce) == ("mtls", digest(alice), "")
        denied(await another.with_token(token), 401, INVALID, "another certificate")
        denied(await door.with_token(token), 401, INVALID, "another certificate")
        denied(await mine.with_token(issuer.token()), 401, INVALID, "not bound")
        denied(await mine.with_token(issuer.token(cnf={"x5t#S256": ""})), 401, INVALID)
        denied(await mine.with_token(issuer.token(cnf={"x5t": digest(alice)})), 401, INVALID, "not known")
        assert "dpop-nonce" not in (await mine.with_token(token)).headers


async def test_a_certificate_of_another_authority_ends_the_handshake(clients: Authority, tmp_path: Path) -> None:
    issuer, evil = FakeIssuer(), Authority("clients' authority")  # of the same name
    forged = identity(tmp_path, "alice", evil)
    async with mtls_door(issuer, clients.pem) as door:
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError, OSError)):
            await replace(door, identity=forged).with_token(issuer.token(cnf={"x5t#S256": digest(forged)}))


async def test_a_servers_certificate_is_no_clients(clients: Authority, tmp_path: Path) -> None:
    issuer = FakeIssuer()
    server = clients.certify("localhost").write(tmp_path, "server")
    async with mtls_door(issuer, clients.pem) as door:
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError, OSError)):
            await replace(door, identity=server).with_token(issuer.token(cnf={"x5t#S256": digest(server)}))


@pytest.fixture
def self_signed(tmp_path: Path) -> Identity:
    files = tmp_path / "self.crt", tmp_path / "self.key"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=self"]
    subprocess.run(["openssl", *words, "-out", str(files[0]), "-keyout", str(files[1])], check=True, capture_output=True)
    return files


async def test_a_self_signed_certificate_is_taken_when_the_operator_names_it(self_signed: Identity) -> None:
    files = self_signed
    issuer = FakeIssuer()
    token = issuer.token(cnf={"x5t#S256": digest(files)})
    async with mtls_door(issuer, files[0].read_text()) as door:
        assert (await replace(door, identity=files).with_token(token)).status == 200
    async with mtls_door(issuer, Authority().pem) as door:
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError, OSError)):
            await replace(door, identity=files).with_token(token)


async def test_either_binding_takes_each_and_of_both_both(clients: Authority, tmp_path: Path) -> None:
    issuer = FakeIssuer()
    alice, bob = identity(tmp_path, "alice", clients), identity(tmp_path, "bob", clients)
    async with mtls_door(issuer, clients.pem, Binding.EITHER) as door:
        mine, another = replace(door, identity=alice), replace(door, identity=bob)
        assert (await mine.with_token(issuer.token(cnf={"x5t#S256": digest(alice)}))).status == 200
        holder = await door.ready(issuer)
        assert (await door.by(holder)).status == 200
        both = Holder(issuer, holder.url, nonce=holder.nonce)
        both.token = issuer.token(cnf={"jkt": both.thumbprint, "x5t#S256": digest(alice)})
        assert (await mine.by(both)).status == 200
        denied(await another.by(both), 401, INVALID, "another certificate")
        denied(await mine.with_token(both.token), 401, INVALID, "bound to a key")


async def test_a_certificate_shows_nothing_where_none_is_asked_for(clients: Authority, tmp_path: Path) -> None:
    issuer = FakeIssuer()
    alice = identity(tmp_path, "alice", clients)
    for binding in (Binding.DPOP, Binding.NONE):
        async with oauth_door(front_of(issuer, binding=binding)) as door:
            denied(await replace(door, identity=alice).with_token(issuer.token(cnf={"x5t#S256": digest(alice)})), 401, INVALID)


async def test_a_certificate_in_a_header_is_none(clients: Authority, tmp_path: Path) -> None:
    issuer = FakeIssuer()
    alice = identity(tmp_path, "alice", clients)
    token = issuer.token(cnf={"x5t#S256": digest(alice)})
    text = alice[0].read_text().replace("\n", "")
    async with mtls_door(issuer, clients.pem) as door:
        denied(await door.with_token(token, x_client_cert=text, client_cert=f":{digest(alice)}:", x_forwarded_client_cert=text), 401, INVALID)
