"""Known holes of runtimes, by the revision that a distribution shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fumehood.broker import risks

HOLES = {"cve-2025-31133", "cve-2025-52565", "cve-2025-52881"}


@pytest.mark.parametrize(
    ("version", "open_holes"),
    [
        ("1.1.5+ds1-1+deb12u1", HOLES),
        ("1.1.15", HOLES),
        ("1.0.0-rc93", HOLES),
        ("1.2.7", HOLES),
        ("1.2.8", set()),
        ("1.2.10-1", set()),
        ("1.3.0", HOLES),
        ("1.3.2", HOLES),
        ("1.3.3", set()),
        ("1.4.0", set()),
        ("1.5.1", set()),
        ("2.0.0", set()),
        ("", {"runc-unknown"}),
        ("unknown", {"runc-unknown"}),
        ("v1.2.8", {"runc-unknown"}),
    ],
)
def test_runc_is_judged_by_its_version(version: str, open_holes: set[str]) -> None:
    assert set(risks.runc_risks(version)) == open_holes


@pytest.mark.parametrize(
    ("said", "open_holes"),
    [
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2\n", HOLES),
        ("runc version 1.3.3\ncommit: v1.3.3-0-gd842d771\nspec: 1.2.1\n", set()),
        ("nonsense\n", {"runc-unknown"}),
        ("", {"runc-unknown"}),
    ],
)
def test_the_installed_runc_is_asked(tmp_path: Path, said: str, open_holes: set[str]) -> None:
    program = tmp_path / "runc"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\n")
    program.chmod(0o755)
    assert set(risks.of_runtime(program)) == open_holes


def test_a_docker_engine_is_judged_by_the_runtime_it_drives() -> None:
    assert set(risks.of_docker({"default_runtime": "runc", "runc": "1.1.5"})) == HOLES
    assert risks.of_docker({"default_runtime": "runc", "runc": "1.3.3"}) == {}
    assert set(risks.of_docker({"runc": ""})) == {"runc-unknown"}


def test_every_risk_says_in_words_what_it_is() -> None:
    assert all(text and not text.endswith(".") for text in risks.runc_risks("1.1.5").values())
