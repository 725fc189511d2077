"""What is wrong with a file that an operator wrote, and where: `file:line:column: field: expectation; nearest name`.

A problem is a value. Loading raises the first of them as a refusal; `lint` shows them all. Lines and columns count
from 1, as editors do. `level` is `error` (the file does not load) or `warning` (it loads, and deserves a look).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fumehood.faults import Refused
from fumehood.model import Deny
from fumehood.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding in one file."""

    file: str
    line: int
    column: int
    field: str
    message: str
    level: str = "error"
    reason: Reason = Reason.PROFILE_INVALID

    def __str__(self) -> str:
        """The line a person and an editor read."""
        where = f"{self.file}:{self.line}:{self.column}"
        field = f"{self.field}: " if self.field else ""
        mark = "warning: " if self.level == "warning" else ""
        return f"{where}: {mark}{field}{self.message}"

    def facts(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "field": self.field,
            "level": self.level,
            "reason": self.reason.value,
            "message": self.message,
        }


class Problems(Exception):
    """A file that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Carry at least one problem."""
        self.problems = tuple(problems)
        super().__init__(str(self.problems[0]))

    def refused(self) -> Refused:
        """The refusal that a caller sees: the first problem, and how many more there are."""
        first = self.problems[0]
        more = len(self.problems) - 1
        detail = f"{first}" + (f" (and {more} more)" if more else "")
        remedy = "Remove it; a later release may enforce it." if first.reason is Reason.UNENFORCEABLE else None
        return Refused(Deny(reason=first.reason, rule="profile.load", detail=detail, remedy=remedy))


def nearest(word: str, names: Iterable[str]) -> str:
    """`; nearest valid name: X`, `; valid names: ...`, or nothing when there are too many to help."""
    import difflib  # a millisecond that only a mistake costs

    known = sorted(set(names))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; nearest valid name: {close[0]}"
    return f"; valid names: {', '.join(known)}" if 0 < len(known) <= 32 else ""


def dotted(path: Sequence[str | int]) -> str:
    """`limits.memory`, `filesystem.mounts[0].source`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
