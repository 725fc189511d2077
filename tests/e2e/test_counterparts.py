"""The tests' own servers do what tests with them rely on."""

from __future__ import annotations

import psycopg
import pytest

from certificates import Authority
from postgres_server import postgres_server


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
