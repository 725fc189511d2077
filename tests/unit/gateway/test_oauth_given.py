"""The files of `gateway.http.oauth`, as the operator's rights read them: whole and safe, or refused where it can still be refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from certificates import Authority
from fake_issuer import FakeIssuer, generated, oauth_config
from fumehood.faults import FumehoodError
from fumehood.gateway.oauth.given import read_front
from fumehood.oauth_config import Binding, KeysConfig, OAuthConfig
from fumehood.reasons import Reason

UID = os.getuid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def put(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def config(issuer: FakeIssuer, keys: Path, **changes: object) -> OAuthConfig:
    return oauth_config(issuer.config(keys=KeysConfig(file=str(keys))), **changes)


def refused(asked: OAuthConfig) -> FumehoodError:
    with pytest.raises(FumehoodError) as caught:
        read_front(asked, UID)
    return caught.value


def test_keys_of_a_file_and_authorities_are_read_and_those_of_a_url_are_not(folder: Path) -> None:
    issuer = FakeIssuer()
    keys, clients = put(folder / "jwks", issuer.jwks()), put(folder / "clients.pem", Authority().pem)
    front = read_front(config(issuer, keys, binding=Binding.MTLS, client_authorities=str(clients)), UID)
    assert (front.uid, front.key_sets, front.authorities) == (UID, {issuer.issuer: issuer.jwks()}, clients.read_text())
    by_url = issuer.config(keys=KeysConfig(url="https://login.example.org/jwks"))
    assert read_front(oauth_config(by_url), UID).key_sets == {}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AAAA", "kid": "k1"}]}'])
def test_a_file_without_a_key_that_could_verify_is_refused_with_its_place(folder: Path, text: str) -> None:
    error = refused(config(FakeIssuer(), put(folder / "jwks", text)))
    assert error.reason is Reason.CONFIG_INVALID
    assert error.detail.startswith(f"gateway.http.oauth.issuers[0].jwks.file: {folder}/jwks is no JWK Set to verify with: ")


def test_keys_for_other_algorithms_than_the_pinned_ones_are_none(folder: Path) -> None:
    issuer = FakeIssuer(keys={"k1": ("RS256", generated("RS256"))})
    assert "is for ES256" in refused(config(issuer, put(folder / "jwks", issuer.jwks()))).detail


def test_a_file_that_others_could_have_written_is_refused(folder: Path) -> None:
    issuer = FakeIssuer()
    assert refused(config(issuer, put(folder / "jwks", issuer.jwks(), 0o666))).reason is Reason.CONFIG_UNSAFE
    assert "there is no file" in refused(config(issuer, folder / "none")).detail


def test_authorities_that_are_none_are_refused(folder: Path) -> None:
    issuer = FakeIssuer()
    keys = put(folder / "jwks", issuer.jwks())
    error = refused(config(issuer, keys, binding=Binding.MTLS, client_authorities=str(put(folder / "c.pem", "x"))))
    assert error.detail.startswith("gateway.http.oauth.client_authorities: ")
    assert "holds no certificates in PEM" in error.detail
