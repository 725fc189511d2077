"""What is asked of a policy: all of a call that policies can see, as one value, which calls, cases, records and guesses become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fumehood.model import Kind, Scope, Sender, ToolCall
from fumehood.policies.known import Conversation
from fumehood.policies.labels import labels_of
from fumehood.policies.naming import Named, resource_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question. `arguments` are the call's, `at_s` its time (epoch), `owner` the uid that owns the state folder."""

    sender: Sender
    resource: Named
    kind: str = Kind.TOOL.value
    door: str = "gateway"
    profile: str = ""
    scope: str = Scope.CALL.value
    owner: int = 0
    at_s: float = 0.0
    labels: frozenset[str] = frozenset()
    conversation: Conversation = field(default_factory=Conversation)
    arguments: Mapping[str, Any] = field(default_factory=dict)


def asked_of(call: ToolCall, conversation: Conversation, owner: int, at_s: float) -> Asked:
    """What a call asks."""
    return Asked(
        sender=call.sender, resource=resource_of(call), kind=call.kind.value, door=call.front_door, profile=call.profile.name,
        scope=call.profile.scope.value, owner=owner, at_s=at_s, labels=labels_of(call), conversation=conversation,
        arguments=call.arguments,
    )  # fmt: skip


def facts_of(asked: Asked) -> dict[str, Any]:
    """What a record keeps of a question, so that other policies can be asked it later: all but the arguments."""
    known = asked.conversation
    return {
        "type": asked.resource.type, "id": asked.resource.id, "server": asked.resource.server,
        "kind": asked.kind, "scope": asked.scope,
        "groups": list(asked.sender.groups), "labels": sorted(asked.labels), "done": sorted(known.done), "since": sorted(known.since),
        "taint": sorted(known.taint),
    }  # fmt: skip


def asked_by_record(record: Mapping[str, Any], facts: Mapping[str, Any], owner: int) -> Asked:
    """The question of a recorded call, without its arguments."""
    sender = Sender(uid=record["sender_uid"], name=record["sender"], tenant=record["tenant"], groups=tuple(facts["groups"]))
    known = Conversation(**{name: frozenset(facts[name]) for name in ("done", "since", "taint")})
    return Asked(
        sender=sender, resource=Named(facts["type"], facts["id"], facts["server"]), kind=facts["kind"], scope=facts["scope"],
        door=record["front_door"], profile=record["profile"], owner=owner, at_s=record["opened_at"],
        labels=frozenset(facts["labels"]), conversation=known,
    )  # fmt: skip
