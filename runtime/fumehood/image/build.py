"""Building images from recipes and locks: parents first, each layer on a copy of its parent's root.

An image is built again only when a recipe or lock it comes from changed, or the store lost it. Every step says what it
does; a step that fails leaves the store as it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.image.fetch import Fetcher, forget_unlocked
from fumehood.image.install import Installer
from fumehood.image.lockfile import Lock
from fumehood.image.recipe import Recipe, Recipes
from fumehood.image.sbom import packages
from fumehood.image.workshop import Workshop
from fumehood.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of one image. `fresh`: it was built now, not found."""

    name: str
    digest: str
    docker_id: str | None
    fresh: bool


def build(shop: Workshop, recipes: Recipes, names: Sequence[str], environment: Mapping[str, str]) -> list[Built]:
    """Build these images and what they extend; all that ship when none is named."""
    found = [_current(shop, recipes, name) for name in names or recipes.stems()]
    if all(found):
        return [image for image in found if image]
    require_tools()
    wanted: dict[str, None] = {}
    for name in names or recipes.stems():
        wanted.update(dict.fromkeys(recipe.name for recipe in recipes.chain(name)))
    built = [_current(shop, recipes, name) or _one(shop, recipes, name, environment) for name in wanted]
    if any(image.fresh for image in built):
        locks = [lock for lock in map(recipes.lock, recipes.stems()) if lock]
        forget_unlocked(shop.cache, {sha256 for lock in locks for sha256 in lock.files()})
    return built


def _current(shop: Workshop, recipes: Recipes, name: str) -> Built | None:
    """The image as it is, when its recipes and locks are what it was built from. Reads no YAML: this is every start."""
    found = shop.store.resolve(name)
    about = shop.store.about(found.digest) if found else None
    if found is None or about is None or about.get("sources") is None:
        return None
    if about["sources"] != recipes.sources(tuple(about["chain"])):
        return None
    docker_id = shop.offer_to_docker(found.digest, name)
    return Built(name=name, digest=found.digest, docker_id=docker_id, fresh=False)


def _one(shop: Workshop, recipes: Recipes, name: str, environment: Mapping[str, str]) -> Built:
    chain = recipes.chain(name)
    locks = [_lock_of(recipes, recipe) for recipe in chain]
    started = time.monotonic()
    with shop.staging() as staging:
        _fill(shop, staging, chain[-1], locks[-1], environment)
        shop.say(f"{name}: tidying and hashing")
        rows = packages(locks)
        digest = shop.keep(
            staging,
            name=name,
            epoch=max(lock.epoch for lock in locks),
            about={
                "recipe": chain[-1].digest,
                "chain": [recipe.name for recipe in chain],
                "sources": recipes.sources(tuple(recipe.name for recipe in chain)),
                "entry_point": list(chain[-1].entry_point),
                "architecture": locks[-1].architecture,
            },
            rows=rows,
        )
    shop.say(f"{name}: {digest} in {time.monotonic() - started:.0f} s")
    image = shop.store.resolve(digest)
    return Built(name=name, digest=digest, docker_id=image.docker_id if image else None, fresh=True)


def _lock_of(recipes: Recipes, recipe: Recipe) -> Lock:
    lock = recipes.lock(recipe.name)
    if lock is None:
        raise FumehoodError(
            Reason.IMAGE_RECIPE_INVALID,
            f"{recipe.name} has no lock",
            remedy=f"Make one: `fumehood image lock {recipe.name}`.",
        )
    machine = machine_architecture()
    if lock.recipe != recipe.digest or lock.architecture != machine:
        why = "its recipe has changed since" if lock.architecture == machine else f"this machine is {machine}"
        raise FumehoodError(
            Reason.IMAGE_RECIPE_INVALID,
            f"the lock of {recipe.name} is for {lock.architecture}; {why}",
            remedy=f"Make it anew: `fumehood image lock {recipe.name}`.",
        )
    return lock


def _fill(shop: Workshop, staging: Path, recipe: Recipe, lock: Lock, environment: Mapping[str, str]) -> None:
    """Fetch, then install, into `<staging>/rootfs`."""
    name = recipe.name
    log = staging / "log"
    log.touch()
    fetcher = new_fetcher(shop, staging, environment)
    install = Installer(staging, shop.owners, lock, log)
    shop.say(f"{name}: fetching {len(lock.files())} files")
    fetcher.debs(lock.debian, name, lock.architecture)
    fetcher.wheels((*lock.wheels, *lock.tools), name, lock.architecture)
    if recipe.extends is None:
        shop.say(f"{name}: bootstrapping {len(lock.debian)} Debian packages (mmdebstrap)")
        install.bootstrap(recipe, fetcher, shop.store.folder)
    else:
        copy_parent(shop, recipe.extends, staging)
        if recipe.debian:
            shop.say(f"{name}: installing {len(lock.debian)} Debian packages")
            install.debian(fetcher)
    if recipe.trees:
        shop.say(f"{name}: unpacking {', '.join(tree.wheel for tree in recipe.trees)}")
        install.trees(recipe, fetcher)
    install.own_files(recipe)
    if recipe.npm:
        shop.say(f"{name}: fetching {len(lock.npm)} npm packages")
        fetched = install.npm_fetch(
            {"package.json": npm_package(recipe), "package-lock.json": npm_lock(recipe, lock)}, fetcher
        )
    if recipe.pip:
        shop.say(f"{name}: installing {len(lock.wheels)} wheels")
        install.pip(recipe, fetcher)
    if recipe.npm:
        shop.say(f"{name}: installing npm packages")
        install.npm(recipe, fetched, fetcher)


def copy_parent(shop: Workshop, name: str, staging: Path) -> None:
    """A copy of the parent's root to build on."""
    parent = shop.store.resolve(name)
    if parent is None:
        raise FumehoodError(
            Reason.IMAGE_MISSING, f"{name} is not in the store", remedy=f"Build it: `fumehood image build {name}`."
        )
    source = shop.store.rootfs(parent.digest)
    subprocess.run(["cp", "-aT", "--reflink=auto", "--", f"{source}/.", str(staging / "rootfs")], check=True)


def new_fetcher(shop: Workshop, staging: Path, environment: Mapping[str, str]) -> Fetcher:
    """A fetcher with a scratch folder in `staging`."""
    scratch = staging / "fetch"
    scratch.mkdir(mode=0o755)
    return Fetcher(shop.cache, scratch, shop.owners, environment)


def npm_package(recipe: Recipe) -> dict[str, object]:
    """The package.json that asks for a recipe's npm packages."""
    return {"name": f"fumehood-{recipe.name}", "version": "0.0.0", "private": True, "dependencies": dict(recipe.npm)}


def npm_lock(recipe: Recipe, lock: Lock) -> dict[str, object]:
    """Npm's own lock, from ours."""
    package = npm_package(recipe)
    root = {key: package[key] for key in ("name", "version", "dependencies")}
    return {
        "name": package["name"],
        "version": package["version"],
        "lockfileVersion": 3,
        "requires": True,
        "packages": {"": root, **lock.npm},
    }


def machine_architecture() -> str:
    """Debian's name for this machine."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def require_tools() -> None:
    """Refuse early, and by name, when the host lacks what building needs."""
    missing = [
        tool for tool in ("mmdebstrap", "newuidmap", "setpriv", "apt-get", "dpkg-deb") if shutil.which(tool) is None
    ]
    if missing:
        raise FumehoodError(
            Reason.UNENFORCEABLE,
            f"building images needs {', '.join(missing)}",
            remedy="Run scripts/install-host as root.",
        )
