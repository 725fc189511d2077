"""The set that a gateway serves, on its way from the operator's rights to the worker: whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fake_issuer import FakeIssuer, oauth_config
from fumehood import profile, wire
from fumehood.gateway.oauth.given import OAuthFront
from fumehood.gateway.senders import digest_of, parse_senders
from fumehood.gateway.served import HttpFront, Served, ServedSet, Tls, parts_of, set_of
from fumehood.gateway_config import EnvelopeConfig, EnvelopeMode, Listen
from fumehood.operating import Part


def server(name: str, **fields: Any) -> Served:
    loaded = profile.load("mcp-server-git", (profile.shipped_folder(),), os.getuid())
    return Served(name=name, profile=loaded, argv=("git", "-v"), **fields)


REQUIRED = EnvelopeConfig(mode=EnvelopeMode.REQUIRED, audience="a", skew_s=1.0)


def front(**fields: Any) -> HttpFront:
    made = {
        "listen": Listen("::1", 80),
        "senders": parse_senders(f"a:{digest_of('t')}", "f", 3),
        "tls": Tls("C\n", "K\n"),
    }
    return HttpFront(**{**made, "allowed_hosts": ("[::1]",), "allowed_origins": ("https://a",), **fields})


def sent(served: ServedSet) -> list[Part]:
    """The parts as another process receives them."""
    ours, theirs = wire.pair()
    parts = []
    with ours, theirs:
        for part in parts_of(served):
            wire.send(ours, {"part": part.fields}, part.fds)
            got = wire.receive(theirs)
            assert got is not None
            parts.append(Part(got[0]["part"], tuple(got[1])))
    return parts


def oauth(**changes: Any) -> OAuthFront:
    issuer = FakeIssuer()
    config = oauth_config(issuer.config(), scopes=("mcp",), client_authorities="/c")
    return OAuthFront(**{"config": config, "uid": 3, "key_sets": {issuer.issuer: issuer.jwks()}, "authorities": "PEM\n", **changes})


@pytest.mark.parametrize(
    "http",
    [
        None, front(), front(tls=None, allowed_origins=(), envelope=REQUIRED), front(oauth=oauth()),
        front(oauth=oauth(authorities=None)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("unix", [None, "/run/s"])
def test_a_set_arrives_as_it_was_sent(http: HttpFront | None, unix: str | None) -> None:
    users = () if unix is None else (("alice", 1001),)
    served = ServedSet(servers=(server("a"), server("b")), http=http, unix=unix, unix_envelope=REQUIRED, unix_users=users)
    assert set_of(sent(served)) == served
    if http is not None:
        arrived = set_of(sent(served)).http
        assert arrived is not None
        assert arrived.senders.of("t") == http.senders.of("t") is not None


def test_each_server_gets_its_own_directory(tmp_path: Path) -> None:
    servers = []
    for name in ("a", "b", "none"):
        (tmp_path / name).mkdir()
        fd = os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY)
        servers.append(server(name, workspace_fd=fd, workspace_path=f"/{name}") if name != "none" else server(name))
        if name == "none":
            os.close(fd)
    served = ServedSet(servers=tuple(servers))
    arrived = set_of(sent(served))
    served.close()
    leads = [each.workspace_fd and os.readlink(f"/proc/self/fd/{each.workspace_fd}") for each in arrived.servers]
    assert leads == [str(tmp_path / "a"), str(tmp_path / "b"), None]
    assert [each.workspace_path for each in arrived.servers] == ["/a", "/b", None]
    arrived.close()
    for each in arrived.servers[:2]:
        assert each.workspace_fd is not None
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(each.workspace_fd)


@pytest.mark.parametrize("names", [("a", "a"), ("a__b",), ("a", "a_")])
def test_servers_whose_tools_could_be_mistaken_are_no_set(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="once each and without"):
        ServedSet(servers=tuple(map(server, names)))


def test_a_part_that_is_missing_or_malformed_makes_no_set() -> None:
    parts = sent(ServedSet(servers=(server("a"), server("b")), http=front(oauth=oauth())))
    for missing in range(len(parts)):
        with pytest.raises(ValueError):  # noqa: PT011 - any
            set_of(parts[:missing] + parts[missing + 1 :])
    broken = parts[0]._replace(fields={**parts[0].fields, "profile": {}})
    for others in ([broken, *parts[1:]], [Part({}), *parts], []):
        with pytest.raises(ValueError):  # noqa: PT011 - any
            set_of(others)


def test_no_secret_is_shown_by_accident() -> None:
    shown = repr(front(tls=Tls("C", "SECRET KEY")))
    assert "SECRET" not in shown
    assert digest_of("t") not in shown


def test_the_largest_tokens_file_certificate_and_key_sets_fit_into_messages() -> None:
    rows = "".join(f"{'n' * 60}{number:04}:{digest_of(str(number))}\n" for number in range(1024))
    keys = {f"https://{number}.example": '"' * 65536 for number in range(8)}
    http = front(
        senders=parse_senders(rows, "f", 0), tls=Tls("C" * 64 + "\n" * 65472, "K" * 65536), oauth=oauth(key_sets=keys, authorities="\n" * 262_144)
    )
    assert set_of(sent(ServedSet(servers=(server("a"),), http=http))).http == http
