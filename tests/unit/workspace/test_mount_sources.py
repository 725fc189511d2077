"""The sources of a profile's read-only mounts: below an allowed root, and never of the state folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxlike import settings_for
from fumehood.broker.directory import open_source
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
