"""What revokes a token is at rest only where the ledger's key opens it, and only for the lease it was sealed for."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fumehood import sealing
from fumehood.faults import FumehoodError, LedgerGone
from fumehood.sealing import FILE, SweepKey, seal

PARTS = {"token": "canary-93ab"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_what_is_sealed_opens_for_its_lease_alone(folder: Path) -> None:
    key = SweepKey(folder)
    assert "d" not in key.public
    shut = seal(key.public, "lease-1", PARTS)
    assert "canary" not in shut
    assert key.unseal("lease-1", shut) == PARTS
    assert SweepKey(folder).unseal("lease-1", shut) == PARTS
    for lease, text in (("lease-2", shut), ("lease-1", shut[:-4] + "AAAA"), ("lease-1", "x.y.z"), ("lease-1", "")):
        with pytest.raises(FumehoodError) as error:
            key.unseal(lease, text)
        assert "canary" not in str(error.value)


def test_another_key_does_not_open_it(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shut = seal(SweepKey(folder).public, "l", PARTS)
    with pytest.raises(FumehoodError):
        SweepKey(tmp_path_factory.mktemp("other")).unseal("l", shut)


def test_an_algorithm_of_the_senders_choosing_is_refused(folder: Path) -> None:
    from joserfc import jwe
    from joserfc.jwk import OctKey

    key = SweepKey(folder)
    foreign = jwe.encrypt_compact({"alg": "dir", "enc": "A128GCM", "kid": "l"}, "{}", OctKey.import_key(b"0" * 16), algorithms=["dir", "A128GCM"])
    with pytest.raises(FumehoodError):
        key.unseal("l", foreign)


def test_the_key_is_0600_whatever_the_umask_and_shown_by_nothing(folder: Path) -> None:
    before = os.umask(0)
    try:
        key = SweepKey(folder)
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    private = (folder / FILE).read_text().split('"d": "')[1].split('"')[0]
    assert private not in f"{key!r}{key.public}"


def test_a_key_that_others_can_read_a_link_or_garbage_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    SweepKey(other)
    (folder / FILE).symlink_to(other / FILE)
    with pytest.raises(LedgerGone):
        SweepKey(folder)
    (folder / FILE).unlink()
    (folder / FILE).write_bytes((other / FILE).read_bytes())
    (folder / FILE).chmod(0o644)
    with pytest.raises(LedgerGone):
        SweepKey(folder)
    (folder / FILE).chmod(0o600)
    (folder / FILE).write_text("canary garbage")
    with pytest.raises(LedgerGone) as error:
        SweepKey(folder)
    assert "canary" not in str(error.value)


def test_ledgers_that_start_together_agree_on_one_key(folder: Path) -> None:
    code = "import sys, pathlib; from fumehood.sealing import SweepKey; print(SweepKey(pathlib.Path(sys.argv[1])).public['x'])"
    env = {**os.environ, "PYTHONPATH": str(Path(sealing.__file__).parents[1])}
    argv = [sys.executable, "-c", code, str(folder)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    (said,) = {process.communicate(timeout=30)[0] for process in running}
    assert said.strip() == SweepKey(folder).public["x"]
    assert [path.name for path in folder.iterdir()] == [FILE]
