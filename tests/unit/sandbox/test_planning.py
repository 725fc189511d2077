"""A plan is frame and binding: the frame is the profile's and the image's alone, the binding the call's."""

from __future__ import annotations

from dataclasses import asdict, replace

import fakes
from fumehood.model import (
    Decision,
    Filesystem,
    Fresh,
    Grant,
    Image,
    Limits,
    Plan,
    ToolCall,
    Verdict,
    Verified,
    WorkspaceMode,
)
from fumehood.sandbox import plan

IMAGE = Image(name="python", digest="sha256:" + "2" * 64, docker_id="sha256:" + "3" * 64)


def planned(call: ToolCall) -> Plan:
    found = plan(Fresh(grant=Grant(verdict=Verdict(verified=Verified(call=call, image=IMAGE), decision=Decision.ALLOW, rule="r"))))
    assert isinstance(found, Plan)
    return found


def test_the_whole_frame_and_binding() -> None:
    call = fakes.call()
    limits = Limits(cpu=0.5, memory_bytes=64 * 2**20, pids=7, wall_s=3.0, disk_bytes=2**20, tmp_bytes=2**16, open_files=99)
    filesystem = Filesystem(workspace=WorkspaceMode.RO)
    profile = replace(call.profile, limits=limits, filesystem=filesystem, engine="oci", runtime="crun", accept_risk=("a",))
    made = planned(replace(call, profile=profile, workspace_fd=5, workspace_path="/data"))
    assert asdict(made.frame) == {
        "image": IMAGE.digest, "docker_image": IMAGE.docker_id, "engine": "oci", "runtime": "crun", "cpu": 0.5,
        "memory_bytes": 64 * 2**20, "pids": 7, "open_files": 99, "tmp_bytes": 2**16,
        "seccomp": {"name": "default", "default_errno": 1, "rules": ()},
        "user_namespace": "when-possible", "accept_risk": ("a",),
    }  # fmt: skip
    assert asdict(made.binding) == {
        "workspace": "ro", "workspace_fd": 5, "workspace_path": "/data", "disk_bytes": 2**20, "disk_unlimited": False,
        "mounts": (), "wall_s": 3.0,
    }  # fmt: skip


def test_two_calls_of_one_profile_share_their_frame_whatever_they_ask() -> None:
    one, other = fakes.call(), fakes.call()
    other = replace(other, profile=one.profile, tool="git_diff", arguments={"secret": "x"}, workspace_path="/elsewhere")
    assert planned(one).frame.digest == planned(other).frame.digest


def test_any_change_of_the_profile_that_shapes_the_box_changes_the_frame() -> None:
    call = fakes.call()
    base = planned(call).frame.digest
    for limits in (Limits(cpu=2), Limits(memory_bytes=2**26), Limits(pids=9), Limits(open_files=77), Limits(tmp_bytes=2**20)):
        assert planned(replace(call, profile=replace(call.profile, limits=limits))).frame.digest != base


def test_rw_without_a_directory_becomes_a_scratch() -> None:
    call = fakes.call()
    profile = replace(call.profile, filesystem=Filesystem(workspace=WorkspaceMode.RW))
    assert planned(replace(call, profile=profile)).binding.workspace is WorkspaceMode.SCRATCH
    assert planned(replace(call, profile=profile, workspace_fd=4)).binding.workspace is WorkspaceMode.RW
