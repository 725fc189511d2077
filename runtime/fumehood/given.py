"""What an operator names on a front door, opened with the operator's own rights before these are given up.

Everything here runs before a stranger's byte is read; what it returns is all that the worker holds of the operator's.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.model import Profile
from fumehood.reasons import Reason
from fumehood.settings import Settings


def open_workspace(workspace: Path | None) -> int | None:
    """A descriptor of the directory, opened with the caller's own rights (rule 7)."""
    if workspace is None:
        return None
    try:
        return os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FumehoodError(Reason.WORKSPACE_UNREADABLE, f"the workspace {workspace}: {error.strerror}") from error


def load_profile(name: str, settings: Settings, engine: str | None, workspace: Path | None) -> Profile:
    """The profile, its engine replaced by the one asked for; never from inside the workspace (rule 6)."""
    from fumehood import profile
    from fumehood.profile.loader import is_path
    from fumehood.safe_files import inside

    # A bare name is never looked for in the working directory. A path counts as named and as it leads: a link outside
    # the workspace may point at what a box wrote in it.
    ways = (os.path.abspath, os.path.realpath)
    if workspace is not None and is_path(name) and any(inside(way(name), way(workspace)) for way in ways):
        raise FumehoodError(
            Reason.CONFIG_UNSAFE, f"{name} lies inside the workspace, where a box could have written it",
            remedy="Keep profiles outside the directories that boxes write to.",
        )  # fmt: skip
    folders = profile.search_folders(settings.profile_folders, os.environ)
    loaded = profile.load(name, folders, settings.caller_uid, kept=settings.state.profiles)
    chosen = engine or loaded.engine or settings.engine
    return replace(loaded, engine=chosen)
