"""The part of each cgroup tree that this process's user may use: the cgroup it was started in, where it is the user's.

Without root nobody can make a limit out of nothing: an administrator must have handed a subtree over. On v2 a service
manager does that (`Delegate=yes`), on v1 an administrator with chown. We take the cgroup that we are in: in it we may make
groups, move our own processes, and set limits below the ones that already hold. What was not handed over is missing, and
a box that needs it is refused by name (`explain`).

On v2 a group that passes controllers on holds no process itself, so our own processes move into a leaf beside the boxes'
groups; processes of others are never moved. `parse` is pure. Sources: cgroups(7), "Delegation".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fumehood.broker.cgroups import NEEDED, Trees
from fumehood.state import PREFIX

_ROUNDS = 4
_LEAF = f"{PREFIX}.own"
SCOPE = "systemd-run --user --scope -p Delegate=yes -- fumehood ..."


@dataclass(frozen=True, slots=True)
class Own:
    """The directory of this process's own cgroup by v1 controller, and in the v2 tree; whoever owns them."""

    v1: dict[str, Path]
    v2: Path | None


def parse(mountinfo: str, own: str) -> Own:
    """From the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    paths = {name: path for _, names, path in (line.split(":", 2) for line in own.splitlines()) for name in names.split(",")}
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        root, place = left.split(" ")[3:5]
        if kind == "cgroup2" and v2 is None and "" in paths:
            v2 = _below(place, root, paths[""])
        for name in options.split(",") if kind == "cgroup" else ():
            if name in paths and not name.startswith("name=") and (folder := _below(place, root, paths[name])) is not None:
                v1.setdefault(name, folder)
    return Own(v1, v2)


def _below(place: str, root: str, path: str) -> Path | None:
    """Where a cgroup's directory is seen; None when the mount shows another part of the tree."""
    prefix = root.rstrip("/")
    if path != prefix and not path.startswith(f"{prefix}/"):
        return None
    return Path(place) / path.removeprefix(prefix).lstrip("/")


def find() -> Trees:
    """The trees of which a part is ours, rooted at that part."""
    own = parse(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    v1 = {name: folder for name, folder in own.v1.items() if _handed_over(folder, ("cgroup.procs",))}
    v2 = own.v2 if own.v2 is not None and _handed_over(own.v2, ("cgroup.procs", "cgroup.subtree_control")) else None
    controllers = (v2 / "cgroup.controllers").read_text().split() if v2 is not None else []
    return Trees(v1, v2, frozenset(controllers))


def _handed_over(folder: Path, files: Sequence[str]) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and all(os.access(folder / name, os.W_OK) for name in files)


def make_room(trees: Trees, is_ours: Callable[[int], bool]) -> None:
    """Move our own processes out of the way of controllers that the v2 tree is to pass on. Does nothing on v1."""
    if trees.v2 is None or not trees.v2_controllers & {*NEEDED}:
        return
    leaf = trees.v2 / _LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_ROUNDS):  # one of ours may fork meanwhile
        ours = [pid for pid in map(int, (trees.v2 / "cgroup.procs").read_text().split()) if is_ours(pid)]
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(str(pid))
        if not ours:
            return


def explain(trees: Trees) -> tuple[str, str]:
    """What is missing for limits, and what an administrator can do about it."""
    return (
        f"no cgroup of {', '.join(trees.missing())} was handed over to this user, so limits would not hold",
        (
            f"With systemd on cgroup v2: `{SCOPE}`; on v1: start it in a cgroup of each controller whose directory"
            " and `cgroup.procs` are yours."
        ),
    )
