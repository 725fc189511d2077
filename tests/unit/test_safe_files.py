"""Rule 6: files that anybody else could have written are not read."""

import os
from pathlib import Path

import pytest

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason
from fumehood.safe_files import inside, list_trusted, read_trusted

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to give files away")
STRANGER = 54321


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    folder.mkdir(mode=0o755)
    path = folder / "fumehood.yaml"
    path.write_text("boxes: 3\n")
    path.chmod(0o644)
    return path


def refused(path: Path) -> str:
    with pytest.raises(FumehoodError) as caught:
        read_trusted(path, os.getuid())
    assert caught.value.reason is Reason.CONFIG_UNSAFE
    return caught.value.detail


def test_a_file_of_ours_is_read(file: Path) -> None:
    assert read_trusted(file, os.getuid()) == "boxes: 3\n"
    assert list_trusted(file.parent, os.getuid()) == ["fumehood.yaml"]


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_can_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert "can be written by others" in refused(file)


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_parent_that_others_can_write_is_refused(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    assert str(file.parent) in refused(file)


def test_a_file_directly_in_a_sticky_folder_is_refused(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert "everybody can write" in refused(file)


@needs_root
def test_a_strangers_file_and_a_strangers_parent_are_refused(file: Path) -> None:
    os.chown(file, STRANGER, 0)
    assert f"belongs to uid {STRANGER}" in refused(file)
    os.chown(file, 0, 0)
    os.chown(file.parent, STRANGER, 0)
    assert f"{file.parent} belongs to uid {STRANGER}" in refused(file)
    with pytest.raises(FumehoodError):
        list_trusted(file.parent, 0)


@needs_root
def test_the_callers_own_file_is_read_for_the_caller_alone(file: Path) -> None:
    os.chown(file, STRANGER, 0)
    assert read_trusted(file, STRANGER) == "boxes: 3\n"
    with pytest.raises(FumehoodError):
        read_trusted(file, STRANGER + 1)


def test_a_link_is_followed_only_through_what_is_trusted(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to("conf/../conf/fumehood.yaml")
    assert read_trusted(link, os.getuid()) == "boxes: 3\n"
    absolute = tmp_path / "absolute"
    absolute.symlink_to(file.parent)
    assert read_trusted(absolute / "fumehood.yaml", os.getuid()) == "boxes: 3\n"
    file.parent.chmod(0o777)
    refused(link)
    refused(absolute / "fumehood.yaml")


@needs_root
def test_a_strangers_link_is_refused(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    os.chown(link, STRANGER, 0, follow_symlinks=False)
    assert "belongs to uid" in refused(link)


def test_loops_fifos_and_folders_are_refused_without_waiting(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert "too many links" in refused(loop)
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "not a regular file" in refused(tmp_path / "fifo")
    assert "is not a file" in refused(tmp_path)


def test_missing_files_are_missing(file: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "x", file / "x"):
        with pytest.raises(FileNotFoundError):
            read_trusted(path, os.getuid())
    assert list_trusted(tmp_path / "none", os.getuid()) == []


def test_size_and_text_are_bounded(file: Path) -> None:
    for data in (b"#" * 300_000, b"\xff\xfe"):
        file.write_bytes(data)
        with pytest.raises(FumehoodError) as caught:
            read_trusted(file, os.getuid())
        assert caught.value.reason is Reason.CONFIG_INVALID


def test_no_descriptor_is_left_open(file: Path) -> None:
    before = os.listdir("/proc/self/fd")
    read_trusted(file, os.getuid())
    list_trusted(file.parent, os.getuid())
    file.chmod(0o666)
    refused(file)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    ("path", "folder", "is_inside"),
    [
        ("/w", "/w", True),
        ("/w/a/b", "/w", True),
        ("/w/../etc", "/w", False),
        ("/work", "/w", False),
        ("/", "/w", False),
        ("/w/./a", "/w/", True),
    ],
)
def test_inside(path: str, folder: str, is_inside: bool) -> None:
    assert inside(path, folder) is is_inside
