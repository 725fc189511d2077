"""A few rounds of `scripts/chaos` on each engine, and that its judge would have said so."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack

import pytest

from chaotic import Chaos, Told, judged, told_of
from lab import lab_for, needs_oci
from own_docker import own_docker

ROUNDS = int(os.environ.get("FUMEHOOD_CHAOS_ROUNDS", "6"))


@pytest.mark.root
@pytest.mark.parametrize("name", ["oci", "docker"])
def test_kills_at_random_moments_leave_nothing_and_lose_no_answer(name: str, has_docker: bool) -> None:
    if name == "docker" and not has_docker:
        pytest.skip("no Docker engine answers")
    seed = secrets.randbelow(2**32)
    with lab_for("python", f"c{name[0]}") as lab, ExitStack() as stack:
        needs_oci()
        docker = stack.enter_context(own_docker("python")) if name == "docker" else None
        chaos = Chaos(lab, name, seed, docker)
        assert [*chaos.rounds(ROUNDS)] == [*range(1, ROUNDS + 1)]
        chaos.judge()
        assert chaos.problems == [], f"scripts/chaos --engine {name} --rounds {ROUNDS} --seed {seed}"
        assert chaos.told, seed


CLOSED = {"a": ("closed", "ok", None), "b": ("closed", "lost", "runtime_died")}


@pytest.mark.parametrize(
    ("told", "found", "wrong"),
    [
        (Told("a", "ok", None), CLOSED, []),
        (Told("b", "ok", None), CLOSED, ["told of b: ok None; its record says lost runtime_died"]),
        (Told("b", "killed", "wall"), CLOSED, ["told of b: killed wall; its record says lost runtime_died"]),
        (Told("c", "ok", None), CLOSED, ["told of c: ok None, and there is no record"]),
        (Told("b", "lost", "runtime_died"), CLOSED, []),
        (Told("c", "refused", "ledger_unavailable"), CLOSED, []),
        (Told("a", "ok", None), {"a": ("running", None, None)}, ["the record of a is still running", "told of a: ok None; its record says None None"]),
    ],
)
def test_an_answer_and_its_record_must_say_the_same(
    told: Told, found: dict[str, tuple[str, str | None, str | None]], wrong: list[str]
) -> None:
    assert judged([told], found) == wrong


def test_what_an_answer_tells_of_its_call() -> None:
    outcome = {"task": "t", "result": "killed", "reason": "wall"}
    assert told_of({"result": {"_meta": {"fumehood/task": "t"}}}) == Told("t", "ok", None)
    assert told_of({"result": {"_meta": {"fumehood/task": "t", "fumehood/outcome": outcome}}}) == Told("t", "killed", "wall")
    assert told_of({"error": {"data": {**outcome, "result": "refused"}}}) == Told("t", "refused", "wall")
    assert told_of({"error": {"code": 1}}) is None
