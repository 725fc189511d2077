"""One figure beside its target, and the table and the document of many: pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from figures import percentile


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: what, how much, and the most (`target`) or the least that it should be."""

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""
    least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is within its target."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.target is None else self.value <= self.target

    @property
    def wish(self) -> str:
        """The target as a column shows it."""
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.target is None else f"<= {self.target:g}"


def quantiles(name: str, values_ms: Sequence[float], at_most_ms: float | None = None) -> list[Figure]:
    """Median, which has the target, and p99."""
    count = len(values_ms)
    return [
        Figure(name, percentile(values_ms, 50), f"ms p50 of {count}", at_most_ms),
        Figure(name, percentile(values_ms, 99), f"ms p99 of {count}"),
    ]


def table(figures: Sequence[Figure]) -> list[str]:
    """The figures as Markdown; a ratio, and what is small, with two digits behind the point."""
    lines = ["| figure | value | target |", "|---|---|---|"]
    for each in figures:
        verdict = "" if each.met is None else f"{each.wish}: {'reached' if each.met else 'missed'}"
        note = f" ({each.note})" if each.note else ""
        is_fine = each.unit.startswith("x") or 0 < abs(each.value) < 10
        value = f"{each.value:.2f}" if is_fine else f"{each.value:.1f}"
        lines.append(f"| {each.name}{note} | {value} {each.unit} | {verdict} |")
    return lines


def document(figures: Sequence[Figure], about: Mapping[str, Any] | None = None) -> str:
    """What --json writes: the figures, and what machine they are of where that is known."""
    told = [{**asdict(each), "met": each.met} for each in figures]
    return json.dumps(told if about is None else {"machine": dict(about), "figures": told}, indent=1) + "\n"
