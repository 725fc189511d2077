"""The box in which strangers' bytes are handled while images are made."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fumehood.faults import FumehoodError
from fumehood.image.fetch import Fetcher
from fumehood.image.namespace import Bind, Box, run_in, stream_from, work_in
from fumehood.image.owners import MAPPED, Owners, owners
from fumehood.image.store import ImageStore
from fumehood.reasons import Reason
from fumehood.state import state_folder

pytestmark = pytest.mark.root


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other ids can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def root() -> Path:
    store = ImageStore(state_folder(os.environ, 0).images)
    image = store.resolve("base")
    assert image is not None, "scripts/build-images makes it"
    return store.rootfs(image.digest)


def printed(box: Box, folder: Path, *argv: str) -> str:
    with (folder / "log").open("wb") as log:
        status = run_in(box, argv, {"PATH": "/usr/bin:/bin"}, log.fileno())
    text = (folder / "log").read_text()
    assert status == 0, text
    return text


def test_work_has_mapped_ids_no_link_and_only_its_folder(folder: Path) -> None:
    (folder / "inside").touch()

    def work() -> str:
        links = [name for _, name in socket.if_nameindex()]
        return repr((os.getuid(), os.getgroups(), [path.name for path in Path("/").iterdir()], os.getpid(), links))

    said = work_in(Box(root=folder, owners=owners(), system=False), work)
    assert said == repr((0, [], ["inside"], 1, ["lo"]))


def test_a_program_sees_no_host_network_processes_or_privilege(folder: Path, root: Path) -> None:
    box = Box(root=root, owners=owners(), read_only=True)
    script = "cat /proc/self/uid_map /proc/net/dev; ls /proc | grep -c '^[0-9]'; grep NoNewPrivs /proc/self/status"
    said = printed(box, folder, "sh", "-c", script)
    assert said.split()[:3] == ["0", str(owners().start), str(MAPPED)]
    links = [line.split(":")[0].strip() for line in said.splitlines() if line.count(" 0 ") > 5]
    assert links == ["lo"]
    assert int(said.splitlines()[-2]) <= 5
    assert said.splitlines()[-1].split() == ["NoNewPrivs:", "1"]


def test_a_read_only_root_cannot_be_written_or_remounted(folder: Path, root: Path) -> None:
    box = Box(root=root, owners=owners(), read_only=True)
    said = printed(
        box, folder, "sh", "-c", "touch /x || mount -o remount,rw / || mount -o bind,remount,rw / || echo held"
    )
    assert said.splitlines()[-1] == "held"
    assert not (root / "x").exists()


def test_a_program_can_create_over_dev_null(folder: Path, root: Path) -> None:
    # In a sticky /dev the kernel refuses O_CREAT of a node whose owner is neither the folder's nor the caller's.
    box = Box(root=root, owners=owners(), read_only=True)
    assert printed(box, folder, "sh", "-ec", "echo lost > /dev/null; echo kept") == "kept\n"


def test_a_bind_over_a_link_is_refused(folder: Path) -> None:
    (folder / "root").mkdir()
    (folder / "root" / "mnt").symlink_to("/etc")
    box = Box(root=folder / "root", owners=owners(), binds=(Bind(source=folder, target="mnt"),), system=False)
    with pytest.raises(FumehoodError) as caught:
        work_in(box, lambda: "reached")
    assert caught.value.reason is Reason.IMAGE_BUILD_FAILED


def test_files_made_in_a_box_belong_to_slot_zero(folder: Path) -> None:
    os.chown(folder, owners().start, owners().start)
    work_in(Box(root=folder, owners=owners(), system=False), lambda: Path("/made").write_text("x") and "")
    assert (folder / "made").stat().st_uid == owners().start


def test_a_refusal_inside_comes_out_printable(folder: Path) -> None:
    def work() -> str:
        raise FumehoodError(Reason.IMAGE_UNSAFE, "bad \x1b[31m\n name")

    with pytest.raises(FumehoodError) as caught:
        work_in(Box(root=folder, owners=owners(), system=False), work)
    assert (caught.value.reason, caught.value.detail) == (Reason.IMAGE_UNSAFE, "bad ?[31m? name")


@pytest.mark.parametrize("end", [lambda: os._exit(0), lambda: sys.exit(0), lambda: 1 / 0])
def test_work_that_ends_otherwise_has_failed(folder: Path, end: object) -> None:
    with pytest.raises(FumehoodError) as caught:
        work_in(Box(root=folder, owners=owners(), system=False), end)  # type: ignore[arg-type]  # on purpose
    assert caught.value.reason is Reason.IMAGE_BUILD_FAILED


def test_a_stream_that_nobody_reads_to_its_end_ends(folder: Path) -> None:
    box = Box(root=folder, owners=owners(), system=False)

    def endless(out: IO[bytes]) -> None:
        while True:
            out.write(bytes(2**20))

    def read_a_little() -> None:
        with stream_from(box, endless) as stream:
            assert len(stream.read(10)) == 10
            raise KeyError

    with pytest.raises(KeyError):
        read_a_little()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_no_descriptor_is_left_behind(folder: Path) -> None:
    box = Box(root=folder, owners=owners(), system=False)
    before = len(list(Path("/proc/self/fd").iterdir()))
    work_in(box, lambda: "")
    with stream_from(box, lambda out: out.write(b"x") and None) as stream:
        assert stream.read() == b"x"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def fetcher(folder: Path) -> Fetcher:
    for name in ("cache", "scratch"):
        (folder / name).mkdir()
    return Fetcher(folder / "cache", folder / "scratch", owners(), {"PIP_INDEX_URL": "x", "SECRET": "y"})


def test_fetching_runs_as_an_id_that_owns_nothing_and_can_become_nobody(folder: Path) -> None:
    done = fetcher(folder).ask(["sh", "-c", "id -u; id -G; env; cat /proc/self/status"], cwd=folder)
    said = done.stdout.splitlines()
    assert said[:2] == [str(owners().fetcher)] * 2
    assert "PIP_INDEX_URL=x" in said
    assert "SECRET=y" not in said
    status = dict(line.split(":\t", 1) for line in said if ":\t" in line)
    assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


def test_root_does_not_read_what_a_fetched_link_points_at(folder: Path) -> None:
    fetching = fetcher(folder)
    (folder / "scratch" / "x.whl").symlink_to("/etc/shadow")
    with pytest.raises(OSError, match="symbolic"):
        fetching.keep(folder / "scratch" / "x.whl")
    os.mkfifo(folder / "scratch" / "y.whl")
    with pytest.raises(FumehoodError, match="no file"):
        fetching.keep(folder / "scratch" / "y.whl")


@pytest.mark.parametrize(
    ("uids", "gids"),
    [
        ("", ""),
        ("fumehood:5000:65536", ""),
        ("fumehood:100000:65536", "fumehood:200000:65536"),
        ("fumehood:100000:1", "fumehood:100000:1"),
    ],
)
def test_a_host_without_a_pool_is_refused_by_name(tmp_path: Path, uids: str, gids: str) -> None:
    (tmp_path / "subuid").write_text(uids)
    (tmp_path / "subgid").write_text(gids)
    with pytest.raises(FumehoodError, match="install-host"):
        owners(tmp_path)


def test_the_pool_is_read_from_subuid(tmp_path: Path) -> None:
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("other:1:2\nfumehood:100000:65536\n")
    assert owners(tmp_path) == Owners(100_000)
