"""The sources of a profile's read-only mounts: below an allowed root, and never of the state folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxlike import settings_for
from fumehood.broker.directory import SOURCE_FILE_BYTES, open_source
from fumehood.faults import Refused
from fumehood.reasons import Reason


def refused(path: Path, folder: Path, *roots: Path) -> bool:
    settings = settings_for(folder, mount_roots=tuple(map(str, roots)))
    try:
        os.close(open_source(str(path), settings))
    except Refused as error:
        assert error.reason is Reason.WORKSPACE_NOT_ALLOWED
        return True
    return False


def test_a_source_lies_below_an_allowed_root(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "data2"
    data.mkdir()
    other.mkdir()
    assert not refused(data, tmp_path, data)
    assert refused(data, tmp_path)
    assert refused(other, tmp_path, data)


def test_a_link_below_an_allowed_root_does_not_lead_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to("/etc")
    assert refused(data / "link", tmp_path, data)
    assert refused(data / "nowhere", tmp_path, data)


@pytest.mark.parametrize("path", ["/", "/proc", "/dev", "STATE"])
def test_no_root_opens_the_hosts_own_directories(tmp_path: Path, path: str) -> None:
    real = Path(path.replace("STATE", str(tmp_path / "state")))
    assert refused(real, tmp_path, Path("/"))


def test_a_file_may_be_a_source_and_what_lies_beside_it_is_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "one.py").write_text("x = 1")
    (data / "two.py").write_text("x = 2")
    assert not refused(data / "one.py", tmp_path, data / "one.py")
    assert refused(data / "two.py", tmp_path, data / "one.py")
    assert refused(data, tmp_path, data / "one.py")


def test_a_fifo_a_device_or_a_huge_file_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(SOURCE_FILE_BYTES + 1)
    assert refused(tmp_path / "fifo", tmp_path, tmp_path)
    assert refused(tmp_path / "huge", tmp_path, tmp_path)
