"""From a grant to a plan. Pure: tests compare the whole of what comes out.

The frame holds what profile and image alone decide, so that a box made ahead equals one made on demand; the binding
holds what is the call's own.
"""

from __future__ import annotations

from fumehood.model import Binding, Deny, Frame, Fresh, Kind, Plan, ToolCall, WorkspaceMode


def plan(fresh: Fresh) -> Plan | Deny:
    """What the broker will be asked for this grant."""
    verified = fresh.grant.verdict.verified
    call, image = verified.call, verified.image
    profile = call.profile
    limits = profile.limits
    mode = profile.filesystem.workspace
    if mode is WorkspaceMode.RW and call.workspace_fd is None:
        mode = WorkspaceMode.SCRATCH  # `rw` means the directory given, where one is given
    return Plan(
        grant=fresh.grant,
        frame=None if image is None else Frame(
            image=image.digest,
            docker_image=image.docker_id,
            engine=profile.engine,
            runtime=profile.runtime,
            cpu=limits.cpu,
            memory_bytes=limits.memory_bytes,
            pids=limits.pids,
            open_files=limits.open_files,
            tmp_bytes=limits.tmp_bytes,
            seccomp=profile.seccomp,
            user_namespace=profile.user_namespace,
            accept_risk=profile.accept_risk,
        ),
        binding=Binding(
            workspace=mode,
            workspace_fd=call.workspace_fd,
            workspace_path=call.workspace_path,
            disk_bytes=limits.disk_bytes,
            disk_unlimited=limits.disk_unlimited,
            mounts=profile.filesystem.mounts,
            wall_s=_wall_s(call),
        ),
    )


def _wall_s(call: ToolCall) -> float:
    """How long the box may run. It stands still between calls, and that does not count; each call in it has a `wall` of its own."""
    wall_s = call.profile.limits.wall_s
    match call.kind:
        case Kind.SESSION:
            return call.profile.session.lifetime_s
        case Kind.STANDBY:
            return 2 * wall_s  # the server's start, and the one call
    return wall_s
