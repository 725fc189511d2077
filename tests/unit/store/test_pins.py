"""Tool pins: what is accepted at first sight, what never is, and how much of one server is kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fumehood.model import PinState
from fumehood.store import pins
from fumehood.store.database import Transaction, opened
from fumehood.store.pins import BYTES_OF_A_SERVER, SERVERS, FullError, Place, pin_of

PLAIN, SAMPLER = (Place(server="s", profile="p", capabilities=each) for each in ("plain", "sampler"))


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Transaction]:
    with opened(tmp_path / "ledger") as database, database.write(durable=False) as found:
        yield found


def see(
    conn: Transaction, text: str, place: Place = PLAIN, *, tool: str = "t", review: bool = False, trusted: bool = True
) -> PinState:
    """What becomes of a tool with this definition."""
    pins.see(conn, place, [{"tool": tool, "text": text, "trusted": trusted}], "[]", review=review, at_s=1.0)
    return pins.state(conn, place, tool, pin_of(text), review=review)


def accept(conn: Transaction, text: str, server: str = "s", tool: str = "t") -> bool:
    return pins.accept(conn, {"server": server, "profile": "p", "tool": tool, "pin": pin_of(text)}, at_s=2.0)


def reject(conn: Transaction, text: str) -> bool:
    return pins.reject(conn, {"server": "s", "profile": "p", "tool": "t", "pin": pin_of(text)})


def rows(conn: Transaction) -> list[dict[str, Any]]:
    return [dict(row) for row in pins.pins(conn, dict.fromkeys(("server", "profile", "tool", "capabilities"), ""))["pins"]]


def test_the_first_sight_follows_the_operators_mode(conn: Transaction) -> None:
    assert see(conn, "a") is PinState.ACCEPTED
    assert see(conn, "b", tool="u", review=True) is PinState.NEW


def test_what_hides_something_is_trusted_at_no_sight(conn: Transaction) -> None:
    assert see(conn, "a", trusted=False) is PinState.NEW
    assert see(conn, "a", trusted=True) is PinState.NEW, "a second sight is no first one"


@pytest.mark.parametrize("review", [False, True])
def test_rug_pull_between_two_listings_blocks_the_tool_in_both_modes_until_it_is_accepted(conn: Transaction, review: bool) -> None:
    see(conn, "a", review=review)
    assert accept(conn, "a")
    assert see(conn, "a", review=review) is PinState.ACCEPTED
    assert see(conn, "evil", review=review) is PinState.CHANGED
    assert pins.state(conn, PLAIN, "t", pin_of("a"), review=review) is PinState.CHANGED, "also for who knows the old list"
    assert accept(conn, "evil")
    assert pins.state(conn, PLAIN, "t", pin_of("evil"), review=review) is PinState.ACCEPTED


def test_a_tool_that_is_again_what_was_accepted_may_be_called_again(conn: Transaction) -> None:
    see(conn, "a")
    assert see(conn, "evil") is PinState.CHANGED
    assert see(conn, "a") is PinState.ACCEPTED


def test_rug_pull_by_capabilities_is_a_change_and_no_first_sight(conn: Transaction) -> None:
    assert see(conn, "a") is PinState.ACCEPTED
    assert see(conn, "evil", SAMPLER) is PinState.NEW
    assert see(conn, "a", PLAIN) is PinState.ACCEPTED, "who sees what was accepted is not disturbed"


def test_a_list_that_varies_with_capabilities_does_not_drift(conn: Transaction) -> None:
    see(conn, "a")
    see(conn, "longer", SAMPLER)
    assert accept(conn, "longer")
    for _ in range(3):
        assert see(conn, "a") is PinState.ACCEPTED
        assert see(conn, "longer", SAMPLER) is PinState.ACCEPTED


def test_what_was_accepted_for_one_kind_of_client_needs_no_second_review_for_another(conn: Transaction) -> None:
    see(conn, "a", review=True)
    assert accept(conn, "a")
    assert see(conn, "a", SAMPLER, review=True) is PinState.ACCEPTED
    see(conn, "b", review=True)
    assert accept(conn, "b")
    assert see(conn, "b", SAMPLER, review=True) is PinState.ACCEPTED, "known there as `a` until now"


def test_a_tool_accepted_for_one_server_is_not_accepted_for_another(conn: Transaction) -> None:
    see(conn, "a", review=True)
    assert accept(conn, "a")
    for other in (Place(server="s2", profile="p", capabilities="plain"), Place(server="s", profile="p2", capabilities="plain")):
        assert see(conn, "a", other, review=True) is PinState.NEW


def test_accepting_races_with_a_second_change_and_loses(conn: Transaction) -> None:
    see(conn, "a")
    see(conn, "b")
    see(conn, "c")
    assert not accept(conn, "b"), "the operator looked at `b`"
    assert pins.state(conn, PLAIN, "t", pin_of("c"), review=False) is PinState.CHANGED


def test_what_was_trusted_at_first_sight_is_not_reviewed_when_the_mode_becomes_review(conn: Transaction) -> None:
    see(conn, "a")
    assert pins.state(conn, PLAIN, "t", pin_of("a"), review=True) is PinState.NEW
    assert accept(conn, "a")
    assert pins.state(conn, PLAIN, "t", pin_of("a"), review=True) is PinState.ACCEPTED


def test_what_was_rejected_is_blocked_for_every_client_and_comes_back_only_as_what_was_accepted(conn: Transaction) -> None:
    see(conn, "a")
    see(conn, "a", SAMPLER)
    see(conn, "b")
    assert reject(conn, "b")
    assert pins.state(conn, PLAIN, "t", pin_of("b"), review=False) is PinState.REJECTED
    assert see(conn, "a") is PinState.ACCEPTED
    assert reject(conn, "a")
    see(conn, "b", SAMPLER)
    assert see(conn, "a", SAMPLER) is PinState.REJECTED
    assert see(conn, "a", Place(server="s", profile="p", capabilities="third")) is PinState.REJECTED
    assert accept(conn, "a")
    assert pins.state(conn, SAMPLER, "t", pin_of("a"), review=False) is PinState.ACCEPTED


def test_a_call_by_a_pin_that_is_not_the_one_in_force_is_out_of_date(conn: Transaction) -> None:
    see(conn, "a")
    assert pins.state(conn, PLAIN, "t", pin_of("old"), review=False) is PinState.CHANGED
    assert pins.state(conn, PLAIN, "never", pin_of("a"), review=False) is PinState.NEW


def test_a_pin_is_of_the_text_that_is_shown(conn: Transaction) -> None:
    see(conn, "a")
    see(conn, "evil")
    (row,) = rows(conn)
    assert [pins.text_of(conn, "s", row[name]) for name in ("accepted", "seen")] == ["a", "evil"]
    assert pins.text_of(conn, "another", row["seen"]) is None


def test_a_worker_that_makes_definitions_up_does_not_fill_the_disk(conn: Transaction) -> None:
    text = "x" * 65_536
    kept = 0
    with suppress(FullError):
        while kept * len(text) <= BYTES_OF_A_SERVER:
            see(conn, text, tool=f"t{kept}")
            kept += 1
    assert 32 < kept < BYTES_OF_A_SERVER // len(text)


def test_a_worker_that_makes_servers_up_does_not_fill_the_disk(conn: Transaction) -> None:
    for number in range(SERVERS):
        see(conn, "a", Place(server=str(number), profile="p", capabilities="c"))
    with pytest.raises(FullError):
        see(conn, "a", Place(server="one more", profile="p", capabilities="c"))
    assert pins.forget(conn, "0", "p") == 1
    see(conn, "a", Place(server="new", profile="p", capabilities="c"))


def test_a_server_that_was_forgotten_is_seen_for_the_first_time_again(conn: Transaction) -> None:
    see(conn, "a")
    see(conn, "evil")
    assert pins.forget(conn, "s", "p") == 1
    assert see(conn, "evil") is PinState.ACCEPTED


def test_long_lists_come_in_pages(conn: Transaction) -> None:
    names = [f"t{number:04}" for number in range(1200)]
    pins.see(conn, PLAIN, [{"tool": name, "text": name, "trusted": True} for name in names], "[]", review=False, at_s=1.0)
    found: list[str] = []
    more, after = True, None
    while more:
        page = pins.states(conn, PLAIN, after, review=False)
        found += [row["tool"] for row in page["pins"]]
        more, after = page["more"], found[-1]
    assert found == names


def test_half_an_acceptance_cannot_be_written(conn: Transaction) -> None:
    see(conn, "a")
    with pytest.raises(sqlite3.IntegrityError):
        conn.run("UPDATE pins SET accepted_text = NULL")
