"""Profiles: what operators write, made into the frozen value that the rest of fumehood uses.

`source` (strict YAML) -> `documents` through `validation` (shape, units) -> `resolve` (what fields mean together) ->
`model.Profile`. `files` finds and reads the files, `seccomp` understands theirs, `loader` leads the way, `kept` spares
it when nothing changed, `lint` and `explain` are for people. Everything but `files`, `loader` and `kept` is pure. The
names below load their modules when first used, so importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fumehood.profile.loader import load, load_seccomp, search_folders, shipped_folder
    from fumehood.safe_files import inside

__all__ = ["inside", "load", "load_seccomp", "search_folders", "shipped_folder"]


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: even the light modules take some milliseconds."""
    if name not in __all__:
        raise AttributeError(name)
    if name == "inside":
        from fumehood.safe_files import inside

        return inside
    from fumehood.profile import loader

    return getattr(loader, name)
