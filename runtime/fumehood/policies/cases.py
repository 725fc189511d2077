"""Cases kept beside policies (`*.cases.yaml`): what somebody asks, and what is to come of it. The strict model, and its question.

    cases:
      - name: alice commits after she looked at the difference
        sender: {name: http:alice}
        tool: git/git_commit
        since: [git/git_diff]
        expect: allow
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fumehood.model import Kind, Sender
from fumehood.policies.asked import Asked
from fumehood.policies.known import Conversation
from fumehood.policies.naming import Named
from fumehood.profile.fields import Strict, Text, expected

SUFFIX = ".cases.yaml"
MOST_CASES = 10_000
_KINDS = {
    "tool": ("Tool", Kind.TOOL), "prompt": ("Prompt", Kind.PROMPT), "resource": ("Resource", Kind.RESOURCE),
    "completion": ("Completion", Kind.COMPLETION), "command": ("Command", Kind.COMMAND), "server": ("Server", Kind.COMMAND),
}  # fmt: skip


def _instant(value: object) -> object:
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
        if found is not None and found.tzinfo is not None:
            return found.timestamp()
    raise expected(f'expected a time with its zone, in quotes, such as "2026-03-02T09:30:00Z", found {value!r}')


Instant = Annotated[float, BeforeValidator(_instant)]
Label = Literal["untrusted", "private", "external"]


class SenderCase(Strict):
    """Who asks."""

    name: Text = Field(description="As records have it: a user's name, http:NAME, key:NAME.")
    uid: int = Field(default=0, description="The uid that the kernel says. Default: the owner's.")
    tenant: Text = Field(default="local")
    groups: tuple[Text, ...] = Field(default=(), strict=False)


class Case(Strict):
    """One question, of exactly one of `tool`, `prompt`, `resource`, `completion`, `command`, `server`; and its answer."""

    name: Text = Field(description="What a failure is told by.")
    sender: SenderCase = Field(default=SenderCase(name="root"))
    tool: Text | None = Field(default=None, description="SERVER/TOOL.")
    prompt: Text | None = Field(default=None, description="SERVER/PROMPT.")
    resource: Text | None = Field(default=None, description="SERVER/URI.")
    completion: Text | None = Field(default=None, description="SERVER/NAME.")
    command: Text | None = Field(default=None, description="The profile of a command of the operator's own.")
    server: Text | None = Field(default=None, description="A server, whose lists are read.")
    profile: Text = Field(default="")
    door: Text = Field(default="gateway")
    scope: Literal["call", "session"] = Field(default="call")
    arguments: dict[str, Any] = Field(default_factory=dict)
    labels: tuple[Label, ...] = Field(default=(), strict=False)
    done: tuple[Text, ...] = Field(default=(), strict=False)
    since: tuple[Text, ...] = Field(default=(), strict=False)
    taint: tuple[Label, ...] = Field(default=(), strict=False)
    at: Instant = Field(default=0.0, description="When, in quotes. Default: the first of January 1970, a Thursday.")
    expect: Literal["allow", "ask", "deny"] = Field(description="What is to come of it.")
    rule: Text | None = Field(default=None, description="The @id of a policy that is to decide it.")

    @property
    def asked_of(self) -> list[str]:
        """Which kinds of things it names."""
        return [kind for kind in _KINDS if getattr(self, kind) is not None]

    def question(self) -> Asked:
        """What it asks; of the owner, uid 0."""
        (named,) = self.asked_of
        kind, call = _KINDS[named]
        name: str = getattr(self, named)
        server, slash, _ = name.partition("/")
        sender = Sender(uid=self.sender.uid, name=self.sender.name, tenant=self.sender.tenant, groups=self.sender.groups)
        known = Conversation(done=frozenset((*self.done, *self.since)), since=frozenset(self.since), taint=frozenset(self.taint))
        return Asked(
            sender=sender, resource=Named(kind, name, server if slash and kind not in ("Command", "Server") else None),
            kind=call.value, door=self.door, profile=self.profile, scope=self.scope, at_s=self.at, labels=frozenset(self.labels),
            conversation=known, arguments=self.arguments,
        )  # fmt: skip


class CasesDocument(Strict):
    """A file of cases."""

    cases: tuple[Case, ...] = Field(max_length=MOST_CASES, strict=False)


def read(text: str, file: str) -> tuple[Case, ...]:
    """The cases of a file. Raises Problems."""
    from fumehood.profile.problems import Problems
    from fumehood.profile.source import parse
    from fumehood.profile.validation import validate
    from fumehood.reasons import Reason

    source = parse(text, file, reason=Reason.POLICY_INVALID)
    cases = validate(source, CasesDocument).cases
    if wrong := [number for number, case in enumerate(cases) if len(case.asked_of) != 1]:
        raise Problems([source.problem(("cases", number), f"expected exactly one of {', '.join(_KINDS)}") for number in wrong])
    return cases
