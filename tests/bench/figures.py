"""What the samples of one run say: pure.

Invariants: times are milliseconds; percentiles are by nearest rank, so each is a time that was measured (with fewer than
a hundred samples p99 is the slowest one). Every contender runs once in every round, so round by round a contender and
its peer met the same machine: `ratio_paired` is the median of these quotients and survives drift that the quotient of
two medians does not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured run: how long it took, and for a call of ours which stage took how much of it."""

    ms: float
    stages_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be reached at p50: a multiple of the peer, the peer and some milliseconds, or a time. One of them is set."""

    ratio: float | None = None
    more_ms: float | None = None
    at_most_ms: float | None = None

    def text(self) -> str:
        """The target as a column shows it."""
        if self.ratio is not None:
            return f"<= {self.ratio:g}x"
        if self.more_ms is not None:
            return f"<= +{self.more_ms:g} ms"
        return f"<= {self.at_most_ms:g} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One contender's line. What needs a peer that did not run is None."""

    name: str
    n: int
    min_ms: float
    p50_ms: float
    p99_ms: float
    peer: str | None
    ratio_p50: float | None
    ratio_p99: float | None
    ratio_paired: float | None
    more_ms: float | None
    target: str | None
    met: bool | None
    stages_ms: Mapping[str, float]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def figures(
    name: str, samples: Sequence[Sample], *, peer: str | None, peer_samples: Sequence[Sample], target: Target | None
) -> Figures:
    """A contender's line from its samples and those of the peer, both in the order of the rounds."""
    times = [sample.ms for sample in samples]
    theirs = [sample.ms for sample in peer_samples]
    p50, p99 = percentile(times, 50), percentile(times, 99)
    compared = bool(theirs)
    ratio = p50 / percentile(theirs, 50) if compared else None
    more = p50 - percentile(theirs, 50) if compared else None
    return Figures(
        name=name,
        n=len(times),
        min_ms=min(times),
        p50_ms=p50,
        p99_ms=p99,
        peer=peer,
        ratio_p50=ratio,
        ratio_p99=p99 / percentile(theirs, 99) if compared else None,
        ratio_paired=statistics.median(a / b for a, b in zip(times, theirs, strict=True)) if compared else None,
        more_ms=more,
        target=None if target is None else target.text(),
        met=None if target is None else _met(target, p50, ratio, more),
        stages_ms=stage_medians(samples),
    )


def stage_medians(samples: Sequence[Sample]) -> dict[str, float]:
    """The median of each stage, in the order in which the stages first came."""
    names = dict.fromkeys(name for sample in samples for name in sample.stages_ms)
    return {name: statistics.median(sample.stages_ms.get(name, 0.0) for sample in samples) for name in names}


def bar(value: float, longest: float, width: int) -> str:
    """A bar of at most `width` characters, in eighths of one; never empty, so that the fastest is still seen."""
    eighths = max(1, round(value / longest * width * 8)) if longest > 0 else 1
    full, rest = divmod(eighths, 8)
    return "█" * full + (chr(0x2590 - rest) if rest else "")


def _met(target: Target, p50_ms: float, ratio: float | None, more_ms: float | None) -> bool | None:
    if target.ratio is not None:
        return None if ratio is None else ratio <= target.ratio
    if target.more_ms is not None:
        return None if more_ms is None else more_ms <= target.more_ms
    return target.at_most_ms is not None and p50_ms <= target.at_most_ms
