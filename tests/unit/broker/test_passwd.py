"""The two files that name a box's uid: what is in them, whatever an image has in their place. Real mounts, as root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxlike import BOX, HELPER, in_own_mounts, needs_root, other_mounts, passable
from fumehood.broker import mounting, passwd
from fumehood.broker.enter import enter
from fumehood.broker.passwd import name_uid

OURS = f"box:x:{BOX}:{BOX}::/tmp:/bin/sh\n"

pytestmark = needs_root


def _seen(root: Path, folder: Path) -> str:
    """The passwd file that a box of this image gets."""
    covers = name_uid(root, BOX, folder / "made")
    assert not (folder / "made").exists()
    assert [cover.place for cover in covers] == ["/etc/passwd", "/etc/group"]
    file = folder / "file"
    file.touch()
    mounting.attach(covers[0].fd, str(file))
    try:
        line = next(line for line in Path("/proc/thread-self/mountinfo").read_text().splitlines() if str(file) in line)
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
        return file.read_text()
    finally:
        mounting.unmount_all(str(file))
        for cover in covers:
            os.close(cover.fd)


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = passable(tmp_path_factory.mktemp("image"))
    (made / "etc").mkdir()
    return made


@in_own_mounts
def test_the_boxs_uid_comes_first_and_the_images_users_stay(root: Path, tmp_path: Path) -> None:
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nbox:x:1000:1000::/tmp:/bin/sh\n")
    assert _seen(root, tmp_path) == OURS + "root:x:0:0::/root:/bin/sh\nbox:x:1000:1000::/tmp:/bin/sh\n"


@pytest.mark.parametrize("image", ["a symlink", "a symlinked folder", "a fifo", "a folder", "missing", "large", "no root"])
@in_own_mounts
def test_an_image_whose_passwd_is_no_plain_file_gives_nothing_of_the_hosts(root: Path, tmp_path: Path, image: str) -> None:
    place = root / "etc" / "passwd"
    match image:
        case "a symlink":
            place.symlink_to("/etc/shadow")
        case "a symlinked folder":
            (root / "etc").rmdir()
            (root / "etc").symlink_to("/etc")
        case "a fifo":
            os.mkfifo(place)
        case "a folder":
            place.mkdir()
        case "large":
            place.write_text("x" * 70_000)
        case "no root":
            root = root / "absent"
    assert _seen(root, tmp_path) == OURS


@in_own_mounts
def test_a_link_in_the_box_is_not_followed_and_stays(root: Path, tmp_path: Path) -> None:
    if not HELPER.exists():
        pytest.skip("needs ./scripts/setup: the static programs are built there")
    (tmp_path / "elsewhere").write_text("another's")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "plain").write_text("the image's")
    lines = {str(tmp_path / name): "box:{id}\n" for name in ("link", "plain")}
    with pytest.MonkeyPatch.context() as patched, other_mounts() as pidfd:
        patched.setattr(passwd, "_FILES", lines)
        covers = name_uid(root, BOX, tmp_path / "made")
        assert enter(HELPER, pidfd, covers, user_namespace=False) == [str(tmp_path / "link")]
        mounts = Path(f"/proc/{_pid_of(pidfd)}/mountinfo").read_text()
        for cover in covers:
            os.close(cover.fd)
    assert f"/plain {tmp_path}/plain " in mounts
    assert "elsewhere" not in mounts


def _pid_of(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
