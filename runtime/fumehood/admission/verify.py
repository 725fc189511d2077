"""Is this a call that could run at all, of a tool whose definition was accepted? Pure, but for looking its image up.

The ledger judges the pin in the transaction that opens the record, so that no acceptance or change comes between the two; here it
becomes a refusal, which the record then tells of.
"""

from __future__ import annotations

from fumehood.model import Deny, Kind, PinState, Scope, ToolCall, Verified, WorkspaceMode
from fumehood.ports import Images
from fumehood.reasons import Reason

_UNPINNED = {
    PinState.NEW: Reason.TOOL_UNREVIEWED,
    PinState.CHANGED: Reason.TOOL_CHANGED,
    PinState.REJECTED: Reason.TOOL_REJECTED,
}


def check(call: ToolCall, images: Images, pin: PinState | None = None) -> Verified | Deny:
    """The call with its image found, or why it cannot run. `pin` is what the ledger said of `call.pin` as it opened the record."""
    if (denied := _unpinned(call, pin)) is not None:
        return denied
    profile = call.profile
    if profile.upstream is None and not profile.image:
        return Deny(
            reason=Reason.BAD_REQUEST, rule="profile.remote",
            detail=f"the profile {profile.name} is for remote servers and has no image to run anything in",
            remedy="Name a profile with an `image`, or give the server an `upstream`.",
        )  # fmt: skip
    if call.session is not None and profile.scope is not Scope.SESSION:
        return Deny(
            reason=Reason.BAD_REQUEST, rule="profile.scope", detail=f"the profile {profile.name} keeps no sessions",
            remedy="Use `scope: session`.",
        )  # fmt: skip
    ahead = call.standby is not None or call.kind is Kind.STANDBY
    if ahead and (not profile.pool.started or profile.filesystem.workspace is not WorkspaceMode.NONE):
        return Deny(
            reason=Reason.BAD_REQUEST, rule="profile.pool", detail=f"servers of the profile {profile.name} do not stand by",
            remedy="Use `pool: {started: N}`, without a workspace.",
        )  # fmt: skip
    needs_directory = profile.filesystem.workspace in {WorkspaceMode.RO, WorkspaceMode.DIRECT}
    if needs_directory and call.workspace_fd is None:
        return Deny(reason=Reason.WORKSPACE_MISSING, rule="profile.filesystem.workspace")
    if profile.filesystem.workspace is WorkspaceMode.NONE and call.workspace_fd is not None:
        return Deny(
            reason=Reason.WORKSPACE_NOT_ALLOWED, rule="profile.filesystem.workspace",
            detail=f"the profile {profile.name} gives its tools no workspace",
            remedy="Leave --workspace out, or allow one in the profile.",
        )  # fmt: skip
    if profile.upstream is not None:
        return Verified(call=call, image=None)
    image = images.resolve(profile.image)
    if image is None:
        return Deny(
            reason=Reason.IMAGE_MISSING, rule="profile.image", detail=f"the image {profile.image} is not in the store",
            remedy=f"Build it: `fumehood image build {profile.image}`.",
        )  # fmt: skip
    if call.image_digest is not None and call.image_digest != image.digest:
        return Deny(
            reason=Reason.TOOL_CHANGED, rule="pins.image",
            detail=f"the image {profile.image} is another than the one that the server's list was read from",
            remedy="Call again: the list is read anew.",
        )  # fmt: skip
    return Verified(call=call, image=image)


def _unpinned(call: ToolCall, pin: PinState | None) -> Deny | None:
    """Why a tool may not be called by this definition. Whoever serves tools of strangers says which definition it was."""
    if call.pin is None:
        if call.kind is Kind.TOOL and call.front_door == "gateway":
            return Deny(reason=Reason.TOOL_UNREVIEWED, rule="pins", detail="the call does not say by which definition it was judged")
        return None
    if pin is PinState.ACCEPTED:
        return None
    reason = _UNPINNED[pin or PinState.NEW]
    return Deny(reason=reason, rule="pins", detail=f"`{call.tool or '':.100}`: {reason.meaning}")
