"""What a box that is made ahead may have reached: nothing, and nothing may be left untried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fumehood
from fumehood.broker.fencing import PROBES, judge_fence

STOPPED = dict.fromkeys(PROBES, "ECONNREFUSED")


def test_a_fence_that_stops_everything_has_no_hole() -> None:
    assert judge_fence(STOPPED) == []


@pytest.mark.parametrize("name", PROBES)
def test_whatever_was_reached_or_not_tried_is_a_hole(name: str) -> None:
    assert judge_fence({**STOPPED, name: "reached"}) == [f"the box reaches {name}"]
    assert judge_fence({each: said for each, said in STOPPED.items() if each != name}) == [f"the box reaches {name}"]


def test_init_tries_as_many_as_are_judged() -> None:
    source = (Path(fumehood.__file__).parent / "broker" / "init" / "init.c").read_text()
    assert [int(number) for number in re.findall(r"report\('C', (\d+),", source)] == list(range(len(PROBES)))
