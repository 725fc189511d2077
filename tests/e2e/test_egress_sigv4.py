"""Requests signed by us, judged by moto, which computes each signature itself."""

from __future__ import annotations

import datetime as dt
import hashlib
import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from certificates import Authority
from fumehood.egress.sigv4 import sign
from fumehood.reach import Secret, SecretForm
from upstreams import LOOPBACK, CloudServer, cloud_server

NAME = "s3.us-east-1.amazonaws.com"


class Cloud:
    """A server, and a role's short-lived key for it."""

    def __init__(self, server: CloudServer, authority: Authority, folder: Path) -> None:
        self.server = server
        self.context = ssl.create_default_context(cadata=authority.pem)
        self.context.check_hostname = False  # the name is AWS's, the server is here
        sts = boto3.client(
            "sts", endpoint_url=f"https://{LOOPBACK}:{server.port}", verify=str(folder / "cloud-roots.pem"), region_name="us-east-1",
            aws_access_key_id=server.key_id, aws_secret_access_key=server.key,
        )  # fmt: skip
        found = sts.assume_role(RoleArn=server.role_arn, RoleSessionName="call")["Credentials"]
        parts = {"key_id": found["AccessKeyId"], "key": found["SecretAccessKey"], "session": found["SessionToken"]}
        self.secret = Secret(form=SecretForm.AWS, parts=parts)

    def ask(
        self, method: str, target: str, body: bytes = b"", *, headers: list[tuple[bytes, bytes]] | None = None,
        secret: Secret | None = None, sent: str | None = None,
    ) -> tuple[int, bytes]:  # fmt: skip
        """Sign a request as the gate does and send it; `sent` is the target that is sent instead of the one that is signed."""
        digest = hashlib.sha256(body).hexdigest()
        signed = sign(
            method.encode(), NAME, target.encode(), headers or [], secret or self.secret, digest=digest, now=dt.datetime.now(dt.UTC)
        )
        connection = http.client.HTTPSConnection(LOOPBACK, self.server.port, context=self.context, timeout=10)
        try:
            connection.putrequest(method, sent or target, skip_host=True, skip_accept_encoding=True)
            for name, value in [(b"Host", NAME.encode()), *signed, (b"Content-Length", str(len(body)).encode())]:
                connection.putheader(name.decode().title(), value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder, authority = tmp_path_factory.mktemp("cloud"), Authority()
    with cloud_server(authority, NAME, folder=folder) as server:
        made = Cloud(server, authority, folder)
        assert made.ask("PUT", "/bucket")[0] == 200
        yield made


def test_objects_are_put_listed_and_read_with_a_roles_key(cloud: Cloud) -> None:
    assert cloud.ask("PUT", "/bucket/a%20folder/file", b"content", headers=[(b"x-amz-meta-by", b"a  tool ")])[0] == 200
    status, listed = cloud.ask("GET", "/bucket?list-type=2&prefix=a%20f")
    assert status == 200
    assert b"<Key>a folder/file</Key>" in listed
    assert cloud.ask("GET", "/bucket/a%20folder/file") == (200, b"content")


def test_the_clients_own_signature_and_session_are_worth_nothing(cloud: Cloud) -> None:
    sent = [
        (b"Authorization", b"AWS4-HMAC-SHA256 Credential=placeholder/20150830/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00"),
        (b"x-amz-security-token", b"placeholder"), (b"x-amz-date", b"20150830T000000Z"),
    ]  # fmt: skip
    assert cloud.ask("GET", "/bucket?list-type=2", headers=sent)[0] == 200


@pytest.mark.parametrize("case", ["key", "session", "target"])
def test_what_is_not_what_was_signed_is_refused_by_the_server(cloud: Cloud, case: str) -> None:
    parts = dict(cloud.secret.parts)
    if case == "key":
        parts["key"] = "x" * 40
    if case == "session":
        parts["session"] = "wrong"
    changed = "/bucket?list-type=2&prefix=other" if case == "target" else None
    status, answer = cloud.ask("GET", "/bucket?list-type=2", secret=Secret(form=SecretForm.AWS, parts=parts), sent=changed)
    assert status in {400, 403}
    assert b"SignatureDoesNotMatch" in answer or b"Invalid" in answer
