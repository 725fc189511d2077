"""Making a lock: today's versions for what a recipe wants, on top of what its parents' locks hold.

Versions that the old lock has and that still fit are kept, unless everything is to be upgraded. Resolving executes
nothing of what it resolves: apt simulates, pip takes wheels only, npm reads the registry's metadata in a box.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fumehood.faults import FumehoodError
from fumehood.image.build import copy_parent, machine_architecture, new_fetcher, npm_lock, npm_package
from fumehood.image.fetch import Apt, Fetcher, last_words
from fumehood.image.install import Installer, normalised_name, requirement_name
from fumehood.image.lockfile import Deb, Lock, Wheel, without_addresses
from fumehood.image.recipe import Recipe, Recipes
from fumehood.image.workshop import Workshop
from fumehood.reasons import Reason

_PIP_ITSELF = "pip>=24"
_BOOTSTRAP = ("?essential", "?priority(required)", "apt")
_INSTALLED = re.compile(r"^Inst (?P<name>\S+) \((?P<version>\S+) ", re.MULTILINE)
_EVERYTHING_BUT_DEBIAN = (
    "Package: *\nPin: release o=Debian, n={suite}*\nPin-Priority: 990\n\nPackage: *\nPin: release *\nPin-Priority: -1\n"
)


def resolve(shop: Workshop, recipes: Recipes, name: str, environment: Mapping[str, str], *, upgrade: bool) -> Lock:
    """Make a lock for one recipe; its parents must have theirs."""
    chain = recipes.chain(name)
    recipe = chain[-1]
    parents = [lock for lock in (recipes.lock(parent.name) for parent in chain[:-1]) if lock]
    if len(parents) < len(chain) - 1:
        raise _failed(recipe, "an image it extends has no lock")
    old = None if upgrade else recipes.lock(name)
    if old is not None and old.recipe == recipe.digest and old.architecture == machine_architecture():
        return old
    with shop.staging() as staging:
        fetcher = new_fetcher(shop, staging, environment)
        shop.say(f"{name}: resolving")
        architecture = machine_architecture()
        debs = _debian(fetcher, chain, parents, old, architecture)
        wheels = _wheels(fetcher, [*recipe.pip, *(tree.wheel for tree in recipe.trees)], old, architecture)
        tools = _wheels(fetcher, [_PIP_ITSELF], old, architecture) if recipe.pip else ()
        lock = Lock(
            recipe=recipe.digest,
            architecture="arm64" if architecture == "arm64" else "amd64",
            epoch=int(time.time()),
            debian=debs,
            wheels=wheels,
            tools=tools,
        )
        if recipe.npm:
            start = lock.model_copy(update={"npm": old.npm if old else {}})
            lock = lock.model_copy(update={"npm": _npm(shop, staging, recipe, start, fetcher)})
    return lock


def _debian(
    fetcher: Fetcher, chain: Sequence[Recipe], parents: Sequence[Lock], old: Lock | None, architecture: str
) -> tuple[Deb, ...]:
    """The packages that this recipe adds to its parents', simulated on an empty system."""
    recipe = chain[-1]
    if not recipe.debian and recipe.extends is not None:
        return ()
    held = {deb.name: deb.version for lock in parents for deb in lock.debian}
    pins = {deb.name: deb.version for deb in old.debian} | held if old else held
    apt = Apt(fetcher, architecture)
    apt.refresh()
    preferences = fetcher.folder("preferences") / "pins"
    preferences.write_text(
        _EVERYTHING_BUT_DEBIAN.format(suite=chain[0].suite)
        + "".join(f"\nPackage: {name}\nPin: version {version}\nPin-Priority: 1001\n" for name, version in pins.items())
    )
    options = (f"-oDir::Etc::preferences={preferences}", "-oDir::Etc::preferencesparts=/dev/null", "-s")
    wanted = [name for each in chain for name in each.debian]
    done = apt.ask("apt-get", *options, "install", *_BOOTSTRAP, *wanted, cwd=preferences.parent)
    if done.returncode:
        raise _failed(recipe, f"apt cannot satisfy it: {last_words(done.stderr or done.stdout)}")
    versions = {found["name"]: found["version"] for found in _INSTALLED.finditer(done.stdout)}
    moved = [name for name, version in held.items() if versions.get(name) != version]
    if moved:
        parent = chain[-2].name
        raise FumehoodError(
            Reason.IMAGE_VANISHED,
            f"{recipe.name}: its parent's {moved[0]} {held[moved[0]]} is locked but no longer to be had",
            remedy=f"`fumehood image lock --upgrade {parent}` first.",
        )
    added = {name: version for name, version in versions.items() if name not in held}
    shown = apt.ask(
        "apt-cache", "show", *(f"{name}={version}" for name, version in added.items()), cwd=preferences.parent
    )
    hashes = {}
    for stanza in shown.stdout.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", stanza, re.MULTILINE))
        if len(fields) == 3:
            hashes[fields["Package"], fields["Version"]] = fields["SHA256"]
    missing = [name for name, version in added.items() if (name, version) not in hashes]
    if missing:
        raise _failed(recipe, f"apt knows no SHA-256 of {missing[0]}")
    return tuple(
        Deb(name=name, version=version, sha256=hashes[name, version]) for name, version in sorted(added.items())
    )


def _wheels(fetcher: Fetcher, wanted: Sequence[str], old: Lock | None, architecture: str) -> tuple[Wheel, ...]:
    """What pip takes for these requirements, downloaded and hashed."""
    if not wanted:
        return ()
    folder = fetcher.folder(f"resolve-{requirement_name(wanted[0])}")
    known = [f"{wheel.name}=={wheel.version}\n" for wheel in (*old.wheels, *old.tools)] if old else []
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(known))
    said = fetcher.pip_download(["--constraint", str(constraints), *wanted], folder, architecture)
    if said is not None and known:  # an old version no longer fits what is wanted now
        said = fetcher.pip_download(list(wanted), folder, architecture)
    if said is not None:
        raise FumehoodError(
            Reason.IMAGE_RECIPE_INVALID,
            f"pip finds no wheels for {', '.join(wanted)}: {last_words(said)}",
            remedy="Only wheels are taken; name a version that has one.",
        )
    wheels = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        wheels.append(Wheel(name=normalised_name(name), version=version, file=path.name, sha256=fetcher.keep(path)))
    return tuple(wheels)


def _npm(shop: Workshop, staging: Path, recipe: Recipe, start: Lock, fetcher: Fetcher) -> dict[str, dict[str, Any]]:
    """Npm's resolution, made by the node that the image will have."""
    if recipe.extends is None:
        raise _failed(recipe, "npm packages need an image with node to extend")
    log = staging / "log"
    log.touch()
    copy_parent(shop, recipe.extends, staging)
    install = Installer(staging, shop.owners, start, log)
    install.trees(recipe, fetcher)
    install.own_files(recipe.model_copy(update={"files": {}, "append": {}}))
    files: dict[str, object] = {"package.json": npm_package(recipe)}
    if start.npm:
        files["package-lock.json"] = npm_lock(recipe, start)
    made = json.loads((install.npm_fetch(files, fetcher, lock_only=True) / "package-lock.json").read_text())
    packages = without_addresses(made["packages"])
    odd = [path for path, entry in packages.items() if "integrity" not in entry or "version" not in entry]
    if odd:
        raise _failed(recipe, f"{odd[0]} comes without an integrity")
    return packages


def _failed(recipe: Recipe, detail: str) -> FumehoodError:
    return FumehoodError(Reason.IMAGE_RECIPE_INVALID, f"{recipe.name}: {detail}")
