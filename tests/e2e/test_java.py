"""Java in a box, on each engine: its own clients trust the gate for the call's names, and what they trusted before."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from certificates import Authority
from lab import Lab, lab_for, needs
from upstreams import LOOPBACK, HttpsServer, https_server, name_server

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (Path(__file__).parent / "inside" / "Trusting.java").read_text()
JAVA = ["sh", "-c", 'cat > /tmp/Trusting.java && exec java -XX:TieredStopAtLevel=1 /tmp/Trusting.java "$@"', "java"]
CLIENTS = ("HttpsURLConnection", "HttpClient")

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    needs("base")
    subprocess.run([str(ROOT / "scripts" / "build-images"), "java"], check=True, timeout=900)
    with lab_for("java", "j") as made:
        yield made


@dataclass
class World:
    """A server whose authority only the gate knows, and the profile of a box that may read one part of it."""

    server: HttpsServer
    profile: str


@pytest.fixture(scope="module")
def world(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, authority = tmp_path_factory.mktemp("upstream"), Authority()
    with (
        name_server({name: [LOOPBACK] for name in ("web.internal", "pass.internal")}) as names,
        https_server(authority, "web.internal", "pass.internal", folder=folder) as server,
    ):
        roots = lab.folder / "authorities.pem"
        roots.write_text(authority.pem)
        with (lab.folder / "fumehood.yaml").open("a") as file:
            file.write(f'egress:\n  resolvers: ["{names.place}"]\n  authorities: {roots}\n')
        near = "addresses: [127.0.0.0/8]"
        rules = f"""\
network:
  egress:
    - {{http: "web.internal:{server.port}", {near}, allow: ["GET /repos/**"]}}
    - {{tls: "pass.internal:{server.port}", {near}}}
"""
        yield World(server, lab.profile("java", f"image: java\nlimits: {{memory: 1GiB, wall: 2m}}\n{rules}"))


def _said(lab: Lab, engine: str, profile: str, *urls: str) -> dict[str, str]:
    done = lab.run(engine, *JAVA, *urls, profile=profile, input=PROGRAM, timeout=150)
    assert done.status == 0, done.stdout + done.stderr
    return dict(line.split("\t", 1) for line in done.told.splitlines())


@pytest.fixture(scope="module")
def said(lab: Lab, engine: str, world: World) -> dict[str, str]:
    port = world.server.port
    urls = (f"https://web.internal:{port}/repos/acme", f"https://web.internal:{port}/admin", f"https://pass.internal:{port}/any")
    return _said(lab, engine, world.profile, *urls)


@pytest.mark.parametrize("client", CLIENTS)
def test_javas_own_clients_work_unchanged_through_an_http_rule(said: dict[str, str], client: str) -> None:
    assert said[f"{client} 0"] == "200"
    assert said[f"{client} 1"] == "403", "what no pattern allows the gate answers, and that Java believes too"


@pytest.mark.parametrize("client", CLIENTS)
def test_java_trusts_what_the_operator_trusts_upstream(said: dict[str, str], client: str) -> None:
    assert said[f"{client} 2"] == "200"


def test_javas_own_authorities_are_still_there_with_any_way_to_open_the_store(said: dict[str, str]) -> None:
    assert said["ours"] == "1"
    assert int(said["trusted"]) > 100
    assert said["with password"] == said["without"] == said["trusted"]


def test_a_box_without_an_http_rule_has_the_images_own_store(lab: Lab, engine: str) -> None:
    told = _said(lab, engine, lab.profile("alone", "image: java\nlimits: {memory: 1GiB}\n"))
    assert told["ours"] == "0"
    assert int(told["trusted"]) > 100
    assert told["user"] == "box"
