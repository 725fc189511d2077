"""The `policy:` section: what it takes, what it refuses in one line, and its way to a worker that can read no file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from fumehood import config
from fumehood.faults import FumehoodError
from fumehood.gateway.served import Served, ServedSet, parts_of, set_of
from fumehood.model import Kind, Limits, Sender
from fumehood.operating import Part
from fumehood.policies.booking import account_of
from fumehood.policies.cedar import Source
from fumehood.policies.config import Budget, PolicyConfig
from fumehood.policies.known import Unit
from fumehood.policies.policy import made
from fumehood.policies.reading import read

BUDGETS = """
policy:
  files: [/etc/fumehood/policies/*.cedar]
  conversation: {kept: 2h}
  budgets:
    - {name: calls, calls: 20, per: 1h, tools: ['git/*']}
    - {name: time, cpu: 10m, per: 24h, senders: ['http:*'], each: []}
    - {name: out, egress: 1MiB, per: 1h, groups: [dev], then: ask, each: [sender, tool]}
    - {name: units, cost: 100, per: 30s}
"""


def test_a_section_becomes_a_value() -> None:
    found = config.parse(BUDGETS, "f").policy
    assert (found.files, found.shipped, found.kept_s) == (("/etc/fumehood/policies/*.cedar",), ("owner", "taint"), 7200.0)
    assert found.budgets == (
        Budget(name="calls", unit=Unit.CALLS, most=20, per_s=3600, tools=("git/*",)),
        Budget(name="time", unit=Unit.CPU, most=600, per_s=86400, senders=("http:*",), each=()),
        Budget(name="out", unit=Unit.EGRESS, most=2**20, per_s=3600, groups=("dev",), ask=True, each=("sender", "tool")),
        Budget(name="units", unit=Unit.COST, most=100, per_s=30),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy: {file: [/a.cedar]}", "policy.file: expected a known field; did you mean files|policy.file: expected a known field"),
        ("policy: {files: [a.cedar]}", "policy.files[0]: expected"),
        ("policy: {files: [/a/b.yaml]}", "policy.files[0]: expected"),
        ("policy: {files: [/a/*/b.cedar]}", "policy.files[0]: expected"),
        ("policy: {files: [/../a.cedar]}", "policy.files[0]: expected"),
        ("policy: {shipped: [everything]}", "policy.shipped[0]: expected owner, senders or taint"),
        ("policy: {shipped: [owner, owner]}", "policy.shipped: expected each name once"),
        ("policy: {budgets: [{name: a, per: 1h}]}", "policy.budgets[0]: expected exactly one of calls, cpu, egress, cost"),
        ("policy: {budgets: [{name: a, calls: 1, cost: 1, per: 1h}]}", "policy.budgets[0]: expected exactly one of"),
        ("policy: {budgets: [{name: a, calls: 1, per: 1h}, {name: a, calls: 1, per: 1h}]}", "policy.budgets[1].name: a is the name of another"),
        ("policy: {budgets: [{name: a, calls: 1}]}", "policy.budgets[0].per: expected this field"),
        ("policy: {budgets: [{name: a, calls: 1, per: 1h, then: shrug}]}", "policy.budgets[0].then: expected deny or ask"),
        ("policy: {conversation: {kept: 1s}}", "policy.conversation.kept: expected between"),
    ],
)
def test_a_section_that_is_wrong_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(FumehoodError) as caught:
        config.parse(text, "f")
    assert any(each in str(caught.value) for each in said.split("|")), str(caught.value)


def test_a_policy_reaches_the_worker_whole_or_not_at_all() -> None:
    call = fakes.call()
    served = Served(name="git", profile=call.profile, argv=("x",))
    many = "\n".join(f'@id("p{number}") permit (principal == Sender::"é{number}", action, resource);' for number in range(600))
    policy = made(config.parse(BUDGETS, "f").policy, [Source(name="/a.cedar", text=many)])
    parts = [Part(json.loads(json.dumps(part.fields))) for part in parts_of(ServedSet(servers=(served,), policy=policy))]
    got = set_of(parts).policy
    assert got is not None
    assert (got.digest, got.texts) == (policy.digest, policy.texts)
    pieces = [part for part in parts if "policy" in part.fields]
    assert len(pieces) > 2
    with pytest.raises(ValueError, match="as many pieces"):
        set_of([part for part in parts if part is not pieces[1]])
    with pytest.raises(ValueError, match="Expecting property name"):
        set_of([Part({"policy": "{"}) if part is pieces[0] else part for part in parts])


def test_files_are_read_in_order_each_once_and_only_if_nobody_else_could_have_written_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name in ("b", "a"):
        (tmp_path / f"{name}.cedar").write_text(f'@id("{name}") permit (principal, action, resource);')
        (tmp_path / f"{name}.cedar").chmod(0o644)
    (tmp_path / ".hidden.cedar").write_text("nonsense")
    wanted = PolicyConfig(files=(f"{tmp_path}/*.cedar", f"{tmp_path}/a.cedar"), shipped=())
    assert [rule.id for rule in read(wanted, os.getuid()).rules.rules] == ["a", "b"]
    (tmp_path / "a.cedar").chmod(0o666)
    with pytest.raises(FumehoodError, match="can be written by others"):
        read(wanted, os.getuid())
    with pytest.raises(FumehoodError, match="there is no file"):
        read(replace(wanted, files=(f"{tmp_path}/none.cedar",)), os.getuid())


@pytest.mark.parametrize(
    ("sender", "tool", "charged"),
    [
        (Sender(uid=0, name="root"), "git_log", {"calls": 1.0, "units": 7.0}),
        (Sender(uid=0, name="http:alice"), "git_log", {"calls": 1.0, "time": 120.0, "units": 7.0}),
        (Sender(uid=0, name="key:bob", groups=("dev",)), "other", {"calls": 1.0, "out": 0.0, "units": 1.0}),
    ],
)
def test_a_call_is_charged_to_the_budgets_that_it_fits_at_its_worst(sender: Sender, tool: str, charged: dict[str, Any]) -> None:
    call = fakes.call(tool=tool)
    profile = replace(call.profile, limits=Limits(cpu=2, wall_s=60), cost=(("*", 1), ("git_log", 7)))
    account = account_of(replace(call, sender=sender, profile=profile, server="git"), config.parse(BUDGETS, "f").policy)
    assert {charge.budget: charge.amount for charge in account.charges} == charged


def test_what_a_front_door_does_on_its_own_is_booked_nowhere() -> None:
    call = replace(fakes.call(tool=None), kind=Kind.SESSION)
    assert account_of(call, config.parse(BUDGETS, "f").policy).tool is None
