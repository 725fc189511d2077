"""Builds the static programs that run inside boxes, as a hatchling hook and as a script.

Static and stripped, without NSS, locale or dlopen: what runs as PID 1 of a box loads nothing from the box.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run as a script
    BuildHookInterface = object  # type: ignore[assignment,misc]

FOLDER = Path(__file__).parent.parent / "runtime" / "fumehood" / "broker" / "init"
FLAGS = ("-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-Wl,--build-id=none")


def build() -> list[Path]:
    """Compile every program of the folder into `bin/`; what is newer than its source stays."""
    (FOLDER / "bin").mkdir(exist_ok=True)
    built = []
    for source in sorted(FOLDER.glob("*.c")):
        target = FOLDER / "bin" / source.stem
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", *FLAGS, "-o", str(target), str(source)], check=True)
        built.append(target)
    return built


class CustomBuildHook(BuildHookInterface):
    """Compile before the wheel (or the editable install) is made."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        build()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


if __name__ == "__main__":
    for path in build():
        sys.stdout.write(f"{path}\n")
