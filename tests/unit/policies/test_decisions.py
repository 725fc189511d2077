"""What policies come to: ALLOW < ASK < DENY, and what becomes of those that err."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fakes
from fumehood.admission import policy
from fumehood.model import Decision, Deny, Image, Kind, Sender, ToolCall, Verdict, Verified
from fumehood.permission import Need
from fumehood.policies.cedar import PolicyError, Source
from fumehood.policies.config import PolicyConfig
from fumehood.policies.known import Booked, Conversation, Spent
from fumehood.policies.policy import Policy, Texts, checked, made
from fumehood.reasons import Reason

BOTH = 'action in [Action::"call", Action::"call_with_approval"]'
PERMIT = f"permit (principal, {BOTH}, resource);"
ASK = 'permit (principal, action == Action::"call_with_approval", resource);'
OVERFLOW = 'forbid (principal, action, resource) when { context.number.hasTag("n") && context.number.getTag("n") + 1 > 0 };'
LAST = 2**63 - 1


def of(*texts: str, shipped: tuple[str, ...] = ()) -> Policy:
    return made(PolicyConfig(shipped=shipped), [Source(name=f"{number}.cedar", text=text) for number, text in enumerate(texts)])


def a_call(arguments: Mapping[str, Any] | None = None, sender: Sender | None = None, **fields: Any) -> ToolCall:
    call = fakes.call()
    changed = replace(call, profile=replace(call.profile, tools=None), arguments=arguments or {}, server="git", **fields)
    return changed if sender is None else replace(changed, sender=sender)


def judged(by: Policy, call: ToolCall | None = None, conversation: Conversation | None = None) -> Verdict | Deny:
    verified = Verified(call=call or a_call(), image=Image(name="python", digest="sha256:" + "2" * 64, docker_id=None))
    return policy.evaluate(verified, by, Booked(conversation=conversation or Conversation()), owner_uid=0, now_s=1_000_000.0)


def decision(by: Policy, call: ToolCall | None = None, conversation: Conversation | None = None) -> Decision:
    found = judged(by, call, conversation)
    return Decision.DENY if isinstance(found, Deny) else found.decision


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ([""], Decision.DENY),
        ([PERMIT], Decision.ALLOW),
        ([ASK], Decision.ASK),
        (['permit (principal, action == Action::"call", resource);'], Decision.ALLOW),
        ([PERMIT, 'forbid (principal, action == Action::"call", resource);'], Decision.ASK),
        ([ASK, 'forbid (principal, action == Action::"call_with_approval", resource);'], Decision.DENY),
        ([PERMIT, "forbid (principal, action, resource);"], Decision.DENY),
        ([PERMIT, 'forbid (principal, action, resource == Tool::"git/other");'], Decision.ALLOW),
        ([PERMIT, 'forbid (principal, action, resource == Tool::"git/git_log");'], Decision.DENY),
        ([PERMIT, 'forbid (principal, action, resource in Server::"git");'], Decision.DENY),
        ([PERMIT, 'forbid (principal in Group::"interns", action, resource);'], Decision.ALLOW),
        (['permit (principal == Sender::"root", action, resource) when { context.time.weekday == 1 };'], Decision.ALLOW),
    ],
)
def test_the_strictest_wins_and_emptiness_denies(texts: list[str], wanted: Decision) -> None:
    assert decision(of(*texts)) is wanted


def test_an_error_while_a_policy_is_evaluated_denies_though_cedar_would_pass_it_over() -> None:
    by = of(PERMIT, OVERFLOW)
    assert decision(by) is Decision.ALLOW
    found = judged(by, a_call({"n": LAST}))
    assert isinstance(found, Deny)
    assert found.reason is Reason.POLICY_FAILED


def test_an_error_for_one_action_alone_denies_and_does_not_ask() -> None:
    by = of(PERMIT, OVERFLOW.replace("action,", 'action == Action::"call",'))
    found = judged(by, a_call({"n": LAST}))
    assert isinstance(found, Deny), "an approver must not be asked about what could not be judged"
    assert found.reason is Reason.POLICY_FAILED


@given(n=st.integers() | st.floats(allow_nan=False) | st.text() | st.booleans() | st.none())
@settings(max_examples=60, deadline=None)
def test_no_argument_makes_a_policy_that_errs_allow(n: Any) -> None:
    found = judged(of(PERMIT, OVERFLOW), a_call({"n": n}))
    whole = (isinstance(n, int) and not isinstance(n, bool)) or (isinstance(n, float) and n.is_integer())
    if whole and 0 <= n < 2**63:
        assert isinstance(found, Deny)


SETS = st.lists(
    st.sampled_from([
        PERMIT, ASK, 'permit (principal, action, resource in Server::"git");', 'permit (principal in Group::"g", action, resource);',
        'permit (principal, action == Action::"call", resource) when { context.labels.contains("external") };',
        'forbid (principal, action == Action::"call", resource) when { context.conversation.taint.contains("private") };',
    ]),
    max_size=5,
)  # fmt: skip
FORBIDS = st.sampled_from([
    "forbid (principal, action, resource);", 'forbid (principal, action == Action::"call", resource);',
    'forbid (principal, action == Action::"call_with_approval", resource);', OVERFLOW, 'forbid (principal in Group::"g", action, resource);',
])  # fmt: skip


@given(texts=SETS, more=FORBIDS, group=st.booleans(), taint=st.booleans(), n=st.sampled_from([0, LAST]))
@settings(max_examples=100, deadline=None)
def test_one_more_forbid_never_widens(texts: list[str], more: str, group: bool, taint: bool, n: int) -> None:
    order = list(Decision)
    call = a_call({"n": n}, Sender(uid=0, name="root", groups=("g",) if group else ()))
    said = Conversation(taint=frozenset({"private"}) if taint else frozenset())
    assert order.index(decision(of(*texts, more), call, said)) >= order.index(decision(of(*texts), call, said))


def test_what_decides_says_why_and_who_must_agree_and_the_strictest_of_it_counts() -> None:
    by = of(
        f'@id("a") @requester("allowed") @approvers("alice,bob,carol") permit (principal, {BOTH}, resource);',
        '@id("b") @count("2") @approvers("bob,carol") @why("it leaves the house") forbid (principal, action == Action::"call", resource);',
    )
    found = judged(by)
    assert isinstance(found, Verdict)
    assert (found.decision, found.rule, found.why) == (Decision.ASK, "policy.b", ("it leaves the house",))
    assert found.need == Need(approvers=frozenset({"bob", "carol"}), count=2, requester=False)
    assert found.policy == by.digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("permit (principal, action resource);", "0.cedar:1: unexpected token"),
        ('\n\n// x\npermit (principal, action, resource) when { context.text.getTag("a") == "b" };', "0.cedar:4: .*unable to guarantee safety"),
        ('permit (principal, action == Action::"cal", resource);', "0.cedar:1: .*unrecognized action"),
        ("permit (principal, action, resource) when { context.nothing };", "0.cedar:1: "),
        ('permit (principal == User::"x", action, resource);', "0.cedar:1: "),
        ("permit (principal == ?principal, action, resource);", r"0.cedar:1: .*\?principal"),
        ('@aprovers("bob") ' + ASK, "0.cedar:1: .*@aprovers"),
        ('@count("0") ' + ASK, "@count"),
        ('@count("2") @approvers("bob") ' + ASK, "2 of 1"),
        ('@requester("yes") ' + ASK, "@requester"),
        ('@approvers("") ' + ASK, "@approvers"),
        ('@why("\u202e") ' + ASK, "@why"),
        ('@id("a b") ' + ASK, "@id"),
        ('@id("budgets.few") ' + ASK, "begin like a budget"),
        ('permit (principal == Policy::"policy99", action, resource);', "0.cedar:1: "),
        (f'@id("a") {ASK}\n@id("a") {ASK}', "0.cedar:2: .* at 0.cedar:1"),
        (ASK + " permit", "0.cedar:1: "),
    ],
)
def test_policies_that_are_wrong_anywhere_are_refused_with_file_and_line(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said) as caught:
        of(text)
    assert caught.value.reason is Reason.POLICY_INVALID


def test_a_policy_is_the_same_where_it_was_only_told_of() -> None:
    by = of(PERMIT, ASK, shipped=("owner", "taint"))
    again = checked(Texts.read(by.texts.written()))
    assert again.digest == by.digest
    assert again.texts == by.texts
    assert made(PolicyConfig(), ()).digest != by.digest


@pytest.mark.parametrize("text", ['@id("x;y") permit', 'permit (principal, action, resource) // ;\nwhen { context.kind == "a;\\"b" };'])
def test_what_looks_like_an_end_inside_a_text_or_comment_is_none(text: str) -> None:
    if text.startswith("@"):
        with pytest.raises(PolicyError):
            of(text)
    else:
        assert len(of(text).rules.rules) == 1


@pytest.mark.parametrize(
    ("sender", "shipped", "allowed"),
    [
        (Sender(uid=0, name="root"), ("owner", "taint"), True),
        (Sender(uid=1001, name="root"), ("owner", "taint"), False),
        (Sender(uid=0, name="http:alice"), ("owner", "taint"), False),
        (Sender(uid=0, name="http:root"), ("owner", "taint"), False),
        (Sender(uid=0, name="unix:alice"), ("owner", "taint"), False),
        (Sender(uid=0, name="key:alice"), ("owner", "taint"), False),
        (Sender(uid=0, name="oauth:alice@issuer"), ("owner", "taint"), False),
        (Sender(uid=0, name="http:alice"), ("owner", "senders", "taint"), True),
        (Sender(uid=0, name="key:alice"), ("senders",), True),
        (Sender(uid=0, name="root"), ("senders",), False),
        (Sender(uid=0, name="root"), (), False),
    ],
)
def test_the_policies_that_ship_permit_the_owner_where_the_kernel_says_who_asks_and_others_if_wanted(
    sender: Sender, shipped: tuple[str, ...], allowed: bool
) -> None:
    found = judged(of(shipped=shipped), a_call(sender=sender))
    assert isinstance(found, Verdict) is allowed
    if isinstance(found, Deny):
        assert found.reason is Reason.SENDER_DENIED
        assert sender.name == "root" or "policy: {shipped: [owner, senders, taint]}" in (found.remedy or "")


@pytest.mark.parametrize("number", [0, 1, 9, 10, 11, 25, 29])
def test_of_many_policies_the_one_that_decides_is_named(number: int) -> None:
    each = [f'@id("n{at}") forbid (principal, action, resource == Tool::"git/t{at}");' for at in range(30)]
    found = judged(of(PERMIT, "\n".join(each)), a_call(tool=f"t{number}"))
    assert isinstance(found, Deny)
    assert found.rule == f"policy.n{number}"


@pytest.mark.parametrize(
    ("texts", "spent", "wanted"),
    [
        ([PERMIT], Spent(budget="few", ask=False, free_at_s=3600.5), "budget_exceeded policy.budgets.few"),
        ([PERMIT], Spent(budget="few", ask=True, free_at_s=None), "ask policy.budgets.few"),
        (['permit (principal, action == Action::"call", resource);'], Spent(budget="few", ask=True, free_at_s=None), "budget_exceeded policy.budgets.few"),
        ([ASK], Spent(budget="few", ask=True, free_at_s=None), "ask policy.0.1"),
        ([PERMIT, '@id("no") forbid (principal, action, resource);'], Spent(budget="few", ask=False, free_at_s=None), "policy_denied policy.no"),
        (['forbid (principal, action == Action::"call", resource == Tool::"a/b");'], Spent(budget="few", ask=False, free_at_s=None), "policy_denied policy"),
    ],
)
def test_a_budget_that_is_used_up_denies_or_asks_and_never_permits(texts: list[str], spent: Spent, wanted: str) -> None:
    verified = Verified(call=a_call(), image=Image(name="python", digest="sha256:" + "2" * 64, docker_id=None))
    found = policy.evaluate(verified, of(*texts), Booked(spent=(spent,)), owner_uid=0, now_s=1.0)
    if isinstance(found, Deny):
        assert f"{found.reason.value} {found.rule}" == wanted
        assert found.reason is not Reason.BUDGET_EXCEEDED or spent.free_at_s is None or "1970-01-01T01:00:01Z" in found.detail
    else:
        assert f"{found.decision.value} {found.rule}" == wanted
        assert "the budget few is used up" in found.why
        assert not found.need.requester


def test_who_may_call_tools_and_not_have_their_list_read_is_told_what_to_permit() -> None:
    found = judged(of(f'permit (principal, {BOTH}, resource == Tool::"git/git_log");'), a_call(kind=Kind.COMMAND, tool=None, front_door="catalogue"))
    assert isinstance(found, Deny)
    assert found.remedy == 'Permit `resource == Server::"git"` to who may call its tools.'


@pytest.mark.parametrize(
    ("sender", "wanted"),
    [
        (Sender(uid=0, name="http:alice"), Decision.ALLOW),
        (Sender(uid=0, name="oauth:bob@login.example.org"), Decision.ALLOW),
        (Sender(uid=0, name="key:carol", groups=("dev",)), Decision.ALLOW),
        (Sender(uid=0, name="alice"), Decision.DENY),
        (Sender(uid=0, name="http:alice2"), Decision.DENY),
        (Sender(uid=0, name="oauth:bob@evil.example"), Decision.DENY),
        (Sender(uid=0, name="unix:http:alice"), Decision.DENY),
    ],
)
def test_groups_are_what_the_operator_says_of_a_sender_at_its_door(sender: Sender, wanted: Decision) -> None:
    config = PolicyConfig(shipped=(), groups=(("dev", ("http:alice", "oauth:*@login.example.org")),))
    by = made(config, [Source(name="a.cedar", text='permit (principal in Group::"dev", action, resource);')])
    assert decision(by, a_call(sender=sender)) is wanted
    assert decision(checked(Texts.read(by.texts.written())), a_call(sender=sender)) is wanted
