"""What a user's host refuses by name, and how it shares out ids. The boxes themselves: `tests/security/test_without_root.py`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from boxlike import settings_for
from fumehood.broker.cgroups import Trees
from fumehood.broker.idmaps import IdMaps
from fumehood.broker.ids import BOX_UID, IdPool
from fumehood.broker.rootless import IDS, RootlessHost
from fumehood.faults import BoxFailed, FumehoodError, Refused
from fumehood.model import Binding, ReadOnlyMount, WorkspaceMode
from fumehood.reasons import Reason

BINDING = Binding(
    workspace=WorkspaceMode.NONE, workspace_fd=None, workspace_path=None, disk_bytes=2**20, disk_unlimited=False, mounts=(), wall_s=10
)


@pytest.fixture
def host(tmp_path: Path) -> RootlessHost:
    ids = IdPool(tmp_path, 1, 65_536, claims=tmp_path, marks=tmp_path, size=IDS)
    trees = Trees({}, None, frozenset())
    return RootlessHost(
        settings=settings_for(tmp_path), folder=tmp_path, trees=trees, ids=ids, mark=-1, devices=-1, init=tmp_path, helper=tmp_path,
        init_digest="", inotify_share=4, idmaps=IdMaps(),
    )  # fmt: skip


@pytest.mark.parametrize("mode", [WorkspaceMode.NONE, WorkspaceMode.SCRATCH])
def test_what_touches_no_host_file_is_bound(host: RootlessHost, mode: WorkspaceMode) -> None:
    host.check_binding(replace(BINDING, workspace=mode))


@pytest.mark.parametrize("mode", [WorkspaceMode.RW, WorkspaceMode.RO, WorkspaceMode.DIRECT])
def test_host_directories_are_refused(host: RootlessHost, mode: WorkspaceMode) -> None:
    with pytest.raises(Refused) as refused:
        host.check_binding(replace(BINDING, workspace=mode))
    assert refused.value.reason is Reason.UNENFORCEABLE
    assert f"workspace: {mode.value}" in refused.value.detail


def test_mounts_are_refused(host: RootlessHost) -> None:
    with pytest.raises(Refused) as refused:
        host.check_binding(replace(BINDING, mounts=(ReadOnlyMount(source="/usr", name="usr"),)))
    assert "mounts" in refused.value.detail


def test_gvisor_and_docker_are_refused(host: RootlessHost) -> None:
    for name, runtime in (("oci", "runsc"), ("docker", None)):
        with pytest.raises((BoxFailed, Refused)) as refused:
            host._engine(name, runtime)
        assert refused.value.reason is Reason.UNENFORCEABLE


def test_sixty_three_boxes_share_a_users_range_and_none_overlaps(tmp_path: Path) -> None:
    pool = IdPool(tmp_path / "ids", 1, 65_536, claims=tmp_path / "claims", marks=tmp_path / "marks", size=IDS)
    for folder in (pool.folder, pool.claims, pool.marks):
        folder.mkdir()
    (pool.marks / "r").touch()
    spans = sorted(pool.base(pool.take("r")) for _ in range(63))
    assert all(later - earlier == IDS for earlier, later in itertools.pairwise(spans))
    assert spans[0] > 0, "0 is the user"
    assert spans[-1] + IDS - 1 <= 65_536
    assert BOX_UID < IDS
    with pytest.raises(FumehoodError) as full:
        pool.take("r")
    assert full.value.reason is Reason.BUSY
