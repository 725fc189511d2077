"""What a policy would have said of calls that were recorded, whose arguments nobody kept. Pure.

A policy that asks for arguments may have held, or not. So two sets are asked: one in which each such policy is as kind as it can be,
and one in which it is as strict. Where both say the same that is the answer, and where they differ it is unknown, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fumehood.model import Decision
from fumehood.policies import cedar
from fumehood.policies.asked import Asked
from fumehood.policies.cedar import PolicySet, Rule, Source
from fumehood.policies.deciding import rule_on
from fumehood.policies.policy import Policy

_EFFECT = re.compile(r'(?:"(?:[^"\\]|\\.)*"|//[^\n]*|[^"/])*?(?P<effect>\b(?:permit|forbid)\s*\()', re.DOTALL)
_CONDITION = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|\b(?:when|unless)\s*\{', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The two sets, and the policies that depend on arguments."""

    kind: PolicySet
    strict: PolicySet
    depending: tuple[str, ...]

    def decision(self, asked: Asked) -> Decision | None:
        """What is certain of a question without its arguments; None when it depends on them."""
        kind, strict = (rule_on(each, replace(asked, arguments={})).decision for each in (self.kind, self.strict))
        return kind if kind is strict else None


def replay(policy: Policy) -> Replay:
    """Make both sets of a policy."""
    rules = policy.rules.rules
    depending = [rule for rule in rules if rule.places is None or rule.places]
    always = {rule.id: _unconditional(rule.text) for rule in depending}
    kind = [always.get(rule.id, rule.text) for rule in rules if rule.id not in always or rule.permits]
    strict = [always.get(rule.id, rule.text) for rule in rules if rule.id not in always or not rule.permits]
    return Replay(
        kind=_set(kind, policy.texts.schema), strict=_set(strict, policy.texts.schema), depending=tuple(rule.id for rule in depending),
    )  # fmt: skip


def nearest(policy: Policy, asked: Asked) -> tuple[Rule, ...]:
    """The permits that are about such a call, and whose conditions it does not meet."""
    permits = [rule for rule in policy.rules.rules if rule.permits and rule.conditions]
    named = {f"near{number}": rule for number, rule in enumerate(permits)}
    texts = [f'@id("{name}") {_bare(rule.text)}' for name, rule in named.items()]
    ruling = rule_on(_set(texts, policy.texts.schema), asked)
    return tuple(named[rule.id] for rule in ruling.rules)


def _bare(text: str) -> str:
    """A policy without conditions and without what it says of itself."""
    plain = _unconditional(text)
    found = _EFFECT.search(plain)
    return plain if found is None else plain[found.start("effect") :]


def _set(texts: list[str], schema: str) -> PolicySet:
    return cedar.parsed([Source(name="replay", text="\n".join(texts))], schema)


def _unconditional(text: str) -> str:
    """A policy without its conditions: its scope alone."""
    for found in _CONDITION.finditer(text):
        if found[0][0] not in '"/':
            return text[: found.start()].rstrip() + ";"
    return text
