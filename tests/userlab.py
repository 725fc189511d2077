"""An ordinary user of the tests' own: subordinate ids, a home, cgroups that were handed over. And what may not be left of it.

The user is made and removed by root, as an administrator would. Cgroups are handed over as on a v1 host: a directory in each tree
whose owner is the user, in which the user's commands start. Nothing here is a privilege that a real user could not be given.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fumehood
from fumehood.broker.cgroups import parse_trees
from lab import FUMEHOOD, Done, Lab, boxed, needs, new_folder, pids, status

SUBIDS = 65_536
FIRST = 2**28  # far from what useradd hands out, and below the range of root's boxes
NEEDED = ("cpu", "cpuacct", "memory", "pids")
# Joins the groups that come before `--`, then becomes the command. In a v2 tree each command gets a scope of its own, as a service
# manager gives it one: a group that passes controllers on holds no processes.
JOIN = """
owner=$1; shift
while [ "$1" != -- ]; do
    group=${1#scope:}
    if [ "$group" != "$1" ]; then
        group=$group/scope-$$
        mkdir "$group" && chown "$owner" "$group" "$group/cgroup.procs" "$group/cgroup.subtree_control" || exit 99
    fi
    echo 0 > "$group/cgroup.procs" || exit 99
    shift
done
shift
exec "$@"
"""


@dataclass
class UserLab(Lab):
    """A lab whose commands an ordinary user runs. `groups` are the directories that were handed over, by tree."""

    name: str = ""
    uid: int = 0
    gid: int = 0
    first_id: int = 0
    groups: Mapping[str, Path] | None = None

    @property
    def state(self) -> Path:
        return self.home / ".local/state/fumehood"

    @property
    def cwd(self) -> Path:
        return self.home

    @property
    def env(self) -> dict[str, str]:
        """No FUMEHOOD_STATE: the user's folder is found as a user finds it."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "FUMEHOOD_CONFIG": str(self.folder / "fumehood.yaml"),
            "PYTHONPATH": str(Path(fumehood.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def as_user(self, *argv: str, without: Sequence[str] = ()) -> list[str]:
        """The command line that runs `argv` as the user, in the groups of all trees but `without`."""
        groups = {tree: folder for tree, folder in (self.groups or {}).items() if tree not in without}
        joined = [f"scope:{folder}" if tree == "v2" else str(folder) for tree, folder in groups.items()]
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        return ["/bin/sh", "-c", JOIN, "join", f"{self.uid}:{self.gid}", *joined, "--", *drop, *argv]

    def fumehood(
        self, *args: str, program: Sequence[str] = (), without: Sequence[str] = (), **options: Any
    ) -> Done:
        """Run the command line as the user."""
        whole = self.as_user(*(program or [str(FUMEHOOD)]), without=without)
        return super().fumehood(*args, program=whole, **options)

    def owns(self, uid: int) -> bool:
        """Whether a uid is the user's or one of its boxes'."""
        return uid == self.uid or self.first_id <= uid < self.first_id + SUBIDS

    def processes(self) -> dict[int, str]:
        """Every process of the user's and of its boxes, with its name."""
        found = {}
        for pid in pids():
            try:
                fields = status(pid)
            except OSError:
                continue
            if self.owns(int(fields["Uid"].split()[0])):
                found[pid] = fields["Name"]
        return found

    def boxed(self, marker: str) -> int:
        """The pid of the one process in a box whose arguments hold the marker."""
        return boxed(marker, [range(self.first_id, self.first_id + SUBIDS)])

    def left(self) -> list[str]:
        """Everything on this host that is the user's runtimes' and should be gone."""
        deadline = time.monotonic() + 5
        while (running := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel tells nobody that the last of many processes has been reaped
        found = [f"process {pid}: {name}" for pid, name in running.items()]
        found += [str(path) for name in ("run", "ids") for path in (self.state / name).iterdir()]
        found += [str(path) for name in ("ids", "runtimes") for path in (self.home / f".local/state/fumehood-{name}").glob("*/*")]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        for tree, folder in (self.groups or {}).items():
            groups = [path for path in folder.iterdir() if path.is_dir()]
            if tree == "v2":  # a scope ends with its last process, whatever groups are left in it
                groups = [path for path in groups if "populated 1" in (path / "cgroup.events").read_text()]
            found += map(str, groups)
        return found


@contextmanager
def user_lab_for(image: str, letter: str) -> Iterator[UserLab]:
    """A user for the body, or a skip as of `lab_for`. `letter` tells labs of one session apart."""
    needs(image)
    if not (shutil.which("newuidmap") and shutil.which("crun")):
        pytest.skip("needs newuidmap and crun")
    name = f"fumehood-{letter}{os.getpid()}"
    folder = new_folder(letter, "profiles")
    run("useradd", "--system", "--user-group", "--home-dir", str(folder / "home"), "--shell", "/usr/sbin/nologin", name)
    groups: dict[str, Path] = {}
    try:
        first = FIRST + (os.getpid() % 1024) * 4 * SUBIDS + "ab".index(letter) * SUBIDS
        span = f"{first}-{first + SUBIDS - 1}"
        run("usermod", "--add-subuids", span, "--add-subgids", span, name)
        user = pwd.getpwnam(name)
        (folder / "home").mkdir(mode=0o700)
        os.chown(folder / "home", user.pw_uid, user.pw_gid)
        groups.update(handed_over(name, user))
        made = UserLab(folder, -1, name=name, uid=user.pw_uid, gid=user.pw_gid, first_id=first, groups=groups)
        yield made
        for pid in made.processes():
            os.kill(pid, 9)
    finally:
        for group in groups.values():
            for path in sorted(group.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            group.rmdir()
        run("userdel", name)
        shutil.rmtree(folder, ignore_errors=True)


def handed_over(name: str, user: pwd.struct_passwd) -> Iterator[tuple[str, Path]]:
    """A directory of the user's in each tree that there is."""
    v1, v2 = parse_trees(Path("/proc/self/mountinfo").read_text())
    places = {tree: v1[tree] for tree in NEEDED if tree in v1}
    if v2 is not None:
        places["v2"] = v2
    for tree, place in places.items():
        folder = place / name
        folder.mkdir()
        if tree == "v2":
            held = {*NEEDED} & {*(folder / "cgroup.controllers").read_text().split()}
            (folder / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in held))
        else:
            for path in (folder, folder / "cgroup.procs"):
                os.chown(path, user.pw_uid, user.pw_gid)
        yield tree, folder


def run(*argv: str) -> None:
    """A command that must succeed."""
    subprocess.run(argv, check=True, capture_output=True, timeout=60)

