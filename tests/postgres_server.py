"""PostgreSQL 15 from the distribution, started by tests: a new cluster in a folder of its own, on loopback, on a free port.

    with postgres_server() as server:              # TLS with postgres_server(certified=authority.certify("db.internal"))
        server.sql("CREATE ROLE app LOGIN PASSWORD 'x'")

`scripts/counterparts` installs it. Started by root it runs as the user `postgres`, never as root; it ends with the test's
process, whatever becomes of that. A cluster takes about a second: share one a module, and use names of your own in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from certificates import Certified

BIN = Path("/usr/lib/postgresql/15/bin")
SUPERUSER = "owner"
# By name, so that a test chooses how the server wants a role to prove itself; any other role uses SCRAM.
HBA = """
local all all scram-sha-256
host all wants_md5 127.0.0.1/32 md5
host all wants_cleartext 127.0.0.1/32 password
host all wants_nothing 127.0.0.1/32 trust
host all nobody_may 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
"""


@dataclass
class PostgresServer:
    """A running server. Its superuser is `owner`, with a random password."""

    folder: Path
    port: int
    password: str
    process: subprocess.Popen[bytes]
    address: str = "127.0.0.1"
    user: str = SUPERUSER
    certified: Certified | None = field(default=None, repr=False)

    def dsn(self, database: str = "postgres") -> str:
        """A connection string for the superuser, over TCP."""
        return (
            f"host={self.address} port={self.port} user={self.user} password={self.password} dbname={database} "
            f"connect_timeout=10"
        )

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, outside a transaction; the rows it gave."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    @property
    def roles(self) -> set[str]:
        """Every role but the server's own."""
        rows = self.sql("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")
        return {name for (name,) in rows} - {self.user}

    @property
    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log").read_text(errors="replace")


def as_somebody() -> list[str]:
    """The words before a command that make it a user's without rights, and end it with us."""
    words = ["setpriv", "--pdeathsig", "INT"]
    return [*words, "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else words


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def postgres_server(*, certified: Certified | None = None, **settings: str) -> Iterator[PostgresServer]:
    """Hold a server for the body. `settings` are lines of postgresql.conf."""
    if not (BIN / "initdb").exists():
        pytest.skip("PostgreSQL 15 is not installed; ./scripts/counterparts installs it")
    folder = Path(tempfile.mkdtemp(prefix="fumehood-postgres-"))
    try:
        password = secrets.token_urlsafe(12)
        (folder / "password").write_text(password + "\n")
        if certified is not None:
            certified.write(folder)
        if os.geteuid() == 0:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, "postgres", "postgres")
        data = folder / "data"
        words = [BIN / "initdb", "--pgdata", data, "--username", SUPERUSER, "--pwfile", folder / "password"]
        words += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"]
        subprocess.run([*as_somebody(), *words], check=True, stdout=subprocess.DEVNULL, cwd="/")
        (data / "pg_hba.conf").write_text(HBA)
        port = _free_port()
        lines = {
            "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": str(folder),
            "fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB", "max_prepared_transactions": "5",
            "max_connections": "40", "autovacuum": "off", "log_connections": "on", "logging_collector": "off",
        }  # fmt: skip
        if certified is not None:
            lines |= {
                "ssl": "on",
                "ssl_cert_file": str(folder / "server.crt"),
                "ssl_key_file": str(folder / "server.key"),
            }
        lines |= settings
        with (data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*as_somebody(), BIN / "postgres", "-D", data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        server = PostgresServer(folder, port, password, process, certified=certified)
        try:
            _wait_ready(server)
            yield server
        finally:
            process.send_signal(2)  # what PostgreSQL calls a fast shutdown: sessions are ended, nothing is lost
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder)


def _wait_ready(server: PostgresServer) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            server.sql("SELECT 1")
        except psycopg.OperationalError:
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise AssertionError(f"PostgreSQL did not start: {server.log}") from None
            time.sleep(0.02)
        else:
            return
