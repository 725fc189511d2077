"""How a figure is judged and printed. No test here looks at how long anything took."""

from __future__ import annotations

import json

import pytest
from measured import Figure, document, quantiles, table


@pytest.mark.parametrize(
    ("figure", "met", "wish"),
    [
        (Figure("f", 6.0, "ms", 6), True, "<= 6"),
        (Figure("f", 6.01, "ms", 6), False, "<= 6"),
        (Figure("f", 0.45, "x", least=0.45), True, ">= 0.45"),
        (Figure("f", 0.44, "x", least=0.45), False, ">= 0.45"),
        (Figure("f", 1.0, "x"), None, ""),
    ],
)
def test_a_target_is_a_most_or_a_least(figure: Figure, *, met: bool | None, wish: str) -> None:
    assert (figure.met, figure.wish) == (met, wish)


def test_the_target_is_judged_at_the_median_and_not_at_p99() -> None:
    middle, last = quantiles("lease", [*range(1, 99), 500.0, 900.0], at_most_ms=50)
    assert (middle.value, middle.unit, middle.met) == (50, "ms p50 of 100", True)
    assert (last.value, last.unit, last.met) == (500, "ms p99 of 100", None)


def test_the_table_says_what_was_reached_and_keeps_small_digits() -> None:
    lines = table(
        [
            Figure("added", 0.567, "ms at p50", 0.6, "0.37 ms to the goal of 0.2"),
            Figure("relay", 0.444, "x", least=0.45),
            Figure("slow", 14.26, "x at p99"),
            Figure("rate", 612.34, "MiB/s"),
        ]
    )
    assert lines == [
        "| figure | value | target |",
        "|---|---|---|",
        "| added (0.37 ms to the goal of 0.2) | 0.57 ms at p50 | <= 0.6: reached |",
        "| relay | 0.44 x | >= 0.45: missed |",
        "| slow | 14.26 x at p99 |  |",
        "| rate | 612.3 MiB/s |  |",
    ]


def test_the_document_has_the_verdicts_and_the_machine() -> None:
    told = json.loads(document([Figure("f", 2.0, "x", least=1.0)], {"cores": 2}))
    assert told["machine"] == {"cores": 2}
    assert told["figures"] == [{"name": "f", "value": 2.0, "unit": "x", "target": None, "note": "", "least": 1.0, "met": True}]
    assert isinstance(json.loads(document([Figure("f", 2.0, "x")])), list)
