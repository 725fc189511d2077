"""What is told of a call that was refused, killed or failed: one object, the same for the client, the log and `fumehood why`. Pure.

Attack: a model that is refused tries again, spells the same thing differently, or reaches for another tool that does as much. So the
object says whether that can help at all, in a word for programs and in a sentence for models; and it never says more than what was
asked, the rule, and what to do: a refusal that quotes a secret, or lists what else there is, is a way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fumehood.reasons import Reason


class Again(StrEnum):
    """Whether asking again can end otherwise."""

    NEVER = "never"  # until a person decides otherwise
    CHANGED = "changed"
    LATER = "later"


_SAID = {
    Again.NEVER: "Asking again, or for the same by another way, will not help: a person has to allow it.",
    Again.CHANGED: "",
    Again.LATER: "",
}
# Whatever is in neither set ends otherwise only when something of the request, or of what it works on, is changed.
NEVER = frozenset(
    {
        Reason.CONFIG_INVALID, Reason.CONFIG_UNSAFE, Reason.PROFILE_INVALID, Reason.PROFILE_UNKNOWN, Reason.SECCOMP_FLOOR,
        Reason.IMAGE_MISSING, Reason.IMAGE_UNSAFE, Reason.TOOL_NOT_ALLOWED, Reason.NOT_ALLOWED, Reason.TOOL_UNREVIEWED,
        Reason.TOOL_CHANGED, Reason.TOOL_REJECTED, Reason.SCHEMA_UNUSABLE, Reason.SENDER_DENIED, Reason.SENDER_REVOKED,
        Reason.SENDER_UNKNOWN, Reason.POLICY_FAILED, Reason.APPROVAL_UNAVAILABLE, Reason.APPROVAL_DENIED,
        Reason.UNENFORCEABLE, Reason.RISK_NOT_ACCEPTED, Reason.WORKSPACE_NOT_ALLOWED, Reason.EXTRA_MISSING,
        Reason.STOPPED, Reason.OPERATOR, Reason.COMMIT_REFUSED,
        Reason.UPSTREAM_NOT_ALLOWED, Reason.UPSTREAM_UNTRUSTED, Reason.UPSTREAM_UNAUTHORIZED, Reason.NOT_QUIET,
    }
)  # fmt: skip
LATER = frozenset(
    {
        Reason.APPROVAL_PENDING, Reason.APPROVAL_EXPIRED, Reason.APPROVALS_FULL, Reason.BUDGET_EXCEEDED,
        Reason.NONCES_FULL, Reason.KEYS_FULL, Reason.IN_PROGRESS, Reason.BUSY, Reason.WORKSPACE_BUSY, Reason.IMAGE_IN_USE,
        Reason.LEDGER_UNAVAILABLE, Reason.WITNESS_UNAVAILABLE, Reason.STATE_UNAVAILABLE, Reason.ENGINE_UNAVAILABLE,
        Reason.LEASE_FAILED, Reason.CLOCK_WENT_BACK, Reason.BOX_FAILED, Reason.BOX_DIED, Reason.BROKER_DIED,
        Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_BUSY, Reason.UPSTREAM_FAILED, Reason.RESULT_NOT_KEPT, Reason.CANCELLED,
    }
)  # fmt: skip


def again(reason: Reason) -> Again:
    """Whether a call that ended for this reason can end otherwise when it is asked again."""
    if reason in NEVER:
        return Again.NEVER
    return Again.LATER if reason in LATER else Again.CHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a call asked for: its kind and name as MCP has them, of which server, under which profile."""

    kind: str
    name: str | None = None
    server: str | None = None
    profile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """The object. `detail` is one line that no terminal obeys; `result` and `reason` are codes that never change their meaning.

    `retry_after_s` is how long to stay away, where somebody knows.
    """

    task: str
    result: str
    reason: Reason
    rule: str | None
    detail: str
    remedy: str
    asked: Asked
    retry_after_s: float | None = None

    def fields(self) -> dict[str, Any]:
        """The object as JSON has it."""
        asked = {name: getattr(self.asked, name) for name in ("kind", "name", "server", "profile")}
        return {
            "task": self.task,
            "result": self.result,
            "reason": self.reason.value,
            "rule": self.rule,
            "asked": {name: value for name, value in asked.items() if value is not None},
            "detail": self.detail,
            "remedy": self.remedy,
            "again": again(self.reason).value,
            **({} if self.retry_after_s is None else {"retry_after_s": self.retry_after_s}),
        }

    def sentence(self) -> str:
        """For people and models, on one line: the code, what is wrong, what to do, and whether asking again can help."""
        said = f"fumehood: {self.reason.value}: {self.detail or self.reason.meaning}. {self.remedy}"
        return f"{said} {more}" if (more := _SAID[again(self.reason)]) else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way. `where` is the file that the YAML of `line` belongs into, or `shell` for a command."""

    where: str
    line: str
    risk: str


def of_record(record: Mapping[str, Any]) -> Denial | None:
    """What was told of a recorded call; None of one that ended well, or did not end. Raises ValueError for no record of ours."""
    ended, code = record["result"], record["reason"]
    if ended in (None, "ok") or code is None:
        return None
    kind, _, name = (record["tool"] or "").partition(":")
    if kind not in ("prompt", "resource", "completion"):
        kind, name = ("tool", record["tool"]) if record["tool"] else ("command", record["command"])
    reason = Reason(code)
    asked = Asked(kind=kind, name=name or None, profile=record["profile"])
    return Denial(
        task=record["task"], result=ended, reason=reason, rule=record["rule"], detail=record["detail"] or "", remedy=reason.remedy,
        asked=asked,
    )  # fmt: skip
