"""The dependency rules of the architecture, read from the source: who may import whom, and which library where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fumehood
from fumehood.reasons import Reason

ROOT = Path(fumehood.__file__).parent
STAGES = frozenset({"admission", "sandbox", "credentials", "egress", "execution", "evidence", "profile", "image"})
VALUES = frozenset({"model", "permission", "reach", "reasons"})
# What stages stand on: values, Protocols and plumbing that decides nothing of a call.
GROUND = VALUES | {
    "lifecycle", "ports", "faults", "wire", "state", "settings", "asking", "safe_files", "subids", "config", "config_document",
    "gateway_config", "gateway_document", "outward_config", "outward_document", "outward_secrets", "shipping", "residence", "accounts",
    "landlock", "memory", "sealing", "canonical", "keys", "dsse", "evidence_document", "thumbprint", "oauth_config",
    "oauth_document", "stopping", "knocking", "halting", "denial", "policies", "disguises", "approvals",
    "screening", "places", "turns",
}  # fmt: skip
FRONT_DOORS = frozenset({"gateway", "delegate", "cli"})
PROCESSES = frozenset({"broker", "ledger", "store"})
TOP = frozenset({"call", "app", "launch", "confine", "brokering", "given", "operating", "witnessing"})
ONLY_UNDER = {
    "docker": {"broker"},
    "pyroute2": {"broker"},
    "pyseccomp": {"broker"},
    "psutil": {"broker"},
    "sqlalchemy": {"store"},
    "sqlite3": {"store"},
    "mcp": {"gateway"},
    "dns": {"egress"},
    "h11": {"egress", "gateway"},
    "psycopg": {"credentials"},
    "boto3": {"credentials"},
    "hvac": {"credentials"},
    "typer": {"cli"},
    "rich": {"cli"},
    "cedarpy": {"policies"},
    "re2": {"screening"},
    "ruamel": {"profile", "image", "cli"},
}
# The privileged process parses nothing with a library that strangers wrote, but for the engine's own client and the kernel's own files.
BROKER_LIBRARIES = frozenset({"docker", "pyseccomp", "psutil"})
# Each with its reason; an entry that no longer applies fails.
ALLOWED = {
    # Configuration is a strict document like a profile, and one parser per concept reads both.
    ("config", "profile"),
    ("config_document", "profile"),
    ("gateway_document", "profile"),
    ("outward_document", "profile"),
    ("evidence_document", "profile"),
    ("oauth_document", "profile"),
    ("policies", "profile"),
    ("approvals", "profile"),
    # What a person is asked about says a call's profile in the profile's own sentences.
    ("admission", "profile"),
    # Each kind of credential brings the strict model of its own options.
    ("outward_document", "credentials"),
    # The worker's own filter is compiled by a child, before anything of a stranger's is read.
    ("confine", "broker"),
    ("confine", "profile"),
    # The ledger's loop reads rows as the store hands them out.
    ("ledger", "store"),
    # There is one strict reader of strangers' JSON, and it is pure.
    ("delegate", "gateway"),
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "shipped" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; not what only type checkers read."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it names"
            if node.module == "fumehood":
                yield from (f"fumehood.{alias.name}" for alias in node.names if alias.name != "__version__")
            else:
                yield node.module or ""


def ours() -> Iterator[tuple[Path, str, str]]:
    """File, its part, and each other part of ours that it imports."""
    for path in modules():
        for name in imports(path):
            if name.startswith("fumehood.") and (other := name.split(".")[1]) != part_of(path):
                yield path, part_of(path), other


def broken(rule: dict[str, frozenset[str]]) -> list[str]:
    """Imports of the keys that are not among the values."""
    return [
        f"{path.relative_to(ROOT)} imports {other}"
        for path, part, other in ours()
        if part in rule and other not in rule[part] and (part, other) not in ALLOWED
    ]


def test_every_part_has_its_place_in_the_rules() -> None:
    found = {part_of(path) for path in modules()} - {"__init__"}
    assert found <= STAGES | GROUND | FRONT_DOORS | PROCESSES | TOP


def test_values_import_nothing_but_values() -> None:
    values = {"reasons": frozenset(), "reach": frozenset(), "permission": frozenset(), "model": frozenset({"permission", "reach", "reasons"})}
    assert broken(values) == []


def test_what_stages_stand_on_imports_no_stage() -> None:
    assert broken(dict.fromkeys(GROUND - VALUES, GROUND)) == []


def test_stages_never_import_each_other_or_what_is_above() -> None:
    assert broken(dict.fromkeys(STAGES, GROUND)) == []


def test_the_privileged_process_imports_no_stage() -> None:
    assert broken({"broker": GROUND}) == []


def test_the_ledger_imports_no_stage() -> None:
    assert broken({"ledger": GROUND, "store": GROUND}) == []


def test_the_spine_imports_stages_and_nothing_above() -> None:
    assert broken({"call": GROUND | STAGES, "app": GROUND | STAGES | {"call", "brokering", "launch"}}) == []


def test_front_doors_do_not_import_each_other_or_the_privileged_process() -> None:
    above = GROUND | STAGES | TOP
    # Outside the broker process: `image` hands a root to the engine, `profile lint` asks for the floor under filters.
    known = {"cli/image.py imports broker", "cli/profile.py imports broker"}
    assert set(broken({"gateway": above, "delegate": above, "cli": above | {"gateway"}})) <= known


def test_no_exception_to_the_rules_is_out_of_date() -> None:
    assert set(ALLOWED) <= {(part, other) for _, part, other in ours()}


@pytest.mark.parametrize("library", ONLY_UNDER)
def test_a_library_is_imported_where_it_belongs_only(library: str) -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}"
        for path in modules()
        for name in imports(path)
        if name.split(".")[0] == library and part_of(path) not in ONLY_UNDER[library]
    ]
    assert elsewhere == []


def test_the_privileged_process_uses_no_library_but_the_engines_and_the_filters() -> None:
    import sys

    known = set(sys.stdlib_module_names) | BROKER_LIBRARIES | {"fumehood"}
    foreign = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if part_of(path) == "broker"
        for name in imports(path)
        if name.split(".")[0] not in known
    }
    assert foreign == set()


def test_each_reason_has_a_code_a_meaning_and_a_remedy() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason.__members__), "a code is used twice"
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert reason.meaning, reason
        assert not reason.meaning.endswith("."), reason
        assert reason.remedy.endswith("."), reason
        assert "\n" not in reason.meaning + reason.remedy
