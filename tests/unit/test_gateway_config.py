"""The `gateway:` section of fumehood.yaml: what it may say, and which addresses are never listened on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fumehood import config, gateway_config
from fumehood.faults import FumehoodError
from fumehood.gateway_config import (
    EnvelopeConfig,
    EnvelopeMode,
    GatewayConfig,
    HttpConfig,
    Listen,
    PinMode,
    ServerConfig,
    TlsConfig,
)
from fumehood.gateway_document import SERVER_NAME
from fumehood.reasons import Reason


def test_every_field_arrives_in_the_order_of_the_file() -> None:
    text = """
gateway:
  servers:
    time: {profile: mcp-server-time}
    git: {profile: /etc/p/git.yaml, workspace: /srv/r, command: [git-server, --verbose], engine: oci}
  http:
    listen: 0.0.0.0:8443
    tokens_file: /etc/fumehood/tokens
    tls: {certificate: /etc/fumehood/c.pem, key: /etc/fumehood/k.pem}
    allowed_hosts: [Tools.Example.org, "::1"]
    allowed_origins: ["https://app.example.org:8443"]
    envelope: {mode: required, audience: tools, clock_skew: 2s}
  unix: {path: /run/fumehood.sock, envelope: {mode: off}, users: {alice: 1001, ci: 998}}
"""
    assert config.parse(text, "f").gateway == GatewayConfig(
        servers=(
            ServerConfig(name="time", profile="mcp-server-time"),
            ServerConfig(
                name="git",
                profile="/etc/p/git.yaml",
                workspace="/srv/r",
                command=("git-server", "--verbose"),
                engine="oci",
            ),
        ),
        http=HttpConfig(
            listen=Listen("0.0.0.0", 8443),  # noqa: S104 - configured with TLS
            tokens_file="/etc/fumehood/tokens",
            tls=TlsConfig(certificate="/etc/fumehood/c.pem", key="/etc/fumehood/k.pem"),
            allowed_hosts=("tools.example.org", "[::1]"),
            allowed_origins=("https://app.example.org:8443",),
            envelope=EnvelopeConfig(mode=EnvelopeMode.REQUIRED, audience="tools", skew_s=2.0),
        ),
        unix="/run/fumehood.sock",
        unix_envelope=EnvelopeConfig(mode=EnvelopeMode.OFF),
        unix_users=(("alice", 1001), ("ci", 998)),
    )
    assert config.parse("boxes: 1", "f").gateway is None
    assert config.parse("gateway:", "f").gateway is None
    assert config.parse("gateway: {}", "f").gateway == GatewayConfig()


def test_the_mode_of_pins_is_the_gateways_but_for_servers_that_have_their_own() -> None:
    text = "gateway: {pins: review, servers: {a: {profile: p}, b: {profile: p, pins: trust-first}, c: {profile: p, pins: review}}}"
    found = config.parse(text, "f").gateway
    assert found is not None
    assert (found.pins, found.pinned_otherwise) == (PinMode.REVIEW, ("b",))
    assert GatewayConfig().pins is PinMode.TRUST_FIRST


def test_the_example_of_the_guide_to_pins_loads() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "pins.md").read_text()
    (example,) = re.findall(r"```yaml\n(# config: .*?)```", guide, re.DOTALL)
    found = config.parse(example, "f").gateway
    assert found is not None
    assert found.pinned_otherwise == ("time",)


def test_the_example_of_the_guide_loads() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    example, remote = re.findall(r"```yaml\n(# config: .*?)```", guide, re.DOTALL)
    found = config.parse(remote, "f").gateway
    assert found is not None
    assert [server.upstream is not None for server in found.servers] == [True, True]
    found = config.parse(example, "f").gateway
    assert found is not None
    assert [server.name for server in found.servers] == ["git", "time", "notes"]
    assert found.http is not None
    assert found.http.tls is not None


HTTP = "gateway: {http: {tokens_file: /t, %s}}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gateway: {serves: {}}", "f:1:11: gateway.serves: expected a known field; nearest valid name: servers"),
        (
            "gateway: {servers: {a: {profile: p, workspce: /w}}}",
            "f:1:37: gateway.servers.a.workspce: expected a known field; nearest valid name: workspace",
        ),
        ("gateway: {servers: {a: {}}}", "f:1:24: gateway.servers.a.profile: expected this field, which has no default"),
        ("gateway: {servers: {a__b: {profile: p}}}", "f:1:21: gateway.servers.a__b: expected a server's name"),
        ("gateway: {servers: {A: {profile: p}}}", "f:1:21: gateway.servers.A: expected a server's name"),
        ("gateway: {servers: {-a: {profile: p}}}", "f:1:21: gateway.servers.-a: expected a server's name"),
        ("gateway: {servers: {a: {profile: p}, a: {profile: q}}}", "expected each key once; `a` is already on line 1"),
        ("gateway: {servers: {a: {profile: ./p}}}", "f:1:34: gateway.servers.a.profile: expected a profile's name or"),
        ("gateway: {servers: {a: {profile: ../p.yaml}}}", "expected a profile's name or absolute path"),
        ("gateway: {servers: {a: {profile: p, workspace: w}}}", "expected an absolute path without `..`"),
        ("gateway: {servers: {a: {profile: p, engine: dokcer}}}", "nearest valid name: docker"),
        ("gateway: {http: {listen: 127.0.0.1:80}}", "f:1:17: gateway.http: expected `tokens_file` or `oauth`"),
        (HTTP % "listen: 80", "f:1:43: gateway.http.listen: expected a string"),
        (HTTP % "listen: 127.0.0.1", "expected HOST:PORT"),
        (HTTP % "listen: 127.0.0.1:65536", "expected HOST:PORT"),
        (HTTP % "listen: example.org:80", "expected a literal address or localhost"),
        (HTTP % "listen: '::1:80'", "expected a literal address or localhost"),
        (HTTP % "listen: '[fe80::1%eth0]:80'", "expected a literal address or localhost"),
        (HTTP % "allowed_hosts: ['a:80']", "gateway.http.allowed_hosts[0]: expected a host's name or address"),
        (HTTP % "allowed_origins: ['https://a/']", "gateway.http.allowed_origins[0]: expected scheme://host[:port]"),
        (HTTP % "allowed_origins: ['*']", "gateway.http.allowed_origins[0]: expected scheme://host[:port]"),
        (HTTP % "allowed_origins: ['null']", "gateway.http.allowed_origins[0]: expected scheme://host[:port]"),
        (HTTP % "tls: {certificate: /c}", "gateway.http.tls.key: expected this field"),
        (HTTP % "envelope: {mode: always}", "gateway.http.envelope.mode: expected"),
        (HTTP % "envelope: required", "gateway.http.envelope: expected"),
        (HTTP % "envelope: {audience: a b}", "gateway.http.envelope.audience: expected a name or URL without spaces"),
        (HTTP % "envelope: {clock_skew: 60s}", "gateway.http.envelope.clock_skew: expected between 0ms and 30s"),
        ("gateway: {unix: {path: /s, users: {a: x}}}", "f:1:39: gateway.unix.users.a: expected a whole number"),
        ("gateway: {unix: {path: /s, users: {a: -1}}}", "gateway.unix.users.a: expected"),
        ("gateway: {unix: {path: /s, users: {a: 4294967295}}}", "gateway.unix.users.a: expected"),
        ("gateway: {unix: {path: /s, users: {A: 1}}}", "expected a name of a-z"),
        ("gateway: {unix: {path: /s, users: {a: 1, b: 1}}}", "gateway.unix.users.b: expected each uid once, found 1 again"),
        ("gateway: {pins: reviw}", "f:1:17: gateway.pins: expected"),
        ("gateway: {servers: {a: {profile: p, pins: off}}}", "gateway.servers.a.pins: expected"),
        ("gateway: {unix: {path: s}}", "f:1:24: gateway.unix.path: expected an absolute path"),
        ("gateway: {unix: {path: /%s}}" % ("a" * 107), "gateway.unix.path: expected a path of at most 107 bytes"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, said: str) -> None:
    with pytest.raises(FumehoodError) as caught:
        config.parse(text, "f")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert said in caught.value.detail


TLS = "tls: {certificate: /c, key: /k}"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ("listen: 127.0.0.1:80", False),
        ("listen: 127.9.9.9:80", False),
        ("listen: '[::1]:80'", False),
        ("listen: localhost:80", False),
        ("listen: 10.0.0.1:80", True),
        ("listen: 0.0.0.0:80", True),
        ("listen: '[::]:80'", True),
        ("listen: '[::ffff:10.0.0.1]:80'", True),
        (f"listen: 10.0.0.1:80, {TLS}", False),
        (f"listen: 0.0.0.0:80, {TLS}", True),
        (f"listen: '[::]:80', {TLS}", True),
        (f"listen: 0.0.0.0:80, {TLS}, allowed_hosts: [a.example]", False),
        ("listen: 0.0.0.0:80, allowed_hosts: [a.example]", True),
    ],
)
def test_beyond_this_host_nothing_is_served_in_clear_or_under_unknown_names(fields: str, *, refused: bool) -> None:
    text = HTTP % fields
    if not refused:
        assert config.parse(text, "f").gateway is not None
        return
    with pytest.raises(FumehoodError) as caught:
        config.parse(text, "f")
    assert "f:1:43: gateway.http.listen: expected " in caught.value.detail


def test_an_address_is_written_as_it_is_read() -> None:
    for text in ("127.0.0.1:0", "[::1]:8080", "10.1.2.3:65535"):
        assert str(gateway_config.listen_of(text)) == text
    assert gateway_config.listen_of("localhost:1") == Listen("127.0.0.1", 1)


def test_by_default_only_the_own_address_is_a_name_of_the_gateway() -> None:
    assert gateway_config.default_hosts(Listen("127.0.0.1", 80)) == ("localhost", "127.0.0.1", "[::1]")
    assert gateway_config.default_hosts(Listen("10.0.0.1", 80)) == ("10.0.0.1",)
    assert gateway_config.default_hosts(Listen("2001:db8::1", 80)) == ("[2001:db8::1]",)


def test_no_two_servers_can_have_one_prefixed_tool_between_them() -> None:
    names = ["a", "a-", "a--b", "a-b", "ab", "0"]
    assert all(re.fullmatch(SERVER_NAME, name) for name in names)
    tools = ["x", "_x", "__x", "b__x", "-x", "-__x", "x__"]
    assert len({f"{name}__{tool}" for name in names for tool in tools}) == len(names) * len(tools)
    # What would collide: `a` with the tool `b__x`, and `a__b` with `x`.
    assert not any(re.fullmatch(SERVER_NAME, name) for name in ("a__b", "a_", "_a", "a_b"))
