"""What a server behind the gateway may reach in tests: an HTTPS site that wants a token, and a PostgreSQL with roles of one call.

Beside them the profiles of two servers that use them: `mcp-server-fetch`, and our `database.py` in a box per call or per session.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

from certificates import Authority
from lab import FUMEHOOD, Lab, lab_for, needs
from postgres_server import PostgresServer, postgres_server
from upstreams import LOOPBACK, Answer, HttpsServer, https_server, name_server

ROOT = Path(__file__).resolve().parents[1]
SERVERS = Path(__file__).parent / "e2e" / "servers"
TOKEN = "canary-web-51c0be77d2e94a03b9f6c2d8"  # noqa: S105
DATABASE = """\
image: net-clients
command: [python3, /workspace/database.py, {era}, "{db}", "{web}"]
tools: {{allow: "*"}}
arguments: {{open: ["*"]}}
scope: {scope}
{session}
ask: {{elicitation: true, wait: 20s}}
limits: {{wall: 40s, memory: 512MiB}}
filesystem: {{workspace: ro}}
network:
  egress:
    - {{postgres: "db.internal:{db}", addresses: [127.0.0.0/8], credential: database}}
    - {{http: "web.internal:{web}", addresses: [127.0.0.0/8], allow: ["GET /pages/**"], credential: web}}
credentials:
  web: {{variable: WEB_TOKEN}}
"""


@dataclass
class GatedServers:
    """Both servers as they run, and the profiles that reach them."""

    lab: Lab
    web: HttpsServer
    database: PostgresServer
    workspace: Path

    def profile(self, scope: str = "call", era: str = "modern") -> str:
        """The profile of `database.py`."""
        session = "session: {idle: 60s, lifetime: 5m}" if scope == "session" else ""
        text = DATABASE.format(era=era, scope=scope, session=session, db=self.database.port, web=self.web.port)
        return self.lab.profile(f"database-{scope}-{era}", text)

    def fetching(self) -> str:
        """A profile that extends the one of `mcp-server-fetch` that we ship."""
        path = self.lab.folder / "profiles" / "fetching.yaml"
        rule = f'{{http: "web.internal:{self.web.port}", addresses: [127.0.0.0/8], allow: ["GET /robots.txt", "GET /pages/**"]}}'
        path.write_text(f"extends: mcp-server-fetch\nnetwork:\n  egress:\n    - {rule}\n")
        return str(path)

    @property
    def roles(self) -> set[str]:
        """The roles of calls that there are now."""
        return {role for role in self.database.roles if role.startswith("fh_")}

    @property
    def sessions(self) -> set[str]:
        """The roles of calls that have a session now."""
        rows = self.database.sql("SELECT usename::text FROM pg_stat_activity WHERE usename LIKE 'fh_%'")
        return {name for (name,) in rows}

    @asynccontextmanager
    async def client(self, engine: str, profile: str, patch: str = "", **options: Any) -> AsyncIterator[Client]:
        """A real client of a gateway on stdio. `patch` is Python that runs in our process before the command line does."""
        args = ["gateway", "--profile", profile, "--engine", engine]
        args += ["--workspace", str(self.workspace)] if "database" in profile else []
        command = str(FUMEHOOD)
        if patch:
            program = f"{patch}\nfrom fumehood.cli.main import main\nimport sys\nsys.argv[0] = 'fumehood'\nmain()"
            command, args = sys.executable, ["-c", program, *args]
        server = StdioServerParameters(command=command, args=args, env=self.lab.env)
        with anyio.fail_after(90):
            async with Client(server, **options) as client:
                yield client

    def task(self, result: Any) -> dict[str, Any]:
        """The record of the call that had this result."""
        found: dict[str, Any] = self.lab.fumehood("task", result.meta["fumehood/task"], "--json").said
        return found

    def egress(self, result: Any) -> list[dict[str, Any]]:
        """The egress log of the call that had this result."""
        found: list[dict[str, Any]] = self.lab.fumehood("task", result.meta["fumehood/task"], "--egress", "--json").said["entries"]
        return found


@contextmanager
def gated_servers(mark: str) -> Iterator[GatedServers]:
    """A lab of its own with both servers, for the length of the body."""
    needs("mcp-reference")
    subprocess.run([str(ROOT / "scripts" / "build-images"), "net-clients"], check=True, timeout=900)
    authority = Authority()
    with ExitStack() as stack:
        enter = stack.enter_context
        lab = enter(lab_for("net-clients", mark))
        folder = Path(enter(tempfile.TemporaryDirectory(prefix="fumehood-gated-")))
        names = enter(name_server({"web.internal": [LOOPBACK], "db.internal": [LOOPBACK]}))
        web = enter(https_server(authority, "web.internal", folder=folder))
        web.routes["/robots.txt"] = lambda _: Answer(404)
        web.routes["/pages/"] = lambda request: Answer(
            headers={"Content-Type": "text/html"}, body=f"<html><body><p>the page {request.target}</p></body></html>".encode()
        )
        database = enter(postgres_server(certified=authority.certify("db.internal", LOOPBACK)))
        for statement in ("CREATE ROLE sales NOLOGIN", "CREATE DATABASE app"):
            database.sql(statement)
        for statement in (
            "CREATE TABLE salaries (amount int)", "CREATE TABLE sold AS SELECT 'a lamp' AS item", "GRANT SELECT ON sold TO sales",
        ):  # fmt: skip
            database.sql(statement, "app")
        _configure(lab, authority, names.place, database)
        workspace = lab.workspace("database")
        for name in ("database.py", "stateful.py"):
            shutil.copy(SERVERS / name, workspace / name)
        yield GatedServers(lab, web, database, workspace)


def _configure(lab: Lab, authority: Authority, resolver: str, database: PostgresServer) -> None:
    for name, text in (("authorities", authority.pem), ("web", TOKEN), ("admin", database.password)):
        path = lab.folder / name
        path.touch(mode=0o600)
        path.write_text(text + "\n")
    with (lab.folder / "fumehood.yaml").open("a") as file:
        file.write(f"""\
egress:
  resolvers: ["{resolver}"]
  authorities: {lab.folder}/authorities
credentials:
  web: {{provider: static, token: {{file: {lab.folder}/web}}}}
  database:
    provider: postgres
    host: {LOOPBACK}
    port: {database.port}
    admin_user: {database.user}
    admin_password: {{file: {lab.folder}/admin}}
    ca: {{file: {lab.folder}/authorities}}
    allow: {{roles: [sales]}}
""")
