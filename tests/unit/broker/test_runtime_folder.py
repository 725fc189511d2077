from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fumehood.broker import host


@contextmanager
def written_to(folder: Path) -> Iterator[threading.Event]:
    """A container's runtime that has not ended yet: it writes its state again, whatever was removed of it."""
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            try:
                folder.mkdir(exist_ok=True)
                (folder / str(number)).touch()
            except OSError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield over
    finally:
        over.set()
        writer.join()


def runtime(place: Path) -> Path:
    folder = place / "r"
    (folder / "state" / "container").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "link").symlink_to(place)
    return folder


def test_a_folder_that_is_still_written_to_is_emptied_until_it_is_gone(tmp_path: Path) -> None:
    folder = runtime(tmp_path)
    with written_to(folder / "state" / "container") as over:
        threading.Timer(0.2, over.set).start()
        host.remove_folder(folder)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_removed_keeps_the_lock_by_which_a_sweep_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_EMPTYING_S", 0.1)
    monkeypatch.setattr(host.shutil, "rmtree", lambda *_args, **_given: None)
    folder = runtime(tmp_path)
    host.remove_folder(folder)
    assert (folder / "lock").exists()
