"""What would let through a call that policies refused or ask about, and what that would risk. Pure; for `fumehood why`.

What a stranger chose (a sender's name at another's door, a tool's) is quoted as Cedar has it, on one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fumehood.denial import Denial, Way
from fumehood.reasons import Reason

_POLICIES = "a file of policy.files"


def policy_ways(denial: Denial, record: Mapping[str, Any]) -> list[Way]:
    """What could be done about it; nothing for what policies do not decide."""
    found = _WAYS.get(denial.reason)
    return [] if found is None else list(found(denial, record))


def _denied(denial: Denial, record: Mapping[str, Any]) -> Iterator[Way]:
    explain = f"fumehood policy explain --task {denial.task}"
    yield Way(where="shell", line=explain, risk="None: it says which policy decided, and the smallest change that would loosen it.")
    if denial.rule not in ("policy", "policy.owner"):
        return  # a `forbid` decided: one more permit changes nothing
    asked = next((step["facts"]["asked"] for step in record["events"] if "asked" in step["facts"]), None)
    if asked is None:
        return
    principal, resource = _quoted(record["sender"]), f"{asked['type']}::{_quoted(asked['id'])}"
    permit = f'permit (principal == Sender::{principal}, action == Action::"call_with_approval", resource == {resource});'
    who = f"{record['sender']} can have {asked['id']} called, each time that an approver agrees"
    yield Way(where=_POLICIES, line=permit, risk=f'{who}; with action "call" also when nobody looks.')


def _senders(denial: Denial, record: Mapping[str, Any]) -> Iterator[Way]:
    yield from _denied(denial, record)
    risk = "Every sender that the configuration lists may call whatever the profiles allow, whoever has its token."
    yield Way(where="fumehood.yaml", line="policy: {shipped: [owner, senders, taint]}", risk=risk)


def _failed(_: Denial, __: Mapping[str, Any]) -> Iterator[Way]:
    risk = "None: it names the file and line. Until it is corrected nothing is permitted."
    yield Way(where="shell", line="fumehood policy check", risk=risk)


def _approval(_: Denial, __: Mapping[str, Any]) -> Iterator[Way]:
    yield Way(where="shell", line="fumehood approvals list", risk="None: it shows what waits. Approve what you have looked at whole.")


def _nobody(_: Denial, __: Mapping[str, Any]) -> Iterator[Way]:
    line = "approvals: {approvers: {NAME: {key: ...}}}"
    yield Way(where="fumehood.yaml", line=line, risk="Whoever has that key decides on calls that are asked about.")


def _budget(denial: Denial, _: Mapping[str, Any]) -> Iterator[Way]:
    name = (denial.rule or "").removeprefix("policy.budgets.")
    risk = "As much more is used before anybody looks; `then: ask` has an approver decide instead."
    yield Way(where="fumehood.yaml", line=f"policy: {{budgets: [...]}}  # raise the budget {_quoted(name)}", risk=risk)


def _quoted(text: str) -> str:
    """A text as Cedar writes it: escaped as Rust does it, all but printable ASCII."""
    return '"' + "".join(_letter(letter) for letter in text) + '"'


def _letter(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    return letter if " " <= letter <= "~" else f"\\u{{{ord(letter):x}}}"


_WAYS: Mapping[Reason, Callable[[Denial, Mapping[str, Any]], Iterator[Way]]] = {
    Reason.POLICY_DENIED: _denied,
    Reason.SENDER_DENIED: _senders,
    Reason.POLICY_FAILED: _failed,
    Reason.POLICY_INVALID: _failed,
    Reason.APPROVAL_PENDING: _approval,
    Reason.APPROVAL_EXPIRED: _approval,
    Reason.APPROVALS_FULL: _approval,
    Reason.APPROVAL_UNAVAILABLE: _nobody,
    Reason.BUDGET_EXCEEDED: _budget,
}
