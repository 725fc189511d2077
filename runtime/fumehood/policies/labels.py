"""What a profile says of a call's content and effect. Labels are the operator's word, and no annotation of a server's. Pure."""

from __future__ import annotations

from fumehood.model import Profile, ToolCall


def labels_of(call: ToolCall) -> frozenset[str]:
    """The labels of a call."""
    return labels_in(call.profile, call.named)


def labels_in(profile: Profile, named: str | None) -> frozenset[str]:
    """The labels of what is called, of `*`, and of every egress rule, any of which its box may use."""
    said = [labels for name, labels in profile.labels if name in ("*", named)]
    reached = [rule.labels for rule in profile.network.rules]
    return frozenset(label for labels in (*said, *reached) for label in labels)
