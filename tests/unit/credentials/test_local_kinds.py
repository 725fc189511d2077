"""Kinds that ask nobody (static, ssh-cert) or the tests' own STS, and what of a secret a box gets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes_http import sts_server
from fumehood.credentials.kinds import find
from fumehood.credentials.supplying import supplies_of
from fumehood.faults import FumehoodError
from fumehood.ports import LeaseRequest
from fumehood.reach import CredentialUse, Delivery, Secret, SecretForm
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio


def request(scope: Mapping[str, Any] | None = None, seconds: float = 120.0) -> LeaseRequest:
    return LeaseRequest(lease="0" * 26, task="1" * 26, credential="c", scope=scope or {}, seconds=seconds)


@pytest.mark.parametrize(
    ("form", "secrets", "parts"),
    [
        ("token", {"token": "t"}, {"token": "t"}),
        ("password", {"user": "u", "password": "p"}, {"user": "u", "password": "p"}),
        ("aws", {"key_id": "i", "key": "k"}, {"key_id": "i", "key": "k"}),
        ("aws", {"key_id": "i", "key": "k", "session": "s"}, {"key_id": "i", "key": "k", "session": "s"}),
        ("ssh", {"private_key": "k", "certificate": "c"}, {"key": "k", "certificate": "c"}),
    ],
)
async def test_a_static_secret_is_what_it_is_and_says_that_it_is_not_revocable(
    form: str, secrets: dict[str, str], parts: dict[str, str]
) -> None:
    provider = find("static").make("s", {"form": form}, secrets)
    issued = await provider.issue(request(), await provider.handle(request()))
    assert dict(issued.secret.parts) == parts
    assert not provider.revocable
    assert provider.maximum == {}
    proof = await provider.revoke({}, {})
    assert (proof.gone, proof.answer) == (False, "a static secret is not revocable")


@pytest.fixture(scope="module")
def authority() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def keygen(folder: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["ssh-keygen", *arguments], cwd=folder, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


async def test_an_ssh_certificate_is_read_by_ssh_keygen_as_it_was_meant(authority: tuple[str, str], tmp_path: Path) -> None:
    options = {
        "force_command": "git-upload-pack 'site'", "source_address": ["10.0.0.0/8"], "allow": {"principals": ["deploy-*"]},
    }  # fmt: skip
    provider = find("ssh-cert").make("ssh", options, {"ca_key": authority[0]})
    asked = request({"principals": ["deploy-site"]})
    issued = await provider.issue(asked, await provider.handle(asked))
    (tmp_path / "cert.pub").write_text(issued.secret.parts["certificate"])
    said = keygen(tmp_path, "-Lf", "cert.pub")
    (tmp_path / "ca.pub").write_text(authority[1])
    ours = keygen(tmp_path, "-lf", "ca.pub").split()[1]
    assert ours in said
    assert "deploy-site" in said
    assert "force-command git-upload-pack 'site'" in said
    assert "source-address 10.0.0.0/8" in said
    assert "Extensions: (none)" in said
    assert f'Key ID: "fumehood-{"0" * 26}"' in said
    assert issued.expires_at_s is not None
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(issued.secret.parts["key"])
    derived = keygen(tmp_path, "-yf", "key")
    fingerprint = keygen(tmp_path, "-lf", "-", stdin=derived).split()[1]
    assert fingerprint in said
    assert not (await provider.revoke({}, {})).gone


async def test_patterns_of_principals_are_not_put_into_a_certificate(authority: tuple[str, str]) -> None:
    provider = find("ssh-cert").make("ssh", {"allow": {"principals": ["deploy-*"]}}, {"ca_key": authority[0]})
    with pytest.raises(FumehoodError) as error:
        await provider.issue(request(), await provider.handle(request()))
    assert error.value.reason is Reason.SCOPE_REFUSED


async def test_a_broken_authority_is_not_quoted() -> None:
    provider = find("ssh-cert").make("ssh", {"allow": {"principals": ["x"]}}, {"ca_key": "canary-not-a-key"})
    with pytest.raises(FumehoodError) as error:
        await provider.issue(request(), await provider.handle(request()))
    assert "canary" not in str(error.value)


@pytest.fixture(scope="module")
def sts() -> Iterator[str]:
    with sts_server() as url:
        yield url


def role(endpoint: str, **more: Any) -> Any:
    options = {
        "role_arn": "arn:aws:iam::123456789012:role/reader", "region": "eu-west-1", "endpoint": endpoint,
        "allow": {"actions": ["s3:GetObject", "s3:PutObject"], "resources": ["arn:aws:s3:::data/**"]}, **more,
    }  # fmt: skip
    return find("aws-sts").make("aws", options, {"key_id": "AKIAIOSFODNN7EXAMPLE", "key": "canary-secret-key"})


async def test_sts_credentials_carry_a_policy_of_the_scope_and_are_not_revocable(sts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = role(sts)
    asked: list[Mapping[str, Any]] = []
    assume = provider._assume
    monkeypatch.setattr(provider, "_assume", lambda fields: (asked.append(fields), assume(fields))[1])
    scope = {"actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::data/site/*"]}
    handle = await provider.handle(request(scope))
    issued = await provider.issue(request(scope), handle)
    assert set(issued.secret.parts) == {"key_id", "key", "session"}
    (fields,) = asked
    assert fields["DurationSeconds"] == 900
    assert json.loads(fields["Policy"])["Statement"] == [
        {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::data/site/*"]}
    ]
    assert issued.expires_at_s is not None
    proof = await provider.revoke(handle, {})
    assert not proof.gone
    assert "not revocable" in proof.answer
    assert provider.least_s == 900


async def test_an_sts_that_is_away_tells_no_secret() -> None:
    with pytest.raises(FumehoodError) as error:
        await role("http://127.0.0.1:9").issue(request(), {"session": "x"})
    assert error.value.reason is Reason.LEASE_FAILED
    assert "canary" not in str(error.value)


def test_what_a_box_gets_of_each_form() -> None:
    def use(deliver: Delivery, **more: Any) -> CredentialUse:
        return CredentialUse(name="c", source="c", deliver=deliver, **more)

    aws = Secret(form=SecretForm.AWS, parts={"key_id": "i", "key": "k", "session": "s"})
    ssh = Secret(form=SecretForm.SSH, parts={"key": "K", "certificate": "C"})
    login = Secret(form=SecretForm.PASSWORD, parts={"user": "u", "password": "p"})
    token = Secret(form=SecretForm.TOKEN, parts={"token": "t"})
    supplied = supplies_of([
        (use(Delivery.ENV, variable="A"), token), (use(Delivery.ENV, variable="B"), login), (use(Delivery.ENV, variable="C"), aws),
        (use(Delivery.FILE, file="aws", variable="AWS_SHARED_CREDENTIALS_FILE"), aws), (use(Delivery.FILE, file="id"), ssh),
        (use(Delivery.FILE, file="t"), token), (use(Delivery.GATE, variable="D"), token),
    ])  # fmt: skip
    environment = dict(supplied.environment)
    assert json.loads(environment.pop("C")) == {"key_id": "i", "key": "k", "session": "s"}
    assert environment == {"A": "t", "B": "p", "AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/aws"}
    assert {file.name: file.content for file in supplied.files} == {
        "secrets/aws": b"[default]\naws_access_key_id = i\naws_secret_access_key = k\naws_session_token = s\n",
        "secrets/id": b"K", "secrets/id-cert.pub": b"C", "secrets/t": b"t",
    }  # fmt: skip
