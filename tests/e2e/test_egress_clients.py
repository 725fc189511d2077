"""The clients that people use, from inside boxes on each engine, against real servers through the gate: what is allowed works with no
setting of theirs, and what is not is refused, by whatever way a client tries."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from lab import Lab, lab_for, needs
from postgres_server import PostgresServer, postgres_server
from upstreams import (
    LOOPBACK,
    CloudServer,
    GitRepository,
    HttpsServer,
    SshServer,
    cloud_server,
    git_repository,
    https_server,
    name_server,
    ssh_server,
)

ROOT = Path(__file__).resolve().parents[2]
BATTERY = (Path(__file__).parent / "inside/net_battery.py").read_text()
TOKENS = {"web": "canary-web-2f8e61c09b", "git": "canary-git-77a0d4e3c1"}
AWS_HOST = "s3.us-east-1.amazonaws.com"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    needs("mcp-reference")
    subprocess.run([str(ROOT / "scripts" / "build-images"), "net-clients"], check=True, timeout=900)
    with lab_for("net-clients", "n") as made:
        yield made


@dataclass
class World:
    """Every server, and the profile that lets a box at them."""

    web: HttpsServer
    repository: GitRepository
    database: PostgresServer
    ssh: SshServer
    cloud: CloudServer
    profile: str
    given: dict[str, Any]


@pytest.fixture(scope="module")
def world(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, authority = tmp_path_factory.mktemp("upstream"), Authority()
    local = {name: [LOOPBACK] for name in ("web.internal", "git.internal", "pass.internal", "db.internal", "ssh.internal", AWS_HOST)}
    with ExitStack() as stack:
        enter = stack.enter_context
        names = enter(name_server({**local, "rebound.internal": ["10.255.255.1"]}))
        web = enter(https_server(authority, "web.internal", "git.internal", "pass.internal", "rebound.internal", folder=folder))
        repository = git_repository(folder, TOKENS["git"])
        web.routes["/git/"] = repository.respond
        database = enter(postgres_server(certified=authority.certify("db.internal", LOOPBACK)))
        database.sql("CREATE ROLE sales NOLOGIN")
        database.sql("CREATE DATABASE app")
        for statement in ("CREATE TABLE sold (item text)", "INSERT INTO sold VALUES ('a lamp')", "GRANT SELECT ON sold TO sales"):
            database.sql(statement, "app")
        ssh = enter(ssh_server())
        cloud = enter(cloud_server(authority, AWS_HOST, folder=folder))
        ports = {"web": web.port, "db": database.port, "ssh": ssh.port, "s3": cloud.port}
        _configure(lab, authority, names.place, database, ssh, cloud)
        profile = _profile(lab, ports)
        given = {"ports": ports, "roots": authority.pem, "ssh_user": ssh.user, "known_host": ssh.known_host}
        yield World(web, repository, database, ssh, cloud, profile, given)


def _secret(lab: Lab, name: str, text: str) -> str:
    path = lab.folder / f"{name}.secret"
    path.touch(mode=0o600)
    path.write_text(text + "\n")
    return f"{{file: {path}}}"


def _configure(
    lab: Lab, authority: Authority, resolver: str, database: PostgresServer, ssh: SshServer, cloud: CloudServer
) -> None:
    roots = lab.folder / "authorities.pem"
    roots.write_text(authority.pem)
    with (lab.folder / "fumehood.yaml").open("a") as file:
        file.write(f"""\
egress:
  resolvers: ["{resolver}"]
  authorities: {roots}
credentials:
  web: {{provider: static, token: {_secret(lab, "web", TOKENS["web"])}}}
  git: {{provider: static, token: {_secret(lab, "git", TOKENS["git"])}}}
  ssh-key: {{provider: static, token: {_secret(lab, "ssh", ssh.key.strip())}}}
  cloud:
    provider: static
    form: aws
    key_id: {_secret(lab, "key-id", cloud.key_id)}
    key: {_secret(lab, "key", cloud.key)}
  database:
    provider: postgres
    host: {LOOPBACK}
    port: {database.port}
    admin_user: {database.user}
    admin_password: {_secret(lab, "admin", database.password)}
    ca: {{file: {roots}}}
    allow: {{roles: [sales]}}
""")


def _profile(lab: Lab, ports: dict[str, int]) -> str:
    path = lab.folder / "profiles" / "net-clients.yaml"
    near = "addresses: [127.0.0.0/8]"
    path.write_text(f"""\
extends: python
image: net-clients
limits: {{memory: 1GiB, wall: 2m}}
network:
  egress:
    - {{http: "web.internal:{ports["web"]}", {near}, allow: ["GET /repos/acme/**"], credential: web}}
    - {{http: "git.internal:{ports["web"]}", {near}, allow: ["GET /git/**", "POST /git/**"], credential: git}}
    - {{http: "{AWS_HOST}:{ports["s3"]}", {near}, credential: cloud}}
    - {{tls: "pass.internal:{ports["web"]}", {near}}}
    - {{http: "rebound.internal:{ports["web"]}", {near}, allow: ["GET /**"]}}
    - {{postgres: "db.internal:{ports["db"]}", {near}, credential: database}}
    - {{tcp: "ssh.internal:{ports["ssh"]}", {near}}}
credentials:
  web: {{variable: WEB_TOKEN}}
  git: {{scheme: basic, username: x-access-token}}
  cloud: {{scheme: sigv4}}
  ssh-key: {{deliver: file}}
""")
    return str(path)


@dataclass
class Seen:
    """What one box reported, and its record."""

    report: dict[str, Any]
    task: str
    log: str

    def said(self, name: str) -> str:
        """Everything that a client said."""
        return " ".join(map(str, self.report[name]))


@pytest.fixture(scope="module")
def seen(lab: Lab, engine: str, world: World) -> Seen:
    given = json.dumps({**world.given, "mark": engine})
    done = lab.run(engine, "python3", "-c", BATTERY, given, profile=world.profile, timeout=150)
    said = done.said
    assert done.status == 0, done.stdout[-3000:] + done.stderr
    log = lab.fumehood("task", said["task"], "--egress").stdout
    return Seen(json.loads(said["stdout"]), said["task"], log)


@pytest.mark.parametrize("client", ["urllib", "requests", "httpx", "curl", "node"])
def test_https_clients_work_unchanged_and_the_gate_authorizes_them(seen: Seen, world: World, client: str) -> None:
    target = f"/repos/acme/{client}"
    assert "200" in seen.said(client)
    assert target in seen.said(client)
    got = [request for request in world.web.requests if request.target.startswith(target)]
    assert {request.header("Authorization") for request in got} == {f"Bearer {TOKENS['web']}"}


def test_openssl_trusts_the_tasks_authority_for_the_name(seen: Seen) -> None:
    assert "Verify return code: 0 (ok)" in seen.said("openssl")


def test_a_tls_rule_passes_the_servers_own_certificate_through(seen: Seen) -> None:
    assert seen.report["tls"][0] == 0, seen.said("tls")
    assert "/anything/at/all" in seen.said("tls")


def test_git_clones_and_pushes_with_a_token_that_it_never_saw(seen: Seen, world: World, engine: str) -> None:
    for step in ("git clone", "git commit", "git push"):
        assert seen.report[step][0] == 0, seen.said(step)
    assert world.repository.git("show", f"main:{engine}") == "by the tool"


def test_postgresql_clients_are_the_leased_role_and_it_is_gone_afterwards(seen: Seen, world: World) -> None:
    role, _, item = seen.report["psql"][1].strip().partition("|")
    assert item == "a lamp", seen.said("psql")
    assert role.startswith("fh_")
    assert seen.report["psycopg"] == ["ok", [role, 1]], "one lease a call"
    assert not {each for each in world.database.roles if each.startswith("fh_")}


def test_ssh_works_through_a_tcp_rule_with_a_key_in_a_file(seen: Seen) -> None:
    assert seen.report["ssh banner"] == ["ok", "SSH-2.0-"]
    assert seen.report["ssh"][:2] == [0, "ran: uptime\n"], seen.said("ssh")


def test_boto3_signs_with_a_placeholder_and_the_server_verifies_the_gates_signature(seen: Seen) -> None:
    assert seen.report["s3"] == ["ok", "content of the object"]


@pytest.mark.parametrize("case", ["path", "method"])
def test_what_no_pattern_allows_is_answered_by_the_gate_and_never_arrives(seen: Seen, world: World, case: str) -> None:
    assert "403" in seen.said(case)
    assert "http_not_allowed" in seen.said(case)
    assert not [request for request in world.web.requests if request.target == "/admin" or request.method == "DELETE"]


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("name", "Name or service not known"), ("name by curl", "Could not resolve host"), ("name by node", "ENOTFOUND"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_listed_does_not_exist(seen: Seen, case: str, word: str) -> None:
    assert word in seen.said(case)
    assert "elsewhere.example" in seen.log


def test_another_server_behind_an_allowed_name_is_not_reached(seen: Seen) -> None:
    assert seen.report["sni"][0] not in {0, "timeout"}, seen.said("sni")
    assert "no peer certificate available" in seen.said("sni by openssl")
    assert "sni_mismatch" in seen.log


def test_a_client_that_would_like_http_2_falls_back(seen: Seen) -> None:
    assert seen.report["h2"][1].endswith("200 HTTP/1.1"), seen.said("h2")


@pytest.mark.parametrize("case", ["metadata", "literal", "literal v6"])
def test_addresses_that_stand_for_no_name_refuse_connections(seen: Seen, case: str) -> None:
    assert seen.report[case][0] == "ConnectionRefusedError"


def test_a_name_that_resolves_to_a_private_address_is_not_dialled(seen: Seen) -> None:
    assert "200" not in seen.said("rebound")
    assert "address_not_allowed" in seen.log


def test_postgresql_refusals_are_read_by_psql(seen: Seen) -> None:
    assert "replication is refused" in seen.said("psql replication")
    assert "HINT" in seen.said("psql replication")
    assert seen.report["psql elsewhere"][0] == 2
    assert "server does not support SSL, but SSL was required" in seen.said("psql tls")


def test_no_secret_of_the_gates_was_ever_in_the_box(seen: Seen, world: World) -> None:
    told = json.dumps(seen.report) + seen.log
    for secret in (*TOKENS.values(), world.cloud.key, world.database.password):
        assert secret not in told
    assert "WEB_TOKEN" in seen.report["environment"], "a placeholder is there for clients that want to see one"
