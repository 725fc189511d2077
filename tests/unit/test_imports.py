"""What a call costs in imports: a profile without rules and credentials brings no parser and no provider with it."""

from __future__ import annotations

import os
import subprocess
import sys

# Each takes between 10 and 200 ms to import, in every `fumehood run`.
HEAVY = ("boto3", "botocore", "cryptography", "dns", "h11", "hvac", "joserfc", "psycopg", "psycopg_pool")
WITHOUT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
import fumehood.cli.run, fumehood.launch, fumehood.app, fumehood.call, fumehood.broker.serve, fumehood.ledger.serve
import fumehood.credentials, fumehood.egress
from fumehood.outward_config import Given
assert fumehood.app.outward_of(Given()) is not None
import fakes
from netbox import FakeBox, NetBroker, plan
from fumehood.ports import Outward, Ports

def no_network(*_):
    raise AssertionError("no socket is asked for")

async def call(planned):
    box = FakeBox()
    broker = fakes.NoBroker()
    broker.network = no_network
    ports = Ports(
        broker=broker, ledger=fakes.FakeLedger(), images=fakes.NoImages(), clock=fakes.FakeClock(), owner_uid=0, outward=Outward()
    )
    async with fumehood.credentials.lease(planned, ports, None) as leases:
        async with fumehood.egress.gate(planned, leases, box, ports) as gate:
            assert not gate.supplies.files

print("ours", *sorted(name for name in sys.modules if name.startswith("fumehood.egress.")))
before = set(sys.modules)
asyncio.run(call(plan()))
print("later", *sorted(set(sys.modules) - before))
print("heavy", *sorted({{name.split(".")[0] for name in sys.modules}} & set({heavy!r})))
"""


def test_a_call_without_rules_and_credentials_imports_nothing_for_them() -> None:
    tests = os.path.dirname(os.path.dirname(__file__))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(tests=tests, heavy=HEAVY)], env=env, timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ours, later, heavy = done.stdout.splitlines()
    assert ours == "ours fumehood.egress.gating"
    assert heavy == "heavy"
    assert not any(name.startswith("fumehood") for name in later.split()), "a call without a way out imports more of ours"


TOKENS_OF_A_FILE = """
import asyncio, sys
sys.path[:0] = [{tests!r}, {tests!r} + "/e2e"]
from fumehood import config
import fumehood.cli.gateway, fumehood.gateway.listen, fumehood.gateway.reading, fumehood.gateway.reloading
assert config.parse("gateway: {{http: {{tokens_file: /t, listen: '127.0.0.1:80'}}}}", "f").gateway.http.oauth is None
from http_door import opened

async def ask():
    async with opened() as door:
        assert (await door.ask("server/discover")).status == 200
        assert (await door.ask("server/discover", authorization="Bearer other")).status == 401

asyncio.run(ask())
print(*sorted(name for name in sys.modules if "oauth_" in name or "gateway.oauth" in name))
print(*sorted({{name.split(".")[0] for name in sys.modules}} & {{"joserfc"}}))
"""


def test_a_gateway_without_access_tokens_loads_nothing_for_them() -> None:
    tests = os.path.dirname(os.path.dirname(__file__))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", TOKENS_OF_A_FILE.format(tests=tests)], env=env, timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


POLICIES = """
import sys
import fumehood.cli.main, fumehood.cli.app, fumehood.launch
fumehood.cli.app.tree(None)
assert not any(name.startswith("cedarpy") for name in sys.modules), "help loads Cedar"
from fumehood.policies.policy import default
default()
print(*sorted(name for name in sys.modules if name.startswith("cedarpy")))
"""


def test_cedar_is_loaded_by_what_decides_and_no_more_of_it_than_decides() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", POLICIES], env=env, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cedarpy._internal\n"
