"""From what a set of policies answers to ALLOW, ASK or DENY. Pure; the strictest wins, emptiness denies, and so does any error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fumehood.model import Decision
from fumehood.policies.asked import Asked
from fumehood.policies.cedar import CALL, WITH_APPROVAL, Answer, PolicySet, Rule
from fumehood.policies.known import Spent
from fumehood.policies.projection import entities_of, request_of

_UNASKED = Answer(permitted=False, rules=(), errors=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What policies come to. `rules` decided it, none where nothing permits; `permitted`: nothing but a budget stands against it."""

    decision: Decision
    rules: tuple[Rule, ...]
    errors: tuple[str, ...]
    permitted: bool


def rule_on(policies: PolicySet, asked: Asked, spent: Sequence[Spent] = ()) -> Ruling:
    """Decide one question, with the budgets that it would exceed. An approval is only asked about where it could matter."""
    request, entities = request_of(asked), json.dumps(entities_of(asked, policies.places))
    plain = policies.answer(CALL, request, entities)
    allowed = decided(plain, _UNASKED, spent) is Decision.ALLOW
    agreed = _UNASKED if allowed else policies.answer(WITH_APPROVAL, request, entities)
    decision = decided(plain, agreed, spent)
    match decision:
        case Decision.ALLOW:
            rules = plain.rules
        case Decision.ASK:
            rules = (*(() if plain.permitted else plain.rules), *agreed.rules)
        case Decision.DENY:
            against = {rule.id: rule for answer in (agreed, plain) if not answer.permitted for rule in answer.rules}
            rules = tuple(against.values())
    return Ruling(decision=decision, rules=rules, errors=(*plain.errors, *agreed.errors), permitted=plain.permitted)


def decided(plain: Answer, agreed: Answer, spent: Sequence[Spent] = ()) -> Decision:
    """What the answers for `call` and for `call_with_approval` come to, with budgets that are used up."""
    if plain.errors or agreed.errors or not all(each.ask for each in spent):
        return Decision.DENY
    if plain.permitted and plain.rules and not spent:
        return Decision.ALLOW
    return Decision.ASK if agreed.permitted and agreed.rules else Decision.DENY
