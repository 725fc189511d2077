"""The read side of the image store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fumehood.image.store import ImageStore, write_whole
from fumehood.reach import JAVA_STORES

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    folder = tmp_path / DIGEST.replace(":", "-")
    folder.mkdir()
    about = {"name": "python", "digest": DIGEST, "docker_id": "sha256:1", "created": "2026-01-01T00:00:00Z"}
    (folder / "image.json").write_text(json.dumps(about))
    (tmp_path / "names").mkdir()
    for name in ("python", "py"):
        (tmp_path / "names" / name).write_text(DIGEST + "\n")
    return ImageStore(tmp_path)


def test_an_image_is_found_by_each_name_and_by_digest(store: ImageStore) -> None:
    for asked, name in (("python", "python"), ("py", "py"), (DIGEST, "python")):
        image = store.resolve(asked)
        assert image is not None
        assert (image.name, image.digest, image.docker_id) == (name, DIGEST, "sha256:1")


@pytest.mark.parametrize("place", JAVA_STORES)
def test_an_image_with_a_java_says_where_its_trust_store_is(store: ImageStore, place: str) -> None:
    alone = store.resolve("python")
    assert alone is not None
    assert alone.java_store is None
    file = Path(f"{store.rootfs(DIGEST)}{place}")
    file.parent.mkdir(parents=True)
    file.touch()
    image = store.resolve("python")
    assert image is not None
    assert image.java_store == place


@pytest.mark.parametrize(
    "asked",
    ["node", "", ".", "../names/python", "names/python", "Python", "sha256:../..", "sha256:ab", "py\n", "a" * 65],
)
def test_what_is_no_name_or_digest_of_the_store_is_nothing(store: ImageStore, asked: str) -> None:
    assert store.resolve(asked) is None


def test_a_name_file_cannot_lead_out_of_the_store(store: ImageStore) -> None:
    (store.folder / "names" / "evil").write_text("../../etc")
    assert store.resolve("evil") is None


def test_a_name_without_its_image_is_nothing(store: ImageStore) -> None:
    (store.folder / "names" / "gone").write_text("sha256:" + "00" * 32)
    assert store.resolve("gone") is None


def test_the_list_has_each_image_once_with_its_names(store: ImageStore) -> None:
    (store.folder / ".staging-x").mkdir()
    (image,) = store.list()
    assert image.names == ("py", "python")


def test_an_absent_store_is_empty(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "nothing")
    assert store.list() == ()
    assert store.resolve("python") is None


def test_the_root_is_named_by_digest_only(store: ImageStore) -> None:
    assert store.rootfs(DIGEST) == store.folder / DIGEST.replace(":", "-") / "rootfs"
    with pytest.raises(ValueError, match="not an image digest"):
        store.rootfs("../../etc")


def test_files_are_replaced_whole_and_are_world_readable(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", "one")
    write_whole(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "two"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
