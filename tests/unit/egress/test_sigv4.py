"""AWS Signature Version 4, by AWS's own examples and by botocore's signer."""

from __future__ import annotations

import datetime as dt
import hashlib
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood.egress.sigv4 import EMPTY, UNSIGNED, CannotSign, Scope, authorization, scope_of, sign
from fumehood.reach import Secret, SecretForm

SUITE = Secret(form=SecretForm.AWS, parts={"key_id": "AKIDEXAMPLE", "key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"})
S3 = Secret(form=SecretForm.AWS, parts={"key_id": "AKIAIOSFODNN7EXAMPLE", "key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"})
LEASED = Secret(form=SecretForm.AWS, parts={"key_id": "ASIALEASED", "key": "canary-key", "session": "canary-session"})
NOW = dt.datetime(2015, 8, 30, 12, 36, tzinfo=dt.UTC)
PLACEHOLDER = b"AWS4-HMAC-SHA256 Credential=placeholder/20150830/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=" + b"0" * 64


@pytest.mark.parametrize(
    ("method", "target", "extra", "payload", "signature"),
    [
        # The suite that AWS published for implementers (get-vanilla, query order, form), region us-east-1, service "service".
        (b"GET", b"/", [], EMPTY, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (b"GET", b"/?Param2=value2&Param1=value1", [], EMPTY, "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
        (
            b"POST", b"/", [(b"content-type", b"application/x-www-form-urlencoded")],
            hashlib.sha256(b"Param1=value1").hexdigest(),
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)  # fmt: skip
def test_the_published_test_suite(
    method: bytes, target: bytes, extra: list[tuple[bytes, bytes]], payload: str, signature: str
) -> None:
    covered = [(b"Host", b"example.amazonaws.com"), (b"X-Amz-Date", b"20150830T123600Z"), *extra]
    value = authorization(method, target, covered, payload, SUITE, Scope("us-east-1", "service"), "20150830T123600Z")
    assert value.endswith(f"Signature={signature}")
    assert "Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request" in value


@pytest.mark.parametrize(
    ("method", "target", "extra", "payload", "signature"),
    [
        # The examples of the S3 API reference, "Authenticating Requests: Using the Authorization Header".
        (b"GET", b"/test.txt", [(b"range", b"bytes=0-9")], EMPTY, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        (
            b"PUT", b"/test%24file.text",
            [(b"date", b"Fri, 24 May 2013 00:00:00 GMT"), (b"x-amz-storage-class", b"REDUCED_REDUNDANCY")],
            hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (b"GET", b"/?lifecycle", [], EMPTY, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (b"GET", b"/?max-keys=2&prefix=J", [], EMPTY, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)  # fmt: skip
def test_the_examples_of_the_s3_reference(
    method: bytes, target: bytes, extra: list[tuple[bytes, bytes]], payload: str, signature: str
) -> None:
    covered = [
        (b"host", b"examplebucket.s3.amazonaws.com"), (b"x-amz-date", b"20130524T000000Z"),
        (b"x-amz-content-sha256", payload.encode()), *extra,
    ]  # fmt: skip
    value = authorization(method, target, covered, payload, S3, Scope("us-east-1", "s3"), "20130524T000000Z")
    assert value.endswith(f"Signature={signature}")


_KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: not {".", ".."} & set(text.split("/")) and not text.startswith("/") and "//" not in text
)
_QUERIES = st.dictionaries(
    st.from_regex(r"\A[a-z][a-zA-Z0-9_-]{0,8}\Z").filter(lambda name: name.lower() != "signature"), st.text(max_size=8), max_size=4
)


@pytest.mark.parametrize("service", ["s3", "dynamodb"])
@settings(max_examples=50, deadline=None)
@given(key=_KEYS, query=_QUERIES, body=st.binary(max_size=20), meta=st.from_regex(r"\A[ -~]{0,20}\Z"))
def test_the_signature_is_botocores(service: str, key: str, query: dict[str, str], body: bytes, meta: str) -> None:
    target = "/" + quote(key, safe="/~")
    if query:
        target += "?" + "&".join(f"{name}={quote(value, safe='~')}" for name, value in query.items())
    host = f"{service}.eu-west-1.amazonaws.com"
    digest = hashlib.sha256(body).hexdigest()
    ours = dict(
        sign(b"PUT", host, target.encode(), [(b"X-Amz-Meta-A", meta.encode()), (b"Content-Type", b"text/plain")], LEASED, digest=digest, now=NOW)
    )
    time = ours[b"x-amz-date"].decode()
    theirs = AWSRequest(
        method="PUT", url=f"https://{host}{target}", data=body,
        headers={"Host": host, "X-Amz-Meta-A": meta, "Content-Type": "text/plain", "x-amz-content-sha256": digest, "x-amz-security-token": "canary-session", "X-Amz-Date": time},
    )  # fmt: skip
    signer = (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials("ASIALEASED", "canary-key", "canary-session"), service, "eu-west-1")
    theirs.context["timestamp"] = time
    theirs.context["signing"] = {}
    theirs.context["payload_signing_enabled"] = True
    expected = signer.signature(signer.string_to_sign(theirs, signer.canonical_request(theirs)), theirs)
    assert ours[b"authorization"].decode().endswith(f"Signature={expected}")


def test_what_the_client_sent_of_a_signature_is_gone() -> None:
    sent = [
        (b"Host", b"elsewhere"), (b"Authorization", PLACEHOLDER), (b"X-Amz-Date", b"19700101T000000Z"),
        (b"x-amz-security-token", b"placeholder"), (b"accept", b"*/*"), (b"x-amz-acl", b"private"),
    ]  # fmt: skip
    headers = sign(b"GET", "bucket.s3.amazonaws.com", b"/key", sent, LEASED, digest=None, now=NOW)
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert b"host" not in names
    found = dict(headers)
    assert found[b"x-amz-date"] == b"20150830T123600Z"
    assert found[b"x-amz-security-token"] == b"canary-session"
    assert found[b"x-amz-content-sha256"] == UNSIGNED.encode()
    assert b"/20150830/eu-west-1/s3/aws4_request" in found[b"authorization"]
    assert b"SignedHeaders=host;x-amz-acl;x-amz-content-sha256;x-amz-date;x-amz-security-token," in found[b"authorization"]
    assert b"placeholder" not in b"".join(value for _, value in headers)
    assert b"canary-key" not in b"".join(value for _, value in headers)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("s3.amazonaws.com", Scope("us-east-1", "s3")),
        ("bucket.s3.amazonaws.com", Scope("us-east-1", "s3")),
        ("my.bucket.s3.eu-central-1.amazonaws.com", Scope("eu-central-1", "s3")),
        ("bucket.s3.dualstack.eu-west-1.amazonaws.com", Scope("eu-west-1", "s3")),
        ("s3-eu-west-1.amazonaws.com", Scope("eu-west-1", "s3")),
        ("dynamodb.us-gov-west-1.amazonaws.com", Scope("us-gov-west-1", "dynamodb")),
        ("abc123.execute-api.eu-west-1.amazonaws.com", Scope("eu-west-1", "execute-api")),
        ("sts.amazonaws.com", Scope("us-east-1", "sts")),
        ("S3.CN-NORTH-1.amazonaws.com.cn", Scope("cn-north-1", "s3")),
    ],
)
def test_region_and_service_of_aws_hosts(host: str, expected: Scope) -> None:
    assert scope_of(host, []) == expected


@pytest.mark.parametrize("host", ["example.com", "s3.amazonaws.com.evil.example", "amazonaws.com", "evil.example/s3.amazonaws.com"])
def test_a_host_that_is_not_awss_has_none_but_the_clients(host: str) -> None:
    with pytest.raises(CannotSign):
        scope_of(host, [])
    assert scope_of(host, [(b"authorization", PLACEHOLDER)]) == Scope("eu-west-1", "s3")


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer x", b"AWS4-HMAC-SHA256 Credential=x/20150830/EU/s3/aws4_request", b"AWS AKIA:sig",
        b"AWS4-HMAC-SHA256 Credential=x/20150830/eu/s3\n/aws4_request", b"AWS4-ECDSA-P256-SHA256 Credential=x/20150830/s3/aws4_request",
    ],
)  # fmt: skip
def test_a_signature_that_is_none_names_nothing(value: bytes) -> None:
    with pytest.raises(CannotSign):
        scope_of("example.com", [(b"authorization", value)])


@pytest.mark.parametrize("claimed", [UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", EMPTY])
def test_the_clients_word_for_the_body_is_kept(claimed: str) -> None:
    headers = sign(b"PUT", "s3.amazonaws.com", b"/b/k", [(b"x-amz-content-sha256", claimed.encode())], LEASED, digest=None, now=NOW)
    assert dict(headers)[b"x-amz-content-sha256"] == claimed.encode()


@pytest.mark.parametrize(
    ("host", "target", "headers"),
    [
        ("s3.amazonaws.com", b"/?X-Amz-Signature=0&X-Amz-Credential=x", []),
        ("s3.amazonaws.com", b"/?x%2damz-security-token=x", []),
        ("s3.amazonaws.com", b"/?a=1&AWSAccessKeyId=x", []),
        ("s3.amazonaws.com", b"/?prefix=a+b", []),
        ("s3.amazonaws.com", b"/?prefix=a;b", []),
        ("s3.amazonaws.com", b"/k", [(b"x-amz-content-sha256", b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD")]),
        ("s3.amazonaws.com", b"/k", [(b"x-amz-content-sha256", b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER")]),
        ("s3.amazonaws.com", b"/k", [(b"x-amz-content-sha256", EMPTY.encode()), (b"X-Amz-Content-Sha256", UNSIGNED.encode())]),
        ("dynamodb.eu-west-1.amazonaws.com", b"/", []),
        ("example.com", b"/", []),
    ],
)
def test_what_cannot_be_signed_is_refused(host: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(CannotSign) as refused:
        sign(b"GET", host, target, headers, LEASED, digest=None, now=NOW)
    assert "canary" not in str(refused.value)


def test_a_secret_of_another_form_signs_nothing() -> None:
    with pytest.raises(CannotSign):
        sign(b"GET", "s3.amazonaws.com", b"/", [], Secret(form=SecretForm.TOKEN, parts={"token": "x"}), digest=None, now=NOW)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_target_or_header_of_a_client_raises_anything_else(target: bytes, value: bytes) -> None:
    try:
        sign(b"GET", "s3.amazonaws.com", b"/" + target, [(b"authorization", value), (b"x-amz-a", value)], LEASED, digest=None, now=NOW)
    except CannotSign:
        pass
