"""Files that a box is supplied with: what is refused, and what a box's uid sees of them. Real mounts, as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boxlike import BOX, HELPER, as_uid, in_own_mounts, needs_root, other_mounts, passable
from fumehood.broker import mounting, supplies
from fumehood.broker.supplies import Supplied, make_supply
from fumehood.faults import BoxFailed, Refused
from fumehood.memory import Memory
from fumehood.reasons import Reason

FILES = (("fumehood/ca.pem", b"an authority", "/etc/ssl/cert.pem"), ("secrets/a/key", b"secret", None), ("secrets/empty", b"", None))
LOOK = """
for top, folders, names in os.walk('.'):
    for name in sorted(names):
        path = os.path.join(top, name)
        print(path, oct(os.stat(path).st_mode & 0o7777), os.stat(path).st_uid == os.getuid(), open(path).read())
"""
NOSWAP_REFUSED = "tmpfs: Turning off swap in unprivileged tmpfs mounts unsupported"

pytestmark = needs_root


def told(files: tuple[tuple[str, bytes, str | None], ...] = FILES) -> tuple[tuple[Supplied, ...], Memory]:
    contents = Memory(b"".join(content for _, content, _ in files)).seal()
    return tuple(Supplied(name=name, size_bytes=len(content), over=over) for name, content, over in files), contents


@contextmanager
def seen_at(mount_fd: int, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    mounting.attach(mount_fd, str(place))
    try:
        yield place
    finally:
        mounting.unmount_all(str(place))


@in_own_mounts
def test_only_the_boxs_uid_reads_them_and_nobody_writes(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = passable(tmp_path_factory.mktemp("supplies"))
    files, contents = told()
    with contents:
        supply = make_supply(files, contents.fd, box_uid=BOX, folder=folder / "made")
    assert not (folder / "made").exists()
    assert supply.facts["files"] == ["fumehood/ca.pem", "secrets/a/key", "secrets/empty"]
    with seen_at(supply.mount_fd, folder / "view") as view:
        assert sorted(line.strip() for line in as_uid(BOX, view, LOOK).splitlines()) == [
            "./fumehood/ca.pem 0o400 True an authority", "./secrets/a/key 0o400 True secret", "./secrets/empty 0o400 True",
        ]  # fmt: skip
        assert as_uid(BOX + 1, view, "print(os.listdir('.'))\ntry: os.listdir('secrets')\nexcept OSError as e: print(e.errno)").endswith("13")
        with pytest.raises(OSError, match="Read-only"):
            (view / "fumehood" / "new").touch()  # not even root
        line = next(line for line in Path("/proc/thread-self/mountinfo").read_text().splitlines() if str(view) in line)
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    with (folder / "file").open("w") as file:
        file.write("the image's own")
    mounting.attach(supply.covers["/etc/ssl/cert.pem"][1], str(folder / "file"))
    assert (folder / "file").read_text() == "an authority"
    mounting.unmount_all(str(folder / "file"))
    supply.close()


def test_what_comes_in_no_sealed_memory_of_its_length_is_refused(tmp_path: Path) -> None:
    files, contents = told()
    (tmp_path / "plain").write_bytes(bytes(contents.size))
    plain = os.open(tmp_path / "plain", os.O_RDONLY)
    reading, writing = os.pipe()
    with contents, Memory(bytes(contents.size)) as unsealed, Memory(bytes(contents.size + 1)).seal() as longer:
        for fd in (plain, reading, unsealed.fd, longer.fd):
            with pytest.raises(Refused) as refused:
                make_supply(files, fd, box_uid=BOX, folder=tmp_path / "made")
            assert refused.value.reason is Reason.BAD_REQUEST
    for fd in (plain, reading, writing):
        os.close(fd)


@in_own_mounts
def test_a_secret_that_could_be_swapped_out_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("swap")
    honest, asked = mounting.make_filesystem, []

    def without_noswap(kind: str, options: list[tuple[str, str | None]], attributes: int) -> int:
        asked.append(dict(options))
        if ("noswap", None) in options:
            raise OSError(22, NOSWAP_REFUSED)
        return honest(kind, options, attributes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mounting, "make_filesystem", without_noswap)
        for lines, refused in (("Filename Type\n/dev/sda2 partition\n", True), ("Filename Type\n", False)):
            (folder / "swaps").write_text(lines)
            patched.setattr(supplies, "_SWAPS", folder / "swaps")
            files, contents = told()
            with contents:
                if refused:
                    with pytest.raises(Refused) as found:
                        make_supply(files, contents.fd, box_uid=BOX, folder=folder / "made")
                    assert found.value.reason is Reason.UNENFORCEABLE
                    with Memory(FILES[0][1]).seal() as alone:
                        public = make_supply(files[:1], alone.fd, box_uid=BOX, folder=folder / "made")
                    assert public.facts["swapped"] == "may be"
                    public.close()
                else:
                    supply = make_supply(files, contents.fd, box_uid=BOX, folder=folder / "made")
                    assert supply.facts["swapped"] == "no swap"
                    supply.close()
    assert "noswap" in asked[0]


@pytest.mark.parametrize("run", ["a symlink", "missing", "a file", "a directory"])
@in_own_mounts
def test_an_image_whose_run_is_no_plain_directory_is_refused(tmp_path_factory: pytest.TempPathFactory, run: str) -> None:
    if not HELPER.exists():
        pytest.skip("needs ./scripts/setup: the static programs are built there")
    folder = tmp_path_factory.mktemp("run")
    place, bundle, link = folder / "run", folder / "bundle.crt", folder / "link.pem"
    (folder / "elsewhere").mkdir()
    bundle.write_text("the image's own")
    link.symlink_to(bundle)
    if run == "a symlink":
        place.symlink_to(folder / "elsewhere")
    elif run == "a file":
        place.touch()
    elif run == "a directory":
        place.mkdir()
    over = [str(bundle), str(link), str(folder / "absent")]
    files, contents = told(tuple((f"fumehood/{number}", b"x", path) for number, path in enumerate(over)))
    with pytest.MonkeyPatch.context() as patched, other_mounts() as pidfd, contents:
        patched.setattr(supplies, "PLACE", str(place))
        supply = make_supply(files, contents.fd, box_uid=BOX, folder=folder / "made")
        if run == "a directory":
            assert supply.attach(HELPER, pidfd) == {str(place): "/", str(bundle): "/fumehood/0"}
        else:
            with pytest.raises(BoxFailed, match="no plain directory") as failed:
                supply.attach(HELPER, pidfd)
            assert failed.value.remedy is not None
        supply.close()
    assert os.listdir(folder / "elsewhere") == []
    assert bundle.read_text() == "the image's own"
