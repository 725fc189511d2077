"""Leases of real calls with a real PostgreSQL: shown with their proof, revoked by an operator, swept after kill -9.

`scripts/soak leases` kills fifty runtimes at random moments instead of two.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes_http import FakeGitHub, FakeTokenServer, FakeVault, serving, sts_server
from lab import FUMEHOOD, RISKS, Lab, lab_for, needs_oci
from postgres_server import PostgresServer, postgres_server
from upstreams import name_server

pytestmark = pytest.mark.root
# Logs in through the gate, begins a statement that outlasts the runtime, and says so.
LOGGED_IN = """
import socket, struct, sys, time
body = b"user\\0anybody\\0database\\0postgres\\0\\0"
query = b"SELECT pg_sleep(60)\\0"
with socket.create_connection(("db.internal", int(sys.argv[1]))) as db:
    db.sendall(struct.pack("!II", 8 + len(body), 3 << 16) + body + b"Q" + struct.pack("!I", 4 + len(query)) + query)
    assert db.recv(1) == b"R"
    time.sleep(2)
"""
GATED = """
network:
  egress:
    - {{postgres: "db.internal:{port}", addresses: [127.0.0.0/8], credential: reporting, insecure: true}}
"""
ADMIN = "canary-admin-8831"
SOAK = int(os.environ.get("FUMEHOOD_SOAK", "2"))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as found:
        found.sql("CREATE ROLE reporting")
        found.sql(f"CREATE ROLE keeper LOGIN CREATEROLE PASSWORD '{ADMIN}'")
        yield found


@pytest.fixture(scope="module")
def lab(server: PostgresServer) -> Iterator[Lab]:
    needs_oci()
    with lab_for("python", "-leases") as found:
        secret = found.folder / "admin"
        secret.touch(0o600)
        secret.write_text(ADMIN + "\n")
        configure(found, server)
        found.profile("reporting", "credentials: {reporting: {deliver: env, variable: PGPASSWORD}}\n")
        yield found


@pytest.fixture
def gated_profile(lab: Lab, server: PostgresServer) -> Iterator[str]:
    with name_server({"db.internal": ["127.0.0.1"]}) as names:
        with (lab.folder / "fumehood.yaml").open("a") as file:
            file.write(f'egress: {{resolvers: ["{names.place}"]}}\n')
        yield lab.profile("gated", GATED.format(port=server.port))
    configure(lab, server)


def configure(lab: Lab, server: PostgresServer, name: str = "reporting") -> None:
    (lab.folder / "fumehood.yaml").write_text(f"""
accept_risk: [{", ".join(RISKS)}]
credentials:
  {name}:
    provider: postgres
    host: 127.0.0.1
    port: {server.port}
    admin_user: keeper
    admin_password: {{file: {lab.folder}/admin}}
    sslmode: disable
    allow: {{roles: [reporting]}}
""")


@pytest.fixture
def profile(lab: Lab) -> str:
    return str(lab.folder / "profiles" / "reporting.yaml")


def roles(server: PostgresServer) -> set[str]:
    return {role for role in server.roles if role.startswith("fh_")}


def leases(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.fumehood("leases", "--json", *arguments).said
    return found


def ledger_files(lab: Lab) -> bytes:
    return b"".join(path.read_bytes() for path in (lab.state / "ledger").rglob("*") if path.is_file())


def wait_until(what: Any, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_call_has_a_role_of_its_own_and_its_record_has_the_proof_that_it_is_gone(lab: Lab, server: PostgresServer, profile: str) -> None:
    # The other way round: as it is, nothing that comes out has it.
    done = lab.python("oci", "import os; it = os.environ['PGPASSWORD']; print(it[::-1], it)", profile=profile)
    assert done.status == 0, done.stderr
    turned, removed = done.told.split(maxsplit=1)
    password = turned[::-1]
    assert removed.strip() == "[secret removed: issued-credential]"
    assert len(password) == 32
    assert roles(server) == set()
    task = done.said["task"]
    (lease,) = lab.fumehood("task", task, "--json").said["leases"]
    assert (lease["state"], lease["credential"], lease["proof"]["gone"]) == ("closed", "reporting", True)
    assert lease["proof"]["asked"].endswith("DROP ROLE")
    assert lease["opened_at"] <= lease["issued_at"] <= lease["closed_at"] <= lease["until"]
    assert [row["lease"] for row in leases(lab) if row["task"] == task] == [lease["lease"]]
    shown = lab.fumehood("task", task).stdout
    assert "revoked" in shown
    assert lease["lease"] in lab.fumehood("leases").stdout
    assert "no gate" in lab.fumehood("task", task, "--egress").stdout
    assert lab.fumehood("task", task, "--egress", "--json").said["entries"] == []
    everywhere = ledger_files(lab) + (done.stderr + shown).encode()
    for canary in (password, ADMIN):
        assert canary.encode() not in everywhere


def test_kill_9_of_a_runtime_leaves_no_role_after_the_next_start(lab: Lab, server: PostgresServer, profile: str) -> None:
    with lab.live("oci", "import time; print('up', flush=True); time.sleep(60)", profile=profile) as live:
        assert live.line() == "up"
        (role,) = roles(server)
        command = Path(f"/proc/{live.worker}/cmdline").read_bytes() + Path(f"/proc/{live.worker}/comm").read_bytes()
        assert ADMIN.encode() not in command
        os.kill(live.worker, 9)
    assert roles(server) == {role}
    (lost,) = leases(lab, "--open")
    assert lost["handle"]["role"] == role
    assert lab.python("oci", "pass", profile="python").status == 0
    assert roles(server) == set()
    assert leases(lab, "--open") == []
    (swept,) = [row for row in leases(lab) if row["lease"] == lost["lease"]]
    assert swept["proof"]["gone"]
    wait_until(lambda: lab.left() == [])


def test_an_operator_revokes_a_living_calls_lease(lab: Lab, server: PostgresServer, profile: str) -> None:
    with lab.live("oci", "import sys; print('up', flush=True); sys.stdin.readline()", profile=profile) as live:
        assert live.line() == "up"
        (lease,) = leases(lab, "--open")
        (told,) = lab.fumehood("leases", "revoke", "--task", lease["task"], "--json").said
        assert (told["lease"], told["problem"], told["proof"]["gone"]) == (lease["lease"], None, True)
        assert roles(server) == set()
        missing = lab.fumehood("leases", "revoke", lease["lease"])
        assert missing.status == 125
        assert "lease_unknown" in missing.one_clear_line()
        live.say("on")
        assert live.end().status == 0
    assert lab.fumehood("leases", "revoke", "--all-open").stdout == "nothing to revoke\n"
    assert lab.fumehood("leases", "revoke").status == 125


def test_a_lease_whose_provider_is_not_configured_stays_and_is_shown(lab: Lab, server: PostgresServer, profile: str) -> None:
    with lab.live("oci", "import time; print('up', flush=True); time.sleep(60)", profile=profile) as live:
        assert live.line() == "up"
        os.kill(live.worker, 9)
    configure(lab, server, name="renamed")
    try:
        done = lab.python("oci", "pass", profile="python")
        assert done.status == 0
        assert "no credential 'reporting' is configured now" in done.stderr
        (lost,) = leases(lab, "--open")
        assert "is configured now" in lost["error"]
        refused = lab.fumehood("leases", "revoke", lost["lease"][:22])
        assert refused.status == 1
        assert "is configured now" in refused.stdout
        assert len(roles(server)) == 1
    finally:
        configure(lab, server)
    assert lab.fumehood("leases", "revoke", "--all-open").stdout.endswith("revoked\n")
    assert roles(server) == set()
    wait_until(lambda: lab.left() == [] or lab.python("oci", "pass").status != 0)


def test_kill_9_at_random_moments_leaves_no_role_no_session_no_listener_and_no_container(
    lab: Lab, server: PostgresServer, gated_profile: str
) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - moments, not secrets
    chance = random.Random(seed)  # noqa: S311 - as above
    query = "SELECT usename::text FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    issued = logged_in = 0
    argv = [str(FUMEHOOD), "run", "--profile", gated_profile, "--engine", "oci", "--", "python3", "-c", LOGGED_IN, str(server.port)]
    for number in range(SOAK):
        with subprocess.Popen(argv, env=lab.env, cwd=lab.cwd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            time.sleep(chance.uniform(0.1, 2.5))
            issued += bool(roles(server))
            logged_in += any((name or "").startswith("fh_") for (name,) in server.sql(query))
            process.kill()
        if number % 5 == 4 or number == SOAK - 1:  # several dead runtimes at once, too
            assert lab.python("oci", "pass", profile="python").status == 0
            assert roles(server) == set(), (seed, json.dumps(leases(lab, "--open")), time.time())
            # A session of a role that is gone has no name.
            assert {name for (name,) in server.sql(query)} <= {"keeper"}, (seed, json.dumps(leases(lab, "--open")), time.time())
            # One that was never issued is looked for once more before it is taken for gone.
            assert {row["state"] for row in leases(lab, "--open")} <= {"opened"}, seed
    # With its processes and containers a box's network is gone, and every listener in it.
    wait_until(lambda: lab.left() == [])
    raw = sqlite3.connect(lab.state / "ledger" / "ledger.db")
    raw.execute("UPDATE leases SET opened_at = opened_at - 60, claimed_at = claimed_at - 600 WHERE state = 'opened'")
    raw.commit()
    raw.close()
    assert lab.python("oci", "pass", profile="python").status == 0
    assert leases(lab, "--open") == [], seed
    print(f"{SOAK} moments, {issued} with a role, {logged_in} with a session; seed {seed}")  # noqa: T201 - what `scripts/soak` shows
    if SOAK >= 20:
        assert logged_in, seed


def test_every_kind_works_in_the_worker_that_has_no_rights(lab: Lab, server: PostgresServer) -> None:
    """Own uid, no program to execute, no socket but to the network: what a library does behind its back is seen here alone."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    authority = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    secrets = {"app": private, "ca": authority, "subject": b"the-subject", "client": b"s&cret", "vault": b"root-token", "aws": b"canary-aws"}
    for name, content in secrets.items():
        (lab.folder / name).touch(0o600)
        (lab.folder / name).write_bytes(content)
    github, tokens, vault = FakeGitHub(public.decode()), FakeTokenServer(), FakeVault()
    kinds = ("gh", "oauth", "vault", "sts", "ssh")
    uses = ", ".join(f"{name}: {{deliver: env, variable: SECRET_{name.upper()}}}" for name in kinds)
    with serving(github), serving(tokens), serving(vault), sts_server() as sts:
        (lab.folder / "fumehood.yaml").write_text(f"""
accept_risk: [{", ".join(RISKS)}]
credentials:
  gh:
    provider: github-app
    app_id: 7
    installation_id: 42
    api_url: {github.url}
    private_key: {{file: {lab.folder}/app}}
    allow: {{repositories: [acme/site], permissions: {{contents: read}}}}
  oauth:
    provider: oauth-exchange
    token_url: {tokens.url}/token
    revocation_url: {tokens.url}/revoke
    client_id: fumehood
    client_secret: {{file: {lab.folder}/client}}
    subject_token: {{file: {lab.folder}/subject}}
    allow: {{scopes: [read]}}
  vault:
    provider: vault
    address: {vault.url}
    path: database/creds/ro
    policies: [ro]
    token: {{file: {lab.folder}/vault}}
  sts:
    provider: aws-sts
    role_arn: arn:aws:iam::123456789012:role/reader
    region: eu-west-1
    endpoint: {sts}
    key_id: {{file: {lab.folder}/aws}}
    key: {{file: {lab.folder}/aws}}
    allow: {{actions: ["s3:GetObject"], resources: ["*"]}}
  ssh:
    provider: ssh-cert
    ca_key: {{file: {lab.folder}/ca}}
    allow: {{principals: [deploy]}}
""")
        try:
            profile = lab.profile("all", f"credentials: {{{uses}}}\n")
            # The other way round: as they are, nothing that comes out has them.
            done = lab.python("oci", "import os; print(*(v[::-1] for n, v in os.environ.items() if 'SECRET_' in n), sep='\\0')", profile=profile)
            assert done.status == 0, done.stderr
            found = {row["credential"]: row for row in lab.fumehood("task", done.said["task"], "--json").said["leases"]}
        finally:
            configure(lab, server)
    assert (github.tokens, tokens.tokens, vault.leases, vault.children) == ({}, {}, {}, {})
    assert {name: row["proof"]["gone"] for name, row in found.items()} == {
        "gh": True, "oauth": True, "vault": True, "sts": False, "ssh": False,
    }  # fmt: skip
    live = [turned[::-1] for turned in done.told.rstrip("\n").split("\0")]
    assert len(live) == len(kinds)
    at_rest = ledger_files(lab) + done.stderr.encode()
    for canary in (*live, "the-subject", "s&cret", "root-token", "canary-aws", private.decode().split("\n")[3]):
        assert canary.encode() not in at_rest


@pytest.mark.parametrize("helps", [True, False])
def test_stop_leaves_no_role_whether_the_worker_helps_or_not(lab: Lab, server: PostgresServer, profile: str, *, helps: bool) -> None:
    with lab.live("oci", "import time; print('up', flush=True); time.sleep(60)", profile=profile) as live:
        live.line()
        assert len(roles(server)) == 1
        if not helps:
            os.kill(live.worker, signal.SIGSTOP)
        done = lab.fumehood("stop", "--all", "--json")
        assert (done.status, done.said["leases_left"]) == (0, []), done
        assert done.said["leases_revoked"] == (0 if helps else 1), "what the worker did not revoke, the command did"
        assert done.seconds < 5
        assert roles(server) == set()
    assert lab.fumehood("start").status == 0
    assert leases(lab, "--open") == []


def test_stop_says_which_leases_are_left_and_until_when(lab: Lab, server: PostgresServer, profile: str) -> None:
    with lab.live("oci", "import time; print('up', flush=True); time.sleep(60)", profile=profile) as live:
        live.line()
        os.kill(live.worker, signal.SIGSTOP)
        configure(lab, server, "renamed")  # nobody knows any more how to reach what made it
        try:
            done = lab.fumehood("stop", "--all")
            assert done.status == 1, done
            assert "of reporting is left, until 20" in done.stdout
        finally:
            configure(lab, server)
    assert lab.fumehood("leases", "revoke", "--all-open").status == 0
    assert roles(server) == set()
    assert lab.fumehood("start").status == 0
