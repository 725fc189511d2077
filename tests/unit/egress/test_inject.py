"""Where a credential is written, and what of the client's is not."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from fumehood.egress import inject
from fumehood.egress.http_judge import Request
from fumehood.egress.inject import CannotInject, Placeholders
from fumehood.reach import CredentialUse, Scheme, Secret, SecretForm

USE = CredentialUse(name="github", source="s", header="Authorization", variable="GITHUB_TOKEN")
QUERY = CredentialUse(name="maps", source="s", query="key", scheme=Scheme.RAW, variable="MAPS_KEY")
SECRET = Secret(form=SecretForm.TOKEN, parts={"token": "tok/en+1 %&"})


def request(query: bytes | None = None, *headers: tuple[bytes, bytes]) -> Request:
    return Request(method=b"GET", path=b"/a", query=query, headers=list(headers), asked="GET /a")


def test_a_header_of_the_clients_goes_and_ours_comes_in_its_place() -> None:
    asked = request(None, (b"authorization", b"Bearer mine"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip"), (b"range", b"bytes=0-1"), (b"te", b"trailers"))
    target, headers = inject.written(asked, USE, SECRET)
    assert target == b"/a"
    assert headers == [(b"accept", b"*/*"), (b"accept-encoding", b"identity"), (b"authorization", b"Bearer tok/en+1 %&")]


@pytest.mark.parametrize("alias", [b"x_api_key", b"x.api.key"])
def test_an_alias_of_the_header_goes_too(alias: bytes) -> None:
    _, headers = inject.written(request(None, (alias, b"mine")), replace(USE, header="X-Api-Key", scheme=Scheme.RAW), SECRET)
    assert [name for name, _ in headers] == [b"accept-encoding", b"x-api-key"]


@pytest.mark.parametrize("query", [b"a=b&key=mine&c=d", b"a=b&c=d&k%65y=mine&key=", b"key&a=b&c=d&key=1&key=2"])
def test_a_parameter_of_the_clients_goes_in_any_spelling(query: bytes) -> None:
    target, _ = inject.written(request(query), QUERY, SECRET)
    assert target == b"/a?a=b&c=d&key=tok%2Fen%2B1%20%25%26"


def test_a_query_that_servers_split_differently_gets_no_credential() -> None:
    with pytest.raises(CannotInject):
        inject.written(request(b"a=b;key=mine"), QUERY, SECRET)


@pytest.mark.parametrize(("username", "parts", "expected"), [("x", {"user": "u", "password": "p"}, b"x:p"), (None, {"user": "u", "password": "p"}, b"u:p")])
def test_basic_has_the_profiles_user_or_the_credentials_own(username: str | None, parts: dict[str, str], expected: bytes) -> None:
    use = replace(USE, scheme=Scheme.BASIC, username=username)
    _, headers = inject.written(request(), use, Secret(form=SecretForm.PASSWORD, parts=parts))
    assert headers[-1] == (b"authorization", b"Basic " + base64.b64encode(expected))


@pytest.mark.parametrize("token", ["a\r\nX-Evil: b", "a\0b", "caf\xe9", " a", ""])
def test_a_secret_that_would_end_its_header_is_not_written(token: str) -> None:
    with pytest.raises(CannotInject) as caught:
        inject.written(request(), USE, Secret(form=SecretForm.TOKEN, parts={"token": token}))
    assert token == "" or token not in str(caught.value)


def test_a_placeholder_is_as_long_as_its_secret_and_another_in_every_box() -> None:
    first, second = (Placeholders([USE], {"github": 40}) for _ in range(2))
    assert len(first.environment["GITHUB_TOKEN"]) == 40
    assert first.environment != second.environment


def refused(placeholders: Placeholders, asked: Request, use: CredentialUse | None) -> str | None:
    found = placeholders.misplaced(asked, use)
    return None if found is None else found.cause.code


def test_a_placeholder_is_right_in_its_own_place_only() -> None:
    held = Placeholders([USE, QUERY])
    token, other = held.token("github").encode(), held.token("maps").encode()
    foreign = Placeholders([USE]).token("github").encode()
    basic = b"Basic " + base64.b64encode(b"x-access-token:" + token)
    assert refused(held, request(None, (b"authorization", b"Bearer " + token)), USE) is None
    assert refused(held, request(None, (b"authorization", basic)), USE) is None
    assert refused(held, request(b"key=" + other), QUERY) is None
    for asked in (
        request(b"q=" + token), request(None, (b"x-other", token)), request(None, (b"authorization", b"Bearer " + other)),
        request(None, (token, b"a")), request(None, (b"cookie", b"a=" + b"%66" + token[1:])), replace(request(), path=b"/" + token),
        request(None, (b"x-auth", basic)),
    ):  # fmt: skip
        assert refused(held, asked, USE) == "placeholder_misplaced"
    assert refused(held, request(None, (b"authorization", b"Bearer " + foreign)), USE) == "placeholder_foreign"
    assert refused(held, request(None, (b"authorization", b"Bearer " + token)), None) == "placeholder_misplaced"
    assert refused(held, request(b"key=" + token), QUERY) is not None


def test_signed_chunks_cannot_be_signed_again() -> None:
    scope = (b"authorization", b"AWS4-HMAC-SHA256 Credential=K/20261123/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=0")
    with pytest.raises(CannotInject):
        inject.needs_digest(request(None, scope, (b"x-amz-content-sha256", b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD")), b"b.s3.amazonaws.com")
    assert not inject.needs_digest(request(None, scope), b"b.s3.amazonaws.com")
    assert inject.needs_digest(request(), b"sts.eu-west-1.amazonaws.com")


def test_an_sdk_gets_keys_to_sign_with_and_they_are_placeholders() -> None:
    uses = [replace(USE, name=name, scheme=Scheme.SIGV4, header=None, variable=None) for name in ("one", "two")]
    held = Placeholders(uses)
    key = held.environment["AWS_ACCESS_KEY_ID"].encode()
    asked = request(None, (b"authorization", b"AWS4-HMAC-SHA256 Credential=" + key + b"/20261123/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=0"))
    assert [refused(held, asked, use) for use in uses] == [None, None]
    assert refused(held, asked, USE) == "placeholder_misplaced"
    secret = Secret(form=SecretForm.AWS, parts={"key_id": "AKIA", "key": "k" * 40, "session": "s"})
    headers = dict(inject.signed(asked, secret, b"b.s3.amazonaws.com", None))
    assert b"Credential=AKIA/" in headers[b"authorization"]
    assert headers[b"x-amz-security-token"] == b"s"
