"""From a request to a grant: what is refused, and that nothing but an allowed call gets through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import fakes
from fumehood.admission import policy, verify
from fumehood.model import (
    Decision,
    Deny,
    Filesystem,
    Image,
    Kind,
    PinState,
    Pool,
    Scope,
    Sender,
    ToolCall,
    Verdict,
    Verified,
    WorkspaceMode,
)
from fumehood.policies.known import Booked
from fumehood.policies.policy import default
from fumehood.reasons import Reason

IMAGE = Image(name="python", digest="sha256:" + "2" * 64, docker_id=None)


class OneImage:
    def resolve(self, name: str) -> Image | None:
        return IMAGE if name == IMAGE.name else None


def call_with(workspace: WorkspaceMode, fd: int | None = None, **profile: object) -> ToolCall:
    call = fakes.call()
    changed = replace(call.profile, filesystem=Filesystem(workspace=workspace), **profile)
    return replace(call, profile=changed, workspace_fd=fd)


def verified(call: ToolCall) -> Verified:
    found = verify.check(call, OneImage())
    assert isinstance(found, Verified)
    return found


def judged(call: ToolCall) -> Verdict | Deny:
    return policy.evaluate(verified(call), default(), Booked(), owner_uid=0, now_s=1_000_000.0)


@pytest.mark.parametrize("mode", [WorkspaceMode.RO, WorkspaceMode.DIRECT])
def test_a_workspace_that_is_needed_and_not_given_is_refused(mode: WorkspaceMode) -> None:
    found = verify.check(call_with(mode), OneImage())
    assert isinstance(found, Deny)
    assert found.reason is Reason.WORKSPACE_MISSING


def test_a_workspace_given_to_a_profile_without_one_is_refused_not_ignored() -> None:
    found = verify.check(call_with(WorkspaceMode.NONE, fd=3), OneImage())
    assert isinstance(found, Deny)
    assert found.reason is Reason.WORKSPACE_NOT_ALLOWED


def test_rw_without_a_directory_is_a_scratch_and_fine() -> None:
    assert verified(call_with(WorkspaceMode.RW)).image == IMAGE


def test_a_missing_image_names_the_command_that_builds_it() -> None:
    found = verify.check(call_with(WorkspaceMode.NONE, image="nosuch"), OneImage())
    assert isinstance(found, Deny)
    assert found.reason is Reason.IMAGE_MISSING
    assert "fumehood image build nosuch" in found.line()


@pytest.mark.parametrize(
    ("pin", "reason"),
    [
        (None, Reason.TOOL_UNREVIEWED),
        (PinState.NEW, Reason.TOOL_UNREVIEWED),
        (PinState.CHANGED, Reason.TOOL_CHANGED),
        (PinState.REJECTED, Reason.TOOL_REJECTED),
        (PinState.ACCEPTED, None),
    ],
)
def test_only_an_accepted_pin_is_verified(pin: PinState | None, reason: Reason | None) -> None:
    found = verify.check(replace(call_with(WorkspaceMode.NONE), pin="sha256:" + "1" * 64), OneImage(), pin)
    assert (found.reason if isinstance(found, Deny) else None) == reason


def test_a_gateways_tool_without_a_pin_is_refused_and_a_handed_over_function_has_none() -> None:
    call = call_with(WorkspaceMode.NONE)
    assert isinstance(verify.check(replace(call, front_door="gateway"), OneImage()), Deny)
    assert isinstance(verify.check(replace(call, front_door="delegate"), OneImage()), Verified)


def test_a_list_read_from_another_image_speaks_for_no_call() -> None:
    found = verify.check(replace(call_with(WorkspaceMode.NONE), image_digest="sha256:" + "9" * 64), OneImage())
    assert isinstance(found, Deny)
    assert (found.reason, found.rule) == (Reason.TOOL_CHANGED, "pins.image")
    assert isinstance(verify.check(replace(call_with(WorkspaceMode.NONE), image_digest=IMAGE.digest), OneImage()), Verified)


def test_a_call_cannot_join_a_session_under_a_profile_that_keeps_none() -> None:
    found = verify.check(replace(call_with(WorkspaceMode.NONE), session="0" * 26), OneImage())
    assert isinstance(found, Deny)
    assert found.rule == "profile.scope"
    assert isinstance(verify.check(replace(call_with(WorkspaceMode.NONE, scope=Scope.SESSION), session="0" * 26), OneImage()), Verified)


@pytest.mark.parametrize(
    ("kind", "name", "allows"),
    [
        (Kind.PROMPT, "greet", {"prompts": frozenset({"greet"})}),
        (Kind.RESOURCE, "memo://one", {"resources": frozenset({"memo://one"})}),
        (Kind.RESOURCE, "file:///workspace/a/b", {"resources": frozenset({"file:///workspace/*"})}),
        (Kind.COMPLETION, "greet", {"completion": True}),
        (Kind.SESSION, None, {"scope": Scope.SESSION}),
    ],
)
def test_every_kind_of_call_needs_its_own_permission(kind: Kind, name: str | None, allows: dict[str, Any]) -> None:
    def of(**profile: Any) -> Verdict | Deny:
        return judged(replace(call_with(WorkspaceMode.NONE, **profile), kind=kind, tool=name))

    assert isinstance(of(**allows), Verdict)
    found = of(tools=None)
    assert isinstance(found, Deny)
    assert found.reason is Reason.NOT_ALLOWED


@pytest.mark.parametrize(
    "uri",
    [
        "file:///workspace/../etc/passwd",
        "file:///workspace/%2e%2e/etc/passwd",
        "file:///workspace/.%2E/etc/passwd",
        "file:///workspace/a%2f..%2f..%2fetc",
        "file:///workspace\\..\\x",
        "file:///workspac",
        "FILE:///workspace/a",
    ],
)
def test_a_uri_cannot_leave_the_beginning_that_is_allowed(uri: str) -> None:
    call = replace(
        call_with(WorkspaceMode.NONE, resources=frozenset({"file:///workspace/*"})), kind=Kind.RESOURCE, tool=uri
    )
    assert isinstance(judged(call), Deny)


@pytest.mark.parametrize("allowed", [frozenset[str](), frozenset({"git_diff"}), frozenset({"GIT_LOG", "git_log "})])
def test_a_tool_that_is_not_listed_exactly_is_denied(allowed: frozenset[str]) -> None:
    found = judged(call_with(WorkspaceMode.NONE, tools=allowed))
    assert isinstance(found, Deny)
    assert found.reason is Reason.TOOL_NOT_ALLOWED


@pytest.mark.parametrize("allowed", [None, frozenset({"git_log"})])
def test_a_listed_tool_is_allowed_and_granted(allowed: frozenset[str] | None) -> None:
    verdict = judged(call_with(WorkspaceMode.NONE, tools=allowed))
    assert isinstance(verdict, Verdict)
    assert verdict.decision is Decision.ALLOW


def test_a_sender_who_does_not_own_the_state_folder_is_denied() -> None:
    call = replace(call_with(WorkspaceMode.NONE, tools=None), sender=Sender(uid=1001, name="someone"))
    found = judged(call)
    assert isinstance(found, Deny)
    assert found.reason is Reason.SENDER_DENIED


@pytest.mark.parametrize("workspace", [mode for mode in WorkspaceMode if mode is not WorkspaceMode.NONE])
def test_a_server_with_a_workspace_does_not_stand_by_whatever_the_profile_says(workspace: WorkspaceMode) -> None:
    hosting = replace(call_with(workspace, pool=Pool(started=1)), kind=Kind.STANDBY, tool=None)
    for call in (hosting, replace(hosting, kind=Kind.TOOL, tool="a", standby="x")):
        found = verify.check(call, OneImage())
        assert isinstance(found, Deny)
        assert found.rule == "profile.pool"


def test_a_profile_without_a_pool_has_no_servers_stand_by() -> None:
    hosting = replace(call_with(WorkspaceMode.NONE), kind=Kind.STANDBY, tool=None)
    assert isinstance(verify.check(hosting, OneImage()), Deny)
    assert not policy.permits(hosting.profile, Kind.STANDBY, None)
    allowed = replace(hosting, profile=replace(hosting.profile, pool=Pool(started=1)))
    assert isinstance(verify.check(allowed, OneImage()), Verified)
    assert policy.permits(allowed.profile, Kind.STANDBY, None)
    assert not policy.permits(allowed.profile, Kind.STANDBY, "a tool")
