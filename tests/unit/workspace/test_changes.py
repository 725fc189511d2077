from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.broker import changes as module
from fumehood.broker.changes import changes, leads_out


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("x", "y", False),
        ("x", "d/y", False),
        ("d/x", "../y", False),
        ("d/e/x", "../../y", False),
        ("x", "./y//z", False),
        ("x", ".", False),
        ("d/x", "..", False),
        ("x", "..", True),
        ("x", "../y", True),
        ("d/x", "../../y", True),
        ("x", "/etc/passwd", True),
        ("x", "/", True),
        ("x", "a/../y", True),
        ("x", "a/../../y", True),
    ],
)
def test_a_link_may_stay_and_not_lead_out(path: str, target: str, out: bool) -> None:
    assert (leads_out(path, target) is not None) is out


NAMES = st.sampled_from(["a", "b", "..", "."])


@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4), st.lists(NAMES, min_size=1, max_size=6))
def test_no_accepted_link_climbs_above_the_workspace(path: list[str], target: list[str]) -> None:
    if leads_out("/".join(path), "/".join(target)) is None:
        assert not os.path.normpath("/".join([*path[:-1], *target])).startswith("..")


def read(upper: Path, base: Path | None = None, most_bytes: int = 10**6) -> module.Changes:
    fds = [os.open(folder, os.O_RDONLY) for folder in (upper, base) if folder is not None]
    try:
        return changes(fds[0], fds[1] if base is not None else None, most_bytes=most_bytes)
    finally:
        for fd in fds:
            os.close(fd)


def test_files_are_told_with_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"abc")
    folder, file = read(tmp_path).files
    assert (folder.path, folder.kind) == ("d", "directory")
    assert (file.path, file.kind, file.size_bytes) == ("d/f", "added", 3)
    assert file.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_that_was_only_opened_for_writing_is_no_change(tmp_path: Path) -> None:
    for side in ("upper", "base"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "f").write_text("same")
        os.utime(tmp_path / side / "f", ns=(5, 5))
    assert read(tmp_path / "upper", tmp_path / "base").files == ()
    (tmp_path / "upper/f").write_text("else")
    os.utime(tmp_path / "upper/f", ns=(5, 5))
    assert [file.kind for file in read(tmp_path / "upper", tmp_path / "base").files] == ["modified"]


def test_too_many_changes_end_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGES", 3)
    for number in range(9):
        (tmp_path / str(number)).touch()
    found = read(tmp_path)
    assert len(found.steps) == 4
    assert found.refused == (("3", "more than 3 changes"),)


def test_too_many_bytes_end_the_walk_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**13)
    assert read(tmp_path).refused == (("sparse", "the changes are larger than 1000000 bytes"),)
