"""Who a tool finds itself to be, on each engine: programs ask, and some give up when nobody knows their uid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import Lab, lab_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]
ASK = """
import ctypes, grp, json, os, pwd
def failed(work):
    try:
        work()
    except OSError as error:
        return error.strerror
mine = pwd.getpwuid(os.getuid())
libc = ctypes.CDLL(None, use_errno=True)
print(json.dumps({
    "name": mine.pw_name, "home": mine.pw_dir, "group": grp.getgrgid(os.getgid()).gr_name, "same": pwd.getpwnam("box") == mine,
    "root": pwd.getpwuid(0).pw_name, "others": len(pwd.getpwall()), "write": failed(lambda: open("/etc/passwd", "a")),
    "umount": libc.umount2(b"/etc/passwd", 2), "whoami": os.popen("whoami; id -gn").read().split(),
}))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_for("python", "u") as made:
        yield made


@pytest.fixture
def told(lab: Lab, engine: str) -> dict[str, Any]:
    done = lab.python(engine, ASK)
    assert done.status == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.told)
    return said


def test_a_tools_uid_and_gid_have_a_name_and_a_home(told: dict[str, Any]) -> None:
    assert (told["name"], told["group"], told["home"], told["same"]) == ("box", "box", "/tmp", True)
    assert told["whoami"] == ["box", "box"]


def test_the_images_own_users_are_still_known(told: dict[str, Any]) -> None:
    assert told["root"] == "root"
    assert told["others"] > 10


def test_a_tool_cannot_change_who_it_is(told: dict[str, Any]) -> None:
    assert told["write"] in {"Permission denied", "Read-only file system"}
    assert told["umount"] == -1
