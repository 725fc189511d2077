"""What a profile says of a call's content and effect. Labels are the operator's word, and no annotation of a server's. Pure."""

from __future__ import annotations

from fumehood.model import ToolCall


def labels_of(call: ToolCall) -> frozenset[str]:
    """The labels of what is called, of `*`, and of every egress rule, any of which its box may use."""
    named = [labels for name, labels in call.profile.labels if name in ("*", call.named)]
    reached = [rule.labels for rule in call.profile.network.rules]
    return frozenset(label for labels in (*named, *reached) for label in labels)
