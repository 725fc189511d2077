"""A folder of profiles to write into, searched before the shipped ones."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fumehood.model import Profile
from fumehood.profile import loader
from fumehood.profile.problems import Problems


class Shelf:
    """A profile folder and what loading from it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders = (folder, loader.shipped_folder())

    def put(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def load(self, name: str) -> Profile:
        return self.fully(name).profile

    def fully(self, name: str) -> loader.Loaded:
        return loader.load_fully(name, self.folders, os.getuid())

    def problems(self, text: str) -> list[str]:
        """The errors of one profile, without its file's name."""
        self.put("p", text)
        with pytest.raises(Problems) as caught:
            self.load("p")
        return [str(problem).removeprefix(f"{self.folder}/p.yaml:") for problem in caught.value.problems]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    folder = tmp_path / "profiles"
    folder.mkdir(mode=0o755, exist_ok=True)
    return Shelf(folder)


@pytest.fixture
def put(shelf: Shelf) -> Callable[[str, str], Path]:
    return shelf.put
