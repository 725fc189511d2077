"""The profiles and seccomp files that ship: valid, without a warning, and what the documentation promises."""

import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from fumehood.broker.filters import check_floor
from fumehood.model import WorkspaceMode
from fumehood.profile import loader
from fumehood.profile.explain import sentences, shown
from fumehood.profile.lint import findings
from fumehood.reach import EgressKind

SHIPPED = loader.shipped_folder()
NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
DOCS = Path(__file__).parents[3] / "docs"
GUIDES = "".join((DOCS / name).read_text() for name in ("profiles.md", "egress.md", "credentials.md"))
BLOCKS = re.findall(r"```yaml\n(# ([a-z]+): ([a-z0-9.-]+)\n.*?)```", GUIDES, re.DOTALL)
# What lint has to say about a shipped profile, and rightly so: its seccomp file gives the reason.
KNOWN = {"browser": ["allows other system calls than the default (browser)"]}


def test_what_ships() -> None:
    servers = ["everything", "fetch", "filesystem", "git", "memory", "time"]
    assert ["browser", "function", *(f"mcp-server-{name}" for name in servers), "node", "python", "shell"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profile_is_clean_and_under_the_floor(name: str) -> None:
    loaded = loader.load_fully(name, (SHIPPED,), os.getuid())
    assert [problem.message for problem in findings(loaded)] == KNOWN.get(name, [])
    assert check_floor(loaded.profile.seccomp) is None
    assert sentences(loaded.profile)
    assert (SHIPPED / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_what_show_prints_loads_to_the_same_digest(name: str, shelf: Any) -> None:
    profile = loader.load(name, (SHIPPED,), os.getuid())
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(shown(profile), text)
    shelf.put("again", text.getvalue())
    assert shelf.load("again").digest == profile.digest


def test_ad_hoc_profiles_take_a_writable_workspace() -> None:
    for name in ("python", "node", "shell"):
        profile = loader.load(name, (SHIPPED,), os.getuid())
        assert profile.filesystem.workspace is WorkspaceMode.RW
        assert profile.tools == frozenset()


def test_fetch_reaches_what_it_names_and_only_reads() -> None:
    fetch = loader.load("mcp-server-fetch", (SHIPPED,), os.getuid())
    assert [(rule.kind, rule.allow) for rule in fetch.network.rules] == [(EgressKind.HTTP, ("GET /**",))]
    assert fetch.credentials == ()


def test_git_only_reads_and_memory_keeps_its_file_in_the_workspace() -> None:
    git = loader.load("mcp-server-git", (SHIPPED,), os.getuid())
    assert git.filesystem.workspace is WorkspaceMode.RO
    assert git.tools is not None
    assert not {"git_commit", "git_add", "git_reset", "git_checkout"} & git.tools
    memory = loader.load("mcp-server-memory", (SHIPPED,), os.getuid())
    assert dict(memory.environment)["MEMORY_FILE_PATH"] == "/workspace/memory.jsonl"


def test_the_guide_has_examples() -> None:
    assert len(BLOCKS) >= 10
    assert len(BLOCKS) == GUIDES.count("```yaml")


@pytest.mark.parametrize(("text", "kind", "name"), BLOCKS, ids=[f"{kind}-{name}" for _, kind, name in BLOCKS])
def test_every_example_of_the_guide_loads(text: str, kind: str, name: str, shelf: Any) -> None:
    for other, other_kind, other_name in BLOCKS:
        if other_kind != "config":
            shelf.put(f"seccomp/{other_name}" if other_kind == "seccomp" else other_name, other)
    if kind == "profile":
        assert check_floor(shelf.load(name).seccomp) is None
    elif kind == "seccomp":
        assert check_floor(loader.load_seccomp(name, shelf.folders, os.getuid())) is None
    else:
        from fumehood import config

        assert kind == "config"
        assert config.parse(text, name).file == name


def test_the_guide_to_egress_tells_every_refusal() -> None:
    import importlib
    import pkgutil

    from fumehood import egress

    told = set(re.findall(r"`([a-z0-9_]+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", (DOCS / "egress.md").read_text()))))
    known = {
        value.code
        for module in pkgutil.iter_modules(egress.__path__, "fumehood.egress.")
        for value in vars(importlib.import_module(module.name)).values()
        if type(value).__name__ == "Why"
    }
    assert known <= told
