"""Recipes and locks: what they may say, and that those that ship agree with one another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fumehood.faults import FumehoodError
from fumehood.image.install import normalised_name, requirement_name
from fumehood.image.lockfile import Deb, Lock, read_lock, without_addresses
from fumehood.image.recipe import Recipes, shipped_recipes
from fumehood.reasons import Reason

SHIPPED = ("base", "browser", "java", "mcp-reference", "net-clients", "node", "python")
BASE = "name: base\nsuite: bookworm\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def refused(folder: Path, text: str, name: str = "x") -> str:
    (folder / f"{name}.yaml").write_text(text)
    with pytest.raises(FumehoodError) as caught:
        Recipes(folder, os.getuid()).chain(name)
    assert caught.value.reason is Reason.IMAGE_RECIPE_INVALID
    return caught.value.detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nextends: base\ndebain: [git]\n", "debain: Extra inputs"),
        ("name: y\nextends: base\n", "name: is 'y'"),
        ("name: x\n", "either `extends` or `suite`"),
        ("name: x\nextends: base\nsuite: bookworm\n", "either `extends` or `suite`"),
        ("name: x\nextends: nobody\n", "there is no recipe 'nobody'"),
        ("name: x\nextends: x\n", "extends itself"),
        ("name: x\nextends: base\ndebian: ['-oAPT::X=1']\n", "debian.0"),
        ("name: x\nextends: base\npip: ['--index-url=x']\n", "pip.0"),
        ("name: x\nextends: base\npip: ['x @ file:///etc']\n", "pip.0"),
        ("name: x\nextends: base\npip: ['git+ssh:x']\n", "pip.0"),
        ("name: x\nextends: base\nnpm: {'../x': '1'}\n", "npm"),
        ("name: x\nextends: base\nnpm: {x: 'file:../x'}\n", "npm"),
        ("name: x\nextends: base\nfiles: {/../x: ''}\n", "files"),
        ("name: x\nextends: base\nfiles: {relative: ''}\n", "files"),
        ("name: x\nextends: base\ninstall_scripts: 'yes'\n", "install_scripts"),
        ("name: x\nextends: [base\n", "flow sequence"),
        ("- x\n", "the document"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_field(folder: Path, text: str, says: str) -> None:
    assert says in refused(folder, text)


def test_a_recipe_that_others_can_write_is_not_read(folder: Path) -> None:
    (folder / "base.yaml").chmod(0o666)
    with pytest.raises(FumehoodError) as caught:
        Recipes(folder, os.getuid()).load("base")
    assert caught.value.reason is Reason.CONFIG_UNSAFE


def test_a_recipe_name_cannot_lead_out_of_its_folder(folder: Path) -> None:
    with pytest.raises(FumehoodError, match="no image name"):
        Recipes(folder / "below", os.getuid()).load("../base")


def test_the_shipped_recipes_have_fitting_locks_in_their_chains() -> None:
    recipes = Recipes(shipped_recipes(), os.getuid())
    assert tuple(recipes.stems()) == SHIPPED
    for name in SHIPPED:
        chain = recipes.chain(name)
        assert chain[0].name == "base"
        for recipe in chain:
            lock = recipes.lock(recipe.name)
            assert lock is not None
            assert lock.recipe == recipe.digest, f"run `fumehood image lock {recipe.name}`"


def test_shipped_locks_hold_versions_and_hashes_but_no_address() -> None:
    for name in SHIPPED:
        text = (shipped_recipes() / f"{name}.lock").read_text()
        assert "://" not in text
        assert "resolved" not in text


def test_sources_change_with_recipe_and_lock_of_any_image_in_the_chain(folder: Path) -> None:
    recipes = Recipes(folder, os.getuid())
    assert recipes.sources(("base",)) is None
    (folder / "base.lock").write_text("{}")
    first = recipes.sources(("base",))
    (folder / "base.lock").write_text("{ }")
    second = recipes.sources(("base",))
    (folder / "base.yaml").write_text(BASE + "# more\n")
    assert len({first, second, recipes.sources(("base",))}) == 3


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    entry = {"version": "1.0.0", "integrity": "sha512-AAAA", "bin": {"x": "x.js"}}
    debs = (Deb(name="libc6", version="1:2.36-9+deb12u14", sha256="0" * 64),)
    lock = Lock(recipe="sha256:x", architecture="amd64", epoch=1, debian=debs, npm={"node_modules/@a/b": entry})
    lock.write(tmp_path / "x.lock")
    assert read_lock(tmp_path / "x.lock", os.getuid()) == lock
    assert list(lock.npm_packages()) == [("@a/b", "1.0.0", "sha512-AAAA")]
    json.loads((tmp_path / "x.lock").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"debian": [{"name": "-o", "version": "1", "sha256": "0" * 64}]},
        {"wheels": [{"name": "x", "version": "1", "file": "../x.whl", "sha256": "0" * 64}]},
        {"debian": [{"name": "x", "version": "1", "sha256": "short"}]},
        {"npm": {"node_modules/x": {"version": "1"}}},
        {"version": 2},
        {"url": "x"},
    ],
)
def test_a_lock_that_says_anything_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "x.lock"
    path.write_text(json.dumps({"version": 1, "recipe": "r", "architecture": "amd64", "epoch": 1, **change}))
    with pytest.raises(FumehoodError) as caught:
        read_lock(path, os.getuid())
    assert caught.value.reason is Reason.IMAGE_RECIPE_INVALID


def test_addresses_are_taken_out_of_npms_lock() -> None:
    packages = {
        "": {"dependencies": {"x": "*"}},
        "node_modules/x": {
            "version": "1",
            "resolved": "tgz",
            "integrity": "i",
            "funding": {"url": "u"},
            "license": "MIT",
        },
    }
    assert without_addresses(packages) == {"node_modules/x": {"integrity": "i", "version": "1"}}


def test_requirement_names_are_normalised() -> None:
    assert requirement_name("Some_Name[extra]>=1,<2") == "some-name"
    assert normalised_name("A.b--C_d") == "a-b-c-d"
