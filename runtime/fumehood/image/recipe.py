"""Recipes: what an image is made of, as data.

A recipe extends one other, down to the one that extends nothing and is bootstrapped from Debian packages alone. It says
what is wanted (`mcp-server-git`, `python3`); the lock beside it (`NAME.lock`) says exactly which files that is. Nothing
in a recipe is executed: packages' own scripts run offline in a box, npm's only where `install_scripts` says so, and
there is no way to ask for a Python source distribution, whose mere metadata would have to be executed to be read.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fumehood.faults import FumehoodError
from fumehood.image.lockfile import Lock, read_lock
from fumehood.image.store import NAME
from fumehood.model import digest_of
from fumehood.reasons import Reason
from fumehood.safe_files import read_trusted
from fumehood.shipping import shipped

# Changes whenever the same recipe and lock would give another root.
BUILDER = 3
_DEEPEST = 8


def _inside(path: str) -> str:
    """An absolute path of the image, in its shortest form."""
    parts = path.split("/")
    if not path.startswith("/") or path == "/" or any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError("must be an absolute path without empty, `.` or `..` parts")
    return path


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}")
        return text

    return AfterValidator(check)


ImagePath = Annotated[str, AfterValidator(_inside)]
ImageName = Annotated[str, _matching(NAME.pattern, "a name of a-z, 0-9, `.`, `_` and `-`")]
# Grammars without a leading `-`: these become arguments of apt-get, pip and npm.
DebianName = Annotated[str, _matching(r"[a-z0-9][a-z0-9+.-]+", "a Debian package name")]
Requirement = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?[<>=!~0-9A-Za-z.,*]*", "a name and version range")
]
NpmName = Annotated[str, _matching(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*", "an npm package name")]
NpmRange = Annotated[str, _matching(r"[0-9A-Za-z.^~<>=*| -]+", "a version range")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Tree(_Strict):
    """A wheel unpacked as plain files: for programs that come in a wheel but need no Python."""

    wheel: Requirement
    take: Mapping[str, ImagePath]


class Recipe(_Strict):
    """One recipe file."""

    name: ImageName
    description: str = ""
    extends: ImageName | None = None
    suite: Literal["bookworm"] | None = None
    debian: tuple[DebianName, ...] = Field(default=(), strict=False)
    pip: tuple[Requirement, ...] = Field(default=(), strict=False)
    trees: tuple[Tree, ...] = Field(default=(), strict=False)
    npm: Mapping[NpmName, NpmRange] = {}
    install_scripts: bool = False
    links: Mapping[ImagePath, str] = {}
    files: Mapping[ImagePath, str] = {}
    append: Mapping[ImagePath, str] = {}
    entry_point: tuple[str, ...] = Field(default=(), strict=False)

    @property
    def digest(self) -> str:
        """Which recipe a lock was made for."""
        return digest_of(self.model_dump(mode="json"))


class Recipes:
    """The recipes and locks of one folder, which only root and `uid` can have written."""

    def __init__(self, folder: Path, uid: int) -> None:
        """Read from `folder`."""
        self.folder = folder
        self._uid = uid

    def stems(self) -> list[str]:
        """Every recipe's name."""
        return sorted(file.stem for file in self.folder.glob("*.yaml"))

    def load(self, name: str) -> Recipe:
        """One recipe. Raises IMAGE_RECIPE_INVALID with the field and what is expected."""
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        if not NAME.fullmatch(name):
            raise _invalid(f"{name!r} is no image name")
        path = self.folder / f"{name}.yaml"
        try:
            data = YAML(typ="safe", pure=True).load(io.StringIO(read_trusted(path, self._uid)))
            recipe = Recipe.model_validate(data)
        except FileNotFoundError:
            known = ", ".join(self.stems()) or "none"
            raise _invalid(f"there is no recipe {name!r}", f"The recipes are: {known}.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise _invalid(f"{path}: {where}: {first['msg']}") from None
        except YAMLError as error:
            raise _invalid(f"{path}: {' '.join(str(error).split())}") from None
        if recipe.name != name:
            raise _invalid(f"{path}: name: is {recipe.name!r} but the file says {name!r}")
        if (recipe.extends is None) != (recipe.suite is not None):
            raise _invalid(f"{path}: a recipe has either `extends` or `suite`")
        return recipe

    def chain(self, name: str) -> tuple[Recipe, ...]:
        """The recipe and all it extends, the bootstrap first."""
        recipes: list[Recipe] = []
        wanted: str | None = name
        while wanted is not None:
            if len(recipes) == _DEEPEST or any(recipe.name == wanted for recipe in recipes):
                raise _invalid(f"{name} extends itself, or more than {_DEEPEST} others")
            recipes.append(self.load(wanted))
            wanted = recipes[-1].extends
        return tuple(reversed(recipes))

    def lock(self, name: str) -> Lock | None:
        """A recipe's lock, or None when it has none yet."""
        try:
            return read_lock(self.lock_path(name), self._uid)
        except FileNotFoundError:
            return None

    def lock_path(self, name: str) -> Path:
        """Where a recipe's lock is."""
        return self.folder / f"{name}.lock"

    def sources(self, names: tuple[str, ...]) -> str | None:
        """A digest over the bytes of these recipes and locks: what an image was built from. None without a lock."""
        parts: list[object] = [BUILDER]
        for name in names:
            pair = (self.folder / f"{name}.yaml", self.lock_path(name))
            if not all(file.is_file() for file in pair):
                return None
            parts.append([name, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in pair)])
        return digest_of(parts)


def _invalid(detail: str, remedy: str | None = None) -> FumehoodError:
    return FumehoodError(Reason.IMAGE_RECIPE_INVALID, detail, remedy=remedy)


def shipped_recipes() -> Path:
    """The recipes that come with fumehood: beside the package in a checkout, inside it when installed."""
    return shipped("images")
