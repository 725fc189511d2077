"""What would let a refused call through: lines that load, each with what it would risk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fumehood.denial import Asked, Denial
from fumehood.model import Profile
from fumehood.profile.allowing import egress_ways, reach, ways
from fumehood.profile.loader import load_fully
from fumehood.reasons import Reason

ROOT = Path(__file__).resolve().parents[3]
BASE = """\
image: python
command: [server]
tools: {allow: [read]}
limits: {wall: 20s, memory: 64MiB, idle: 5s}
filesystem: {workspace: rw}
network: {egress: [{http: api.example, allow: [GET /a], credential: token}]}
credentials: {token: {use: vault-token, header: authorization, scheme: bearer}}
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("profiles")
    return loaded(folder, BASE)


def loaded(folder: Path, text: str) -> Profile:
    path = folder / "p.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return load_fully("p", (folder, ROOT / "profiles"), os.getuid()).profile


def denial(reason: Reason, *, kind: str = "tool", name: str = "push", rule: str = "r") -> Denial:
    asked = Asked(kind=kind, name=name, profile="p")
    return Denial(task="01t", result="refused", reason=reason, rule=rule, detail="", remedy="", asked=asked)


IN_A_PROFILE = [
    (denial(Reason.TOOL_NOT_ALLOWED), lambda made: made.tools == {"read", "push"}),
    (denial(Reason.NOT_ALLOWED, kind="prompt"), lambda made: made.prompts == {"push"}),
    (denial(Reason.NOT_ALLOWED, kind="resource", name="demo://a"), lambda made: made.resources == {"demo://a"}),
    (denial(Reason.NOT_ALLOWED, kind="completion"), lambda made: made.completion),
    (denial(Reason.ARGUMENTS_INVALID, rule="profile.arguments"), lambda made: made.arguments.depth == 60),
    (denial(Reason.ARGUMENTS_INVALID, rule="gateway.schema"), lambda made: made.arguments.open == ("push",)),
    (denial(Reason.WALL), lambda made: made.limits.wall_s == 40),
    (denial(Reason.IDLE), lambda made: made.limits.idle_s == 10),
    (denial(Reason.MEMORY), lambda made: made.limits.memory_bytes == 128 * 2**20),
    (denial(Reason.OUTPUT), lambda made: made.limits.output_bytes == 2 * 2**20),
    (denial(Reason.RESULT_TOO_LARGE), lambda made: made.limits.result_bytes == 16 * 2**20),
    (denial(Reason.INPUT_REQUIRED), lambda made: made.ask.elicitation),
    (denial(Reason.PARKED), lambda made: made.ask.wait_s == 600),
    (denial(Reason.WORKSPACE_NOT_ALLOWED, rule="profile.filesystem.workspace"), lambda made: made.filesystem.workspace == "ro"),
]


@pytest.mark.parametrize(("told", "holds"), IN_A_PROFILE, ids=lambda each: each.reason.value if isinstance(each, Denial) else "")
def test_the_line_loads_and_allows_what_was_refused(profile: Profile, tmp_path: Path, told: Denial, holds: object) -> None:
    way = ways(told, profile)[0]
    assert way.where == "profile p"
    assert way.risk.endswith(".")
    yaml = YAML(typ="safe", pure=True)
    merged = {**yaml.load(BASE), **yaml.load(way.line)}
    made = loaded(tmp_path, json.dumps(merged))
    assert callable(holds)
    assert holds(made), way.line


def test_what_is_no_secret_is_excused_at_its_place_and_what_was_issued_never_is(profile: Profile, tmp_path: Path) -> None:
    told = replace(denial(Reason.SECRET_IN_ARGUMENTS), detail="github-token at /rows/0/name and 2 more")
    (way,) = ways(told, profile)
    made = loaded(tmp_path, json.dumps({**YAML(typ="safe", pure=True).load(BASE), **YAML(typ="safe", pure=True).load(way.line)}))
    assert [(each.rule, each.where) for each in made.secrets.allow] == [("github-token", "push/rows/0/name")]
    issued = replace(told, detail="issued-credential at /rows/0/name")
    assert ways(issued, profile) == []


def test_what_a_tool_could_then_do_is_said_of_this_very_profile(profile: Profile) -> None:
    (way,) = ways(denial(Reason.TOOL_NOT_ALLOWED), profile)
    assert "the workspace to read and change, the network places api.example, the credential vault-token" in way.risk
    assert reach(replace(profile, upstream="https://r.example/mcp")).startswith("the remote server https://r.example/mcp")


@pytest.mark.parametrize("name", ['x", evil]}\nengine: docker\n#', "a\u202eb", "- [", "\x1b[2J"])
def test_a_name_that_a_stranger_chose_adds_no_line(profile: Profile, name: str) -> None:
    (way,) = ways(denial(Reason.TOOL_NOT_ALLOWED, name=name), profile)
    assert way.line.isprintable()
    assert YAML(typ="safe", pure=True).load(way.line) == {"tools": {"allow": ["read", name]}}


@pytest.mark.parametrize("reason", [Reason.EXIT_NONZERO, Reason.REPLAYED, Reason.INTERNAL, Reason.SERVER_DIED])
def test_where_no_line_would_help_none_is_shown(profile: Profile, reason: Reason) -> None:
    assert ways(denial(reason), profile) == []


@pytest.mark.parametrize("reason", list(Reason))
def test_without_its_profile_a_refusal_is_still_told(reason: Reason) -> None:
    assert all(way.line and way.risk for way in ways(denial(reason), None))


def test_each_place_that_the_gate_refused_is_told_once(profile: Profile) -> None:
    entries = [
        {"kind": "dns", "facts": {"name": "api.example"}},
        *[{"kind": "refused", "facts": {"why": "name_not_listed", "name": "other.example", "type": kind}} for kind in ("A", "AAAA")],
        {"kind": "refused", "facts": {"why": "port_not_listed", "name": "api.example", "port": 8443}},
        {"kind": "refused", "facts": {"why": "http_not_allowed", "name": "api.example", "asked": "DELETE /all?token=x"}},
        {"kind": "refused", "facts": {"why": "address_not_allowed", "name": "in.example", "addresses": {"10.0.0.7": "private"}}},
        {"kind": "refused", "facts": {"why": "ech", "name": "other.example"}},
        {"kind": "refused", "facts": {"why": "name_not_listed"}},
    ]
    found = egress_ways(entries, profile)
    assert [way.line for way in found] == [
        'network: {egress: [{tls: "other.example"}]}',
        'network: {egress: [{tls: "api.example", ports: [8443]}]}',
        'allow: ["DELETE /all"]  # in the rule of "api.example"',
        'addresses: ["10.0.0.7"]  # in the rule of "in.example"',
    ]
    assert "vault-token" in found[0].risk
    assert "with the credential token" in found[2].risk
