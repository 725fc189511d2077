"""What the spine says of arguments with a secret in them: pure, by the profile's setting and the rule that found it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from fumehood.admission import screen
from fumehood.model import (
    Decision,
    Deny,
    Excuse,
    Finding,
    Image,
    OnSecret,
    Screened,
    Secrets,
    ToolCall,
    Verdict,
    Verified,
)
from fumehood.reasons import Reason
from fumehood.screening.known import ISSUED, KnownSecrets

GITHUB = "ghp" + "_" + "Ab3dEf6hIj9k" * 3
OURS = "canary-of-a-lease"


def call(arguments: dict[str, Any], secrets: Secrets = Secrets(), tool: str = "git_log") -> ToolCall:  # noqa: B008 - frozen
    one = fakes.call(tool=tool)
    return replace(one, arguments=arguments, profile=replace(one.profile, tools=None, resources=None, secrets=secrets))


def judged(one: ToolCall, argv: tuple[str, ...] = ()) -> Screened | Deny:
    known = KnownSecrets()
    known.enter_texts("lease", [OURS])
    return screen.check(Verified(call=one, image=Image(name="i", digest="sha256:0", docker_id=None)), argv, known)


@pytest.mark.parametrize(
    ("setting", "formats", "issued"),
    [
        (OnSecret.BLOCK, "refused", "refused"), (OnSecret.ASK, "asks", "asks"), (OnSecret.ALLOW, "passes", "refused"),
        # A front door that should have removed it did not: nothing else may be sent than was judged.
        (OnSecret.REDACT, "refused", "refused"),
    ],
)  # fmt: skip
def test_what_becomes_of_arguments_with_a_secret(setting: OnSecret, formats: str, issued: str) -> None:
    for text, expected in ((GITHUB, formats), (OURS, issued)):
        found = judged(call({"a": [text]}, Secrets(arguments=setting)))
        if isinstance(found, Deny):
            assert (found.reason, found.rule, expected) == (Reason.SECRET_IN_ARGUMENTS, "secrets.arguments", "refused")
            assert text not in found.line()
            assert "/a/0" in found.detail
        else:
            assert expected == ("asks" if found.asks else "passes")


def test_the_name_and_the_command_line_are_judged_too() -> None:
    for found in (judged(call({}, tool=f"file:///{GITHUB}")), judged(fakes.call(tool=None), ("echo", GITHUB))):
        assert isinstance(found, Deny)
        assert "github-token at " in found.detail


def test_without_a_secret_the_call_is_the_same() -> None:
    one = call({"a": "harmless"})
    found = judged(one)
    assert isinstance(found, Screened)
    assert found.call is one
    assert (found.findings, found.asks) == ((), False)


@pytest.mark.parametrize(
    ("where", "place", "passes"),
    [
        ("*", {"a": GITHUB}, True), ("git_log", {"a": GITHUB}, True), ("git_log/a", {"a": GITHUB}, True), ("git_log/a", {"a": {"b": [GITHUB]}}, True),
        ("git_log/a", {"ab": GITHUB}, False), ("git_log/a/b", {"a": GITHUB}, False), ("git", {"a": GITHUB}, False), ("git_log/x~1y", {"x/y": GITHUB}, True),
        ("*", {"a": OURS}, False), ("git_log/a", {"a": OURS}, False),
    ],
)  # fmt: skip
def test_an_excuse_is_for_its_place_and_never_for_what_was_issued(where: str, place: dict[str, Any], passes: bool) -> None:
    excuses = tuple(Excuse(rule=rule, where=where, reason="an example") for rule in ("github-token", ISSUED))
    assert isinstance(judged(call(place, Secrets(allow=excuses))), Screened) is passes


def test_a_tools_name_with_a_slash_is_no_place_in_another() -> None:
    excuse = Excuse(rule="github-token", where="files/read", reason="an example there")
    assert isinstance(judged(call({"read": GITHUB}, Secrets(allow=(excuse,)), tool="files")), Screened)
    assert isinstance(judged(call({"a": GITHUB}, Secrets(allow=(excuse,)), tool="files/read")), Deny)
    assert isinstance(judged(call({"a": GITHUB}, Secrets(allow=(replace(excuse, where="files~1read"),)), tool="files/read")), Screened)


def verdict(decision: Decision, *, asks: bool) -> Verdict:
    found = Screened(call=call({}), image=None, findings=(Finding(rule="github-token", place="/a"),), asks=asks)
    return Verdict(verified=found, decision=decision, rule="policy.owner", why=("because of a rule",))


@pytest.mark.parametrize(("before", "asks", "after"), [(Decision.ALLOW, False, Decision.ALLOW), (Decision.ALLOW, True, Decision.ASK), (Decision.ASK, True, Decision.ASK), (Decision.DENY, True, Decision.DENY)])
def test_the_strictest_wins_and_an_approver_is_told_why(before: Decision, asks: bool, after: Decision) -> None:
    weighed = screen.weigh(verdict(before, asks=asks))
    assert isinstance(weighed, Verdict)
    assert weighed.decision is after
    told = "Its arguments hold what looks like a secret: github-token at /a." in weighed.why
    assert told is asks
    assert weighed.why[0] == "because of a rule"


def test_a_refusal_of_the_policys_stays_one() -> None:
    denied = Deny(reason=Reason.POLICY_DENIED, rule="policy.x")
    assert screen.weigh(denied) is denied


def test_the_spine_screens_before_policy_and_weighs_its_verdict() -> None:
    import fumehood.call

    text = Path(fumehood.call.__file__).read_text()
    assert text.index("verify.check(") < text.index("screen.check(") < text.index("deciding.judged(screened,")
