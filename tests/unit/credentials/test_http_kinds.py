"""Kinds of credentials behind HTTP: narrowed, revoked with proof, and silent about every secret that passes."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes_http import FakeApi, FakeGitHub, FakeTokenServer, FakeVault, serving
from fumehood.credentials.kinds import find
from fumehood.faults import FumehoodError
from fumehood.ports import CredentialProvider, Issued, LeaseRequest
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio


def request(scope: Mapping[str, Any] | None = None, seconds: float = 60.0) -> LeaseRequest:
    return LeaseRequest(lease="0" * 26, task="1" * 26, credential="c", scope=scope or {}, seconds=seconds)


async def issued(provider: CredentialProvider, scope: Mapping[str, Any] | None = None) -> tuple[Mapping[str, Any], Issued]:
    asked = request(scope)
    handle = await provider.handle(asked)
    return handle, await provider.issue(asked, handle)


async def fails(provider: CredentialProvider, scope: Mapping[str, Any] | None = None) -> FumehoodError:
    with pytest.raises(FumehoodError) as error:
        await issued(provider, scope)
    return error.value


@pytest.fixture(scope="module")
def app_key() -> tuple[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


@pytest.fixture
def github(app_key: tuple[str, str]) -> Iterator[FakeGitHub]:
    fake = FakeGitHub(app_key[1])
    with serving(fake):
        yield fake


@pytest.fixture
def app(github: FakeGitHub, app_key: tuple[str, str]) -> CredentialProvider:
    options = {
        "app_id": 7, "installation_id": 42, "api_url": github.url,
        "allow": {"repositories": ["acme/*"], "permissions": {"contents": "write", "issues": "read"}},
    }  # fmt: skip
    return find("github-app").make("gh", options, {"private_key": app_key[0]})


@pytest.fixture
def tokens() -> Iterator[FakeTokenServer]:
    fake = FakeTokenServer()
    with serving(fake):
        yield fake


@pytest.fixture
def vault() -> Iterator[FakeVault]:
    fake = FakeVault()
    with serving(fake):
        yield fake


def exchange(fake: FakeTokenServer, *, revocation: bool = True, secrets: Mapping[str, str] | None = None, **more: Any) -> CredentialProvider:
    options = {
        "token_url": f"{fake.url}/token", "client_id": "fumehood",
        "allow": {"scopes": ["read", "write"], "audience": "https://api", "resource": ["https://api/a", "https://api/b"]}, **more,
    }  # fmt: skip
    if revocation:
        options["revocation_url"] = f"{fake.url}/revoke"
    return find("oauth-exchange").make("x", options, {"client_secret": "s&cret", "subject_token": "the-subject", **(secrets or {})})


def dynamic(fake: FakeVault, **more: Any) -> CredentialProvider:
    options = {"address": fake.url, "path": "database/creds/ro", "policies": ["ro"], **more}
    return find("vault").make("v", options, {"token": fake.token})


async def test_a_github_token_has_the_scopes_repositories_and_permissions_and_is_deleted(app: CredentialProvider, github: FakeGitHub) -> None:
    handle, got = await issued(app, {"repositories": ["acme/site"], "permissions": {"contents": "read"}})
    token = got.secret.parts["token"]
    assert github.tokens[token]["repositories"] == [{"full_name": "acme/site"}]
    assert github.tokens[token]["permissions"] == {"metadata": "read", "contents": "read"}
    assert got.sealed == {"token": token}
    assert token not in f"{handle}{got.facts}{got!r}"
    proof = await app.revoke(handle, got.sealed)
    assert (proof.gone, proof.answer) == (True, "204")
    assert github.tokens == {}
    assert (await app.revoke(handle, got.sealed)).answer == "401 (gone already)"


async def test_without_names_a_github_token_is_not_for_everything(app: CredentialProvider, github: FakeGitHub) -> None:
    assert (await fails(app)).reason is Reason.SCOPE_REFUSED
    assert (await fails(app, {"repositories": ["acme/*"]})).reason is Reason.SCOPE_REFUSED
    assert github.asked == []


def test_a_github_permission_allows_what_is_less(app: CredentialProvider) -> None:
    assert app.maximum["permissions"] == {"contents": ["read", "write"], "issues": ["read"]}


@pytest.mark.parametrize(
    "generous",
    [
        {"repository_selection": "all"},
        {"repositories": [{"full_name": "acme/site"}, {"full_name": "acme/other"}]},
        {"permissions": {"contents": "write"}},
        {"permissions": {"administration": "read"}},
    ],
)
async def test_a_github_token_that_may_more_than_was_asked_is_revoked_and_not_used(
    app: CredentialProvider, github: FakeGitHub, generous: dict[str, Any]
) -> None:
    github.generous = generous
    error = await fails(app, {"repositories": ["acme/site"], "permissions": {"contents": "read"}})
    assert "granted more" in str(error)
    assert github.tokens == {}


async def test_a_github_token_whose_answer_was_lost_is_said_to_live_on(app: CredentialProvider, github: FakeGitHub) -> None:
    github.lost = True
    await fails(app, {"repositories": ["acme/site"]})
    (token,) = github.tokens
    github.lost = False
    proof = await app.revoke({"api": github.url}, {})
    assert not proof.gone
    assert "was lost" in proof.answer
    assert token in github.tokens


async def test_token_exchange_is_narrowed_and_revoked(tokens: FakeTokenServer) -> None:
    provider = exchange(tokens)
    handle, got = await issued(provider, {"scopes": ["read"], "resource": "https://api/a"})
    token = got.secret.parts["token"]
    form = tokens.tokens[token]
    assert (form["scope"], form["resource"], form["audience"]) == (["read"], ["https://api/a"], ["https://api"])
    assert form["subject_token"] == ["the-subject"]
    proof = await provider.revoke(handle, got.sealed)
    assert proof.gone
    assert tokens.tokens == {}
    assert token not in f"{proof}{handle}{got!r}"


async def test_client_credentials_name_their_resource(tokens: FakeTokenServer) -> None:
    provider = exchange(tokens, grant="client-credentials", client_auth="post")
    _, got = await issued(provider)
    form = tokens.tokens[got.secret.parts["token"]]
    assert form["grant_type"] == ["client_credentials"]
    assert form["resource"] == ["https://api/a", "https://api/b"]
    assert form["scope"] == ["read write"]


async def test_a_token_with_a_wider_scope_than_was_asked_for_is_revoked_and_not_used(tokens: FakeTokenServer) -> None:
    tokens.extra_scope = "admin"
    assert "more scopes" in str(await fails(exchange(tokens), {"scopes": ["read"]}))
    assert tokens.tokens == {}


async def test_a_server_without_revocation_is_not_revocable_and_says_so(tokens: FakeTokenServer) -> None:
    provider = exchange(tokens, revocation=False)
    handle, got = await issued(provider)
    assert not provider.revocable
    assert got.sealed == {}
    assert not (await provider.revoke(handle, got.sealed)).gone


async def test_a_vault_secret_is_read_with_a_child_whose_accessor_is_known_before(vault: FakeVault) -> None:
    provider = dynamic(vault)
    asked = request()
    handle = await provider.handle(asked)
    assert vault.leases == {}  # nothing was read yet
    (accessor,) = vault.children
    child = vault.children[accessor]
    assert handle["accessor"] == accessor
    assert child["token"] not in str(handle)
    assert (child["policies"], child["ttl"], child["renewable"]) == (["ro"], "60s", False)
    got = await provider.issue(asked, handle)
    assert set(got.secret.parts) == {"user", "password"}
    assert len(vault.leases) == 1
    proof = await provider.revoke(handle, got.sealed)
    assert proof.gone
    assert vault.leases == vault.children == {}
    again = await provider.revoke(handle, got.sealed)
    assert again.gone
    assert "gone already" in again.answer


async def test_a_vault_secret_whose_answer_was_lost_ends_with_its_accessor(vault: FakeVault) -> None:
    provider = dynamic(vault)
    asked = request()
    handle = await provider.handle(asked)
    vault.lost = True
    with pytest.raises(FumehoodError):
        await provider.issue(asked, handle)
    assert len(vault.leases) == 1
    vault.lost = False
    assert (await provider.revoke(handle, {})).gone
    assert vault.leases == vault.children == {}


async def test_a_vault_secret_without_a_lease_is_not_said_to_be_gone(vault: FakeVault) -> None:
    provider = dynamic(vault, path="kv/data/app")
    handle, got = await issued(provider)
    assert got.secret.parts == {"user": "u", "password": "kept"}
    assert not (await provider.revoke(handle, got.sealed)).gone


@pytest.mark.parametrize("path", ["../sys/raw", "database/creds/../../sys", "a//b", "/a", "a?x=1", "a%2fb", ""])
async def test_a_vault_path_that_could_lead_elsewhere_is_refused(vault: FakeVault, path: str) -> None:
    assert (await fails(dynamic(vault), {"path": path})).reason is Reason.SCOPE_REFUSED
    assert vault.asked == []


async def test_a_lease_of_another_server_is_not_taken_for_gone(app: CredentialProvider, tokens: FakeTokenServer, vault: FakeVault) -> None:
    for provider, handle in (
        (app, {"api": "https://elsewhere"}), (exchange(tokens), {"server": "https://elsewhere"}), (dynamic(vault), {"server": "https://elsewhere"}),
    ):  # fmt: skip
        with pytest.raises(FumehoodError, match="another"):
            await provider.revoke(handle, {"token": "x"})


async def test_no_redirect_takes_a_secret_elsewhere(app: CredentialProvider, tokens: FakeTokenServer, vault: FakeVault, github: FakeGitHub) -> None:
    thief = FakeApi()
    with serving(thief):
        for fake, provider, scope in (
            (github, app, {"repositories": ["acme/site"]}), (tokens, exchange(tokens), {}), (vault, dynamic(vault), {}),
        ):  # fmt: skip
            fake.redirect = f"{thief.url}/x"
            assert (await fails(provider, scope)).reason is Reason.LEASE_FAILED
    assert thief.asked == []


async def test_a_proxy_of_the_environment_is_not_used(tokens: FakeTokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    thief = FakeApi()
    with serving(thief):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, thief.url)
        await issued(exchange(tokens))
    assert thief.asked == []


async def test_no_secret_is_in_an_error_a_log_or_a_repr(
    tokens: FakeTokenServer, vault: FakeVault, github: FakeGitHub, app: CredentialProvider, app_key: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    canaries = ["canary-7d1e-subject", "s&cret", "canary-token", vault.token]
    broken = [
        exchange(tokens, secrets={"subject_token": "canary-7d1e-subject"}),  # the fake quotes it in its answer
        exchange(tokens, secrets={"client_secret": "canary-token"}),
        find("vault").make("v", {"address": vault.url, "path": "a", "policies": ["x"]}, {"token": "canary-token"}),
    ]
    told = []
    for provider in broken:
        error = await fails(provider)
        told += ["".join(traceback.format_exception(error)), repr(provider)]
    handle, got = await issued(app, {"repositories": ["acme/site"]})
    canaries += [got.secret.parts["token"], app_key[0][40:80]]
    tokens_of_github, github.tokens = github.tokens, {}
    told += [repr(await app.revoke(handle, got.sealed)), repr(got), repr(app)]
    github.tokens = tokens_of_github
    for fake in (tokens, vault, github):
        fake.lost = True
    for provider, scope in ((exchange(tokens), {}), (dynamic(vault), {}), (app, {"repositories": ["acme/site"]})):
        told.append("".join(traceback.format_exception(await fails(provider, scope))))
    for canary in canaries:
        assert canary not in caplog.text
        for text in told:
            assert canary not in text


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("github-app", {"app_id": "7"}, "credentials.c.app_id"),
        ("github-app", {"app_id": 7, "installation_id": 1, "allow": {"repositories": [], "permissions": {}}}, "credentials.c.allow.repositories"),
        ("github-app", {"app_id": 7, "installation_id": 1, "allow": {"repositories": ["a/b"], "permissions": {"x": "root"}}}, "allow.permissions.x"),
        ("oauth-exchange", {"token_url": "http://example.org/token"}, "credentials.c.token_url"),
        ("oauth-exchange", {"token_url": "https://a:b@example.org/token"}, "credentials.c.token_url"),
        ("oauth-exchange", {"token_url": "https://example.org/", "extra": 1}, "credentials.c.extra"),
        ("oauth-exchange", {"token_url": "https://example.org/"}, "credentials.c.subject_token"),
        ("vault", {"address": "https://v", "path": "a", "policies": ["x"], "fields": {"nobody": "x"}}, "credentials.c.fields.nobody"),
        ("vault", {"address": "ftp://v", "policies": ["x"]}, "credentials.c."),
        ("static", {"form": "tokens"}, "credentials.c.form"),
        ("static", {"form": "password"}, "credentials.c."),
        ("aws-sts", {"role_arn": "x", "region": "eu-west-1", "allow": {"actions": ["s3:*"], "resources": ["*"]}}, "credentials.c.role_arn"),
        ("ssh-cert", {"allow": {"principals": []}}, "credentials.c.allow.principals"),
        ("postgres", {"host": "db", "admin_user": "x", "sslmode": "disable", "allow": {"roles": ["r"]}}, "credentials.c.sslmode"),
        ("postgres", {"host": "db", "admin_user": "x", "grants": ["GRANT {x}"], "allow": {"roles": ["r"]}}, "credentials.c.grants.0"),
    ],
)
def test_a_wrong_option_is_named(kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(FumehoodError) as error:
        find(kind).make("c", options, {"token": "x"} if kind == "vault" else {})
    assert error.value.reason is Reason.CONFIG_INVALID
    assert said in str(error.value)


def test_an_unknown_kind_is_told_with_the_known_ones() -> None:
    with pytest.raises(FumehoodError, match="known kinds: aws-sts, github-app"):
        find("kerberos")


@pytest.mark.parametrize(("kind", "module", "extra"), [("postgres", "psycopg", "postgres"), ("aws-sts", "botocore", "aws")])
def test_a_missing_package_names_its_extra(kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else real(name, *more))
    with pytest.raises(FumehoodError) as error:
        find(kind).make("c", {}, {})
    assert error.value.reason is Reason.EXTRA_MISSING
    assert f"fumehood[{extra}]" in str(error.value)
