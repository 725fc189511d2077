"""Why the gate turned something away: a code, what it means, what to do; and the exception that carries one.

What the tool sees is a reset or a DNS answer. This is what the operator sees, in the task's egress log. Codes are never renamed
or reused. Each module that refuses defines its own `Why`s at its top; a test holds that no code is used twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Why:
    """One cause of refusals. `remedy` says what to add to the profile, if what was refused is right."""

    code: str
    meaning: str
    remedy: str


class Rejected(Exception):
    """A connection that ends here. `facts` are short JSON values for the log: what was asked."""

    def __init__(self, why: Why, **facts: Any) -> None:
        """Carry the cause and what was asked; never a secret."""
        super().__init__(f"{why.code}: {why.meaning}")
        self.why = why
        self.facts = facts
