"""Servers that reach out and use credentials, behind `fumehood gateway` on each engine: what is allowed works, what is not is refused
and logged, and what was leased is gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gated_servers import TOKEN, GatedServers, gated_servers
from lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.anyio]


@pytest.fixture(scope="module")
def servers() -> Iterator[GatedServers]:
    with gated_servers("eg") as made:
        yield made


@pytest.fixture(scope="module")
def lab(servers: GatedServers) -> Lab:
    return servers.lab


def text(result: Any) -> str:
    return str(result.content[0].text)


async def test_mcp_server_fetch_reads_what_is_allowed_and_what_is_not_is_refused_and_logged(
    servers: GatedServers, engine: str, nothing_left: None  # noqa: ARG001 - a check
) -> None:
    place = f"https://web.internal:{servers.web.port}"
    servers.web.requests.clear()
    async with servers.client(engine, servers.fetching()) as client:
        allowed = await client.call_tool("fetch", {"url": f"{place}/pages/a"})
        path = await client.call_tool("fetch", {"url": f"{place}/admin"})
        name = await client.call_tool("fetch", {"url": "https://elsewhere.example/pages/a"})
    assert not allowed.is_error, text(allowed)
    assert "the page /pages/a" in text(allowed)
    assert path.is_error
    assert name.is_error
    assert {request.target for request in servers.web.requests} == {"/robots.txt", "/pages/a"}
    assert [each for each in servers.egress(allowed) if each["kind"] == "refused"] == []
    for result, why in ((path, "http_not_allowed"), (name, "name_not_listed")):
        refused = [each["facts"] for each in servers.egress(result) if each["kind"] == "refused"]
        assert why in {facts["why"] for facts in refused}
        assert all(facts["remedy"] for facts in refused)
        shown = servers.lab.fumehood("task", result.meta["fumehood/task"], "--egress").stdout
        assert why in shown
    assert "/admin" in servers.lab.fumehood("task", path.meta["fumehood/task"], "--egress").stdout


async def test_a_postgresql_tool_is_a_role_of_its_call_that_is_gone_with_proof_when_the_answer_is_there(
    servers: GatedServers, engine: str, nothing_left: None  # noqa: ARG001 - a check
) -> None:
    asked = ("SELECT item, session_user::text FROM sold", "SELECT * FROM salaries", "CREATE TABLE mine (a int)")
    left = []
    async with servers.client(engine, servers.profile()) as client:
        results = []
        for sql in asked:
            results.append(await client.call_tool("query", {"sql": sql}))
            left += [servers.roles, servers.sessions]
    granted, not_granted, created = results
    assert not granted.is_error, text(granted)
    assert "a lamp" in text(granted)
    assert "fh_" in text(granted)
    assert text(not_granted).startswith("42501: permission denied for table salaries")
    assert text(created).startswith("42501")
    assert left == [set()] * 6
    assert len({lease["lease"] for each in results for lease in servers.task(each)["leases"]}) == 6, "two a call"
    for result in results:
        record = servers.task(result)
        leases = {lease["credential"]: lease for lease in record["leases"]}
        assert {lease["state"] for lease in leases.values()} == {"closed"}
        assert leases["database"]["proof"]["gone"] is True
        assert "DROP ROLE" in leases["database"]["proof"]["asked"]
        assert leases["web"]["proof"]["gone"] is False, "what is static lives on, and the record says so"
        assert TOKEN not in str(record)
