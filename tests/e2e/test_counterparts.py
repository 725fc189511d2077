"""The tests' own servers do what tests with them rely on."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.request
from pathlib import Path

import dns.resolver
import psycopg
import pytest

from certificates import Authority
from postgres_server import postgres_server
from upstreams import GIT, git_repository, https_server, name_server, ssh_server


def test_it_runs_with_tls_wants_scram_and_is_gone_afterwards() -> None:
    authority = Authority()
    with postgres_server(certified=authority.certify("db.internal", "127.0.0.1")) as server:
        server.sql("CREATE ROLE someone LOGIN PASSWORD 'right'")
        assert server.roles == {"someone"}
        ours = f"host=127.0.0.1 port={server.port} dbname=postgres user=someone"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"{ours} password=wrong sslmode=require")
        with psycopg.connect(f"{ours} password=right sslmode=require") as connection:
            used = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert used == (True,)
    assert not server.folder.exists()
    assert server.process.returncode is not None


def test_https_git_and_ssh_answer(tmp_path: Path) -> None:
    authority = Authority()
    repository = git_repository(tmp_path, "token")
    roots = tmp_path / "roots.pem"
    roots.write_text(authority.pem)
    with https_server(authority, "localhost", folder=tmp_path) as server, ssh_server() as ssh:
        server.routes["/git/"] = repository.respond
        context = ssl.create_default_context(cafile=roots)
        with urllib.request.urlopen(f"https://localhost:{server.port}/x?y", data=b"z", context=context) as answer:
            assert json.load(answer)["target"] == "/x?y"
        url = f"https://u:token@localhost:{server.port}/git/site.git"
        config = ["-c", f"http.sslCAInfo={roots}"]
        clone = subprocess.run(["git", *config, "clone", "-q", url, tmp_path / "clone"], env=GIT, capture_output=True, text=True, check=False)
        assert clone.returncode == 0, clone.stderr
        assert (tmp_path / "clone/README").read_text() == "hello\n"
        key = tmp_path / "key"
        key.touch(mode=0o600)
        key.write_text(ssh.key)
        options = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oBatchMode=yes", "-oIdentitiesOnly=yes"]
        words = ["ssh", "-F", "none", "-i", str(key), "-p", str(ssh.port), *options, f"{ssh.user}@127.0.0.1", "uptime"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.stdout == "ran: uptime\n", done.stderr + ssh.log


def test_names_can_be_rebound() -> None:
    with name_server({"a.example": ["192.0.2.1", "2001:db8::1"]}) as names:
        names.turns["b.example"] = [["192.0.2.1"], ["127.0.0.1"]]
        resolver = dns.resolver.Resolver(configure=False)
        host, port = names.place.split(":")
        resolver.nameservers, resolver.port = [host], int(port)
        assert [each.address for each in resolver.resolve("a.example", "AAAA")] == ["2001:db8::1"]
        assert [next(iter(resolver.resolve("b.example", "A"))).address for _ in range(3)] == ["192.0.2.1", "127.0.0.1", "127.0.0.1"]
        with pytest.raises(dns.resolver.NXDOMAIN):
            resolver.resolve("c.example", "A")
