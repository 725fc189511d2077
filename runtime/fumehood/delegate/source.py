"""Which part of the host a handed-over function's box sees: its package's folder, or its one module file, read-only.

Never more than that, and never what somebody else could have written: whoever could change the source between the server's start and
a call would choose what runs. So every folder above it, and everything in it, belongs to root or the caller and is not
writable by others; and it does not lie in the workspace, where a box writes.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fumehood.delegate.signatures import unfit
from fumehood.faults import FumehoodError
from fumehood.model import Profile, ReadOnlyMount
from fumehood.reasons import Reason
from fumehood.safe_files import inside, list_trusted, read_trusted

FILES = 20_000
MODULE_BYTES = 2**20  # as much as the broker copies
MODULE_MOUNT = "fumehood-source"
_MOUNTED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Source:
    """`path` is what is mounted; `top` the top-level name that the box imports; `folder` where in the box it is found."""

    path: str
    top: str
    is_package: bool

    @property
    def mount(self) -> ReadOnlyMount:
        """The mount of it."""
        return ReadOnlyMount(source=self.path, name=self.top if self.is_package else MODULE_MOUNT)

    @property
    def folder(self) -> str:
        """The folder in the box in which `top` is found."""
        return "/mnt" if self.is_package else f"/mnt/{MODULE_MOUNT}"

    def added_to(self, profile: Profile) -> Profile:
        """The profile with this mount, under a digest of its own: it means more than the operator's file."""
        from fumehood.profile.resolve import profile_digest

        files = profile.filesystem
        with_mount = replace(profile, filesystem=replace(files, mounts=(*files.mounts, self.mount)))
        return replace(with_mount, digest=profile_digest(with_mount))

    def check(self, uid: int, workspace: Path | None) -> None:
        """Raise FumehoodError(CONFIG_UNSAFE) when somebody else, or a box, could have written it."""
        if workspace is not None:
            given = os.path.realpath(workspace)
            if inside(self.path, given) or inside(given, self.path):
                raise FumehoodError(
                    Reason.CONFIG_UNSAFE, f"the source {self.path} and the workspace {given} lie inside one another",
                    remedy="Keep the code of tools outside the directories that boxes write to.",
                )  # fmt: skip
        if not self.is_package:
            read_trusted(self.path, uid, limit_bytes=MODULE_BYTES)
            return
        list_trusted(Path(self.path), uid)
        seen = 0
        for folder, folders, names in os.walk(self.path):
            for name in (*folders, *names):
                seen += 1
                found = os.lstat(f"{folder}/{name}")
                writable = not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if writable or found.st_uid not in {0, uid}:
                    raise FumehoodError(
                        Reason.CONFIG_UNSAFE, f"{folder}/{name} could have been written by others",
                        remedy="Fix its owner and mode (`chmod go-w`).",
                    )  # fmt: skip
            if seen > FILES:
                raise FumehoodError(Reason.CONFIG_UNSAFE, f"{self.path} holds over {FILES} files to check", remedy="Mount less.")


def source_of(function: Callable[..., Any]) -> Source:
    """Where a function's source lies. Raises FumehoodError(FUNCTION_UNFIT)."""
    name = function.__module__
    if name == "__main__":
        raise unfit(function, "it is defined in the script itself; move it into a module that the script imports")
    if function.__qualname__ == "<lambda>" or "<" in function.__qualname__:
        raise unfit(function, "it is a lambda or nested in another function; define it at the top of its module")
    if function.__qualname__ != function.__name__:
        raise unfit(function, "it belongs to a class; define it at the top of its module")
    top = name.split(".")[0]
    module, root = sys.modules.get(name), sys.modules.get(top)
    known = getattr(module, "__file__", None)
    if known is None or root is None or not known.endswith(".py") or not (file := Path(known)).is_file():
        raise unfit(function, f"the module {name} has no source file")
    # A function of elsewhere under this module's name would be looked for where it is not.
    written = Path(function.__code__.co_filename)
    if not written.exists() or not written.samefile(file):
        raise unfit(function, f"its code does not come from {file}")
    file = file.resolve()
    if not hasattr(root, "__path__"):
        return Source(str(file), top, is_package=False)
    if getattr(root, "__file__", None) is None:
        raise unfit(function, f"{top} is a namespace package, which has no one folder; give it an __init__.py")
    folder = Path(str(root.__file__)).resolve().parent
    if folder.name != top or not _MOUNTED_NAME.fullmatch(top) or not inside(str(file), str(folder)):
        raise unfit(function, f"the package {top} does not lie in one folder of its name ({folder})")
    return Source(str(folder), top, is_package=True)
