"""The `gateway.http.oauth` section: what it may say, and what it is told where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fumehood import config
from fumehood.faults import FumehoodError
from fumehood.oauth_config import Binding, IssuerConfig, KeysConfig, OAuthConfig, SubjectConfig

WHOLE = """
gateway:
  http:
    listen: 127.0.0.1:8443
    tls: {certificate: /c, key: /k}
    allowed_hosts: [mcp.example.org]
    oauth:
      resource: https://mcp.example.org/mcp
      binding: either
      client_authorities: /etc/clients.pem
      scopes: [mcp, more]
      issuers:
        - issuer: https://login.example.org/realms/x
          jwks: {url: "https://login.example.org/jwks", addresses: [10.1.0.0/16]}
          algorithms: [ES256, EdDSA]
          lifetime: 10m
          senders:
            alice: {sub: "24"}
            ci: {sub: ci, client_id: runner}
        - issuer: https://login.example.net
          jwks: {file: /etc/other.jwks}
          algorithms: [RS256]
          typ: jwt
          senders: {alice: {sub: a}}
"""


def oauth(text: str) -> OAuthConfig:
    gateway = config.parse(text, "f").gateway
    assert gateway is not None
    assert gateway.http is not None
    assert gateway.http.oauth is not None
    return gateway.http.oauth


def test_every_field_arrives() -> None:
    assert oauth(WHOLE) == OAuthConfig(
        resource="https://mcp.example.org/mcp",
        binding=Binding.EITHER,
        client_authorities="/etc/clients.pem",
        scopes=("mcp", "more"),
        issuers=(
            IssuerConfig(
                issuer="https://login.example.org/realms/x",
                keys=KeysConfig(url="https://login.example.org/jwks", addresses=("10.1.0.0/16",)),
                algorithms=("ES256", "EdDSA"),
                lifetime_s=600.0,
                senders=(
                    SubjectConfig(name="alice", claims=(("sub", "24"),)),
                    SubjectConfig(name="ci", claims=(("client_id", "runner"), ("sub", "ci"))),
                ),
            ),
            IssuerConfig(
                issuer="https://login.example.net",
                keys=KeysConfig(file="/etc/other.jwks"),
                algorithms=("RS256",),
                typ="jwt",
                senders=(SubjectConfig(name="alice", claims=(("sub", "a"),)),),
            ),
        ),
    )
    assert oauth(WHOLE).files == ("/etc/clients.pem", "/etc/other.jwks")


def test_no_two_issuers_nor_anybody_else_have_a_senders_name() -> None:
    names = [issuer.sender_name(each.name) for issuer in oauth(WHOLE).issuers for each in issuer.senders]
    assert names == [
        "oauth:alice@login.example.org/realms/x", "oauth:ci@login.example.org/realms/x", "oauth:alice@login.example.net"
    ]  # fmt: skip
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("binding: either\n", "binding: dpopp\n", "oauth.binding: expected dpop, mtls, either or none"),
        ("      binding: either\n", "", "oauth.binding: expected this field, which has no default"),
        ("/mcp\n", "/mcp?x\n", "oauth.resource: expected the URL that clients call"),
        ("https://mcp.example.org/mcp", "http://mcp.example.org/mcp", "oauth.resource: expected the URL that clients call"),
        ("https://mcp.example.org/mcp", "https://u@mcp.example.org/mcp", "oauth.resource: expected the URL that clients call"),
        ("https://mcp.example.org/mcp", "https://mcp.example.org/other", "oauth.resource: expected the URL that clients call"),
        ("https://mcp.example.org/mcp", "https://mcp.example.net/mcp", "expected `allowed_hosts` to have mcp.example.net"),
        ("    allowed_hosts: [mcp.example.org]\n", "", "expected `allowed_hosts` to have mcp.example.org"),
        ("    tls: {certificate: /c, key: /k}\n", "", "oauth.binding: expected `gateway.http.tls`"),
        ("      client_authorities: /etc/clients.pem\n", "", "oauth.binding: expected `client_authorities` beside it"),
        ("binding: either", "binding: dpop", "oauth.client_authorities: expected nothing"),
        ("binding: either", "binding: none", "oauth.client_authorities: expected nothing"),
        ("[mcp, more]", "[mcp more]", "oauth.scopes[0]: expected one scope"),
        ("ES256, ", "HS256, ", "oauth.issuers[0].algorithms[0]: expected ES256,"),
        ("ES256, ", "none, ", "oauth.issuers[0].algorithms[0]: expected ES256,"),
        ("[ES256, EdDSA]", "[]", "oauth.issuers[0].algorithms: expected at least one"),
        ("{alice: {sub: a}}", "{}", "oauth.issuers[1].senders: expected at least one"),
        ("sub: ci, ", "", "oauth.issuers[0].senders.ci: expected `sub`"),
        ("sub: ci, client_id: runner", 'sub: "24"', "oauth.issuers[0].senders.ci: expected other claims than those of alice"),
        ("client_id: runner", "aud: x", "oauth.issuers[0].senders.ci.aud: expected another claim"),
        ('sub: "24"', "sub: 24", 'oauth.issuers[0].senders.alice.sub: expected a string; write "24" in quotes'),
        ('sub: "24"', 'sub: ""', "oauth.issuers[0].senders.alice.sub: expected at least 1"),
        ("alice: {sub: a}", "Alice: {sub: a}", "expected a sender's name"),
        ("file: /etc/other.jwks", "file: jwks", "oauth.issuers[1].jwks.file: expected an absolute path"),
        ("file: /etc/other.jwks", "", "oauth.issuers[1].jwks: expected exactly one of `file` and `url`"),
        ("file: /etc/other.jwks", "file: /j, addresses: [10.0.0.0/8]", "oauth.issuers[1].jwks.addresses: expected `url` beside it"),
        ("https://login.example.org/jwks", "https://10.0.0.1/jwks", "oauth.issuers[0].jwks.url: expected https://name"),
        ("https://login.example.org/jwks", "http://login.example.org/jwks", "oauth.issuers[0].jwks.url: expected https://name"),
        ("https://login.example.net", "https://login.example.org/realms/x", "oauth.issuers[1].issuer: expected each issuer once"),
        ("https://login.example.net", "login.example.net", "oauth.issuers[1].issuer: expected an issuer"),
        ("lifetime: 10m", "lifetime: 600", "oauth.issuers[0].lifetime: expected"),
        ("typ: jwt", "typ: any", "oauth.issuers[1].typ: expected at+jwt or jwt"),
        ("scopes:", "scope:", "oauth.scope: expected a known field; nearest valid name: scopes"),
    ],
)
def test_mistakes_are_told_with_their_place(before: str, after: str, said: str) -> None:
    assert before in WHOLE
    with pytest.raises(FumehoodError) as caught:
        config.parse(WHOLE.replace(before, after), "f")
    assert said in caught.value.detail
    assert re.match(r"f:\d+:\d+: gateway\.http\.oauth", caught.value.detail)


def test_without_a_list_of_names_the_address_itself_is_one() -> None:
    text = WHOLE.replace("    allowed_hosts: [mcp.example.org]\n", "").replace("mcp.example.org/mcp", "localhost:8443")
    assert oauth(text).url == "https://localhost:8443/mcp"


@pytest.mark.parametrize(
    ("resource", "url", "described"),
    [
        ("https://a.example/mcp", "https://a.example/mcp", "https://a.example/.well-known/oauth-protected-resource/mcp"),
        ("https://a.example/", "https://a.example/mcp", "https://a.example/.well-known/oauth-protected-resource"),
        ("https://a.example:8443", "https://a.example:8443/mcp", "https://a.example:8443/.well-known/oauth-protected-resource"),
        ("https://[::1]:1/mcp", "https://[::1]:1/mcp", "https://[::1]:1/.well-known/oauth-protected-resource/mcp"),
    ],
)
def test_urls_follow_from_the_resource(resource: str, url: str, described: str) -> None:
    made = OAuthConfig(resource=resource, issuers=(), binding=Binding.DPOP)
    assert (made.url, made.description_url) == (url, described)


def test_the_example_of_the_guide_loads() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "oauth.md").read_text()
    examples = re.findall(r"```yaml\n(# config: .*?)```", guide, re.DOTALL)
    assert examples
    for example in examples:
        assert oauth(example).issuers
