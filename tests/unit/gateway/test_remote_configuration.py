"""`upstream` in the configuration of a gateway: what it may say, and the profile that a remote server gets of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from remote_world import profile

import fakes
from fumehood import config
from fumehood.admission import verify
from fumehood.faults import FumehoodError
from fumehood.gateway.reading import remote_profile
from fumehood.gateway.served import Served, ServedSet, parts_of, set_of
from fumehood.gateway_config import UpstreamConfig
from fumehood.model import Deny
from fumehood.reach import CredentialUse, EgressKind, EgressRule
from fumehood.reasons import Reason

URL = "https://far.example:8443/mcp?toolset=a"


def parsed(upstream: str, more: str = "") -> Any:
    found = config.parse(f"gateway: {{servers: {{far: {{profile: far, upstream: {upstream}{more}}}}}}}", "f").gateway
    assert found is not None
    return found.servers[0].upstream


def test_every_field_arrives() -> None:
    told = f"{{url: '{URL}', credential: issuer, resource: 'https://far.example/mcp', addresses: [10.0.0.0/8]}}"
    assert parsed(told) == UpstreamConfig(
        url=URL, credential="issuer", resource="https://far.example/mcp", addresses=("10.0.0.0/8",)
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://far.example/mcp", "https://10.0.0.1/mcp", "https://[::1]/mcp", "https://0x7f000001/", "https://127.1/", "https://user@far.example/",
        "https://far.example/mcp#a", "https://far.example:0/", "https://far.example:99999/", "https://FAR.example/", "https://far..example/",
        "https://far.example\\@evil.example/", "https://far.example /mcp", "https://fär.example/", "https:///mcp", "far.example", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_an_address_that_is_no_https_name_is_refused(url: str) -> None:
    with pytest.raises(FumehoodError) as caught:
        parsed(f"{{url: '{url}'}}")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert "upstream.url" in caught.value.detail


@pytest.mark.parametrize(
    ("upstream", "more"),
    [
        (f"{{url: '{URL}'}}", ", workspace: /srv/a"),
        (f"{{url: '{URL}'}}", ", command: [a]"),
        (f"{{url: '{URL}'}}", ", engine: oci"),
        (f"{{url: '{URL}', resource: 'https://far.example/'}}", ""),
        (f"{{url: '{URL}', credential: issuer, resource: 'https://far.example/#a'}}", ""),
        (f"{{url: '{URL}', addresses: [10.0.0.1/8]}}", ""),
        (f"{{url: '{URL}', token: abc}}", ""),
        ("{}", ""),
    ],
)
def test_what_cannot_be_meant_is_refused(upstream: str, more: str) -> None:
    with pytest.raises(FumehoodError):
        parsed(upstream, more)


def test_the_profile_of_a_remote_server_has_one_place_and_one_credential() -> None:
    upstream = UpstreamConfig(url=URL, credential="issuer", resource="https://far.example/mcp", addresses=("10.0.0.0/8",))
    base = profile(tools=frozenset({"a"}))
    made = remote_profile(base, upstream)
    assert made.network.rules == (
        EgressRule(kind=EgressKind.HTTP, name="far.example", ports=(8443,), addresses=("10.0.0.0/8",), credential="upstream"),
    )
    assert made.credentials == (
        CredentialUse(name="upstream", source="issuer", header="authorization", scope={"resource": "https://far.example/mcp"}),
    )
    assert (made.upstream, made.tools) == (URL, frozenset({"a"}))
    others = [replace(upstream, url="https://other.example/"), replace(upstream, credential=None), replace(upstream, addresses=())]
    digests = {remote_profile(base, each).digest for each in (upstream, *others)}
    assert len(digests) == 4, "records tell where a call went"


def test_a_profile_with_an_image_serves_no_remote_server() -> None:
    with pytest.raises(FumehoodError, match="remote: true"):
        remote_profile(replace(profile(), image="python"), UpstreamConfig(url=URL))


def test_a_profile_for_remote_servers_runs_nothing_here() -> None:
    call = replace(fakes.call(), profile=profile())
    denied = verify.check(call, fakes.NoImages())
    assert isinstance(denied, Deny)
    assert denied.rule == "profile.remote"


def test_a_remote_server_arrives_at_the_worker_as_it_was_sent() -> None:
    made = remote_profile(profile(), UpstreamConfig(url=URL, credential="issuer", resource="https://far.example/mcp"))
    served = ServedSet(servers=(Served(name="far", profile=made, argv=()),))
    crossed = [part._replace(fields=json.loads(json.dumps(part.fields))) for part in parts_of(served)]
    assert set_of(crossed) == served
