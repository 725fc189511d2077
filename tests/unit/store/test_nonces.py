"""A nonce is taken once, for as long as its request could be taken; what cannot be remembered is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.reasons import Reason
from fumehood.store import nonces
from fumehood.store.database import Database, opened
from fumehood.store.nonces import FURTHEST_S, GRACE_S

NOW = 1_800_000_000.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path / "ledger") as found:
        yield found


def spend(database: Database, nonce: str, *, key: str = "k", until: float = 60.0, at: float = 0.0) -> Reason | None:
    """Both times are seconds after `NOW`."""
    with database.write(durable=True) as conn:
        return nonces.spend(conn, key, nonce, NOW + until, at_s=NOW + at)


def held(database: Database) -> tuple[int, int, int]:
    """How many rows there are, and what the two counts say."""
    with database.read() as conn:
        rows = conn.run("SELECT count(*) FROM nonces").fetchone()[0]
        counted = conn.run("SELECT coalesce(sum(held), 0) FROM nonce_counts").fetchone()[0]
        return rows, counted, conn.run("SELECT held FROM nonces_forgotten").fetchone()[0]


def test_a_nonce_is_taken_once_and_is_its_keys_own(database: Database) -> None:
    assert spend(database, "a") is None
    assert spend(database, "a") is Reason.REPLAYED
    assert spend(database, "a", until=90.0) is Reason.REPLAYED
    assert spend(database, "a", key="other") is None
    assert spend(database, "b") is None
    assert held(database) == (3, 3, 3)


def test_a_nonce_is_remembered_until_nobody_would_take_its_request_and_then_forgotten(database: Database) -> None:
    assert spend(database, "a", until=10.0) is None
    for at in (10.0, 10.0 + GRACE_S):
        assert spend(database, "a", until=10.0, at=at) is Reason.REPLAYED
    assert spend(database, "b", until=200.0, at=11.0 + GRACE_S) is None
    assert held(database) == (1, 1, 1)
    assert spend(database, "a", until=10.0, at=11.0 + GRACE_S) is Reason.PROOF_EXPIRED


def test_a_clock_that_steps_back_opens_no_window_for_what_was_forgotten(database: Database) -> None:
    assert spend(database, "captured", until=60.0) is None
    assert spend(database, "later", until=300.0, at=250.0) is None  # the first is forgotten
    assert held(database) == (1, 1, 1)
    assert spend(database, "captured", until=60.0, at=5.0) is Reason.CLOCK_WENT_BACK
    assert spend(database, "fresh", until=60.0, at=5.0) is Reason.CLOCK_WENT_BACK
    assert spend(database, "later", until=300.0, at=5.0) is Reason.REPLAYED
    assert spend(database, "fresh", until=61.0, at=5.0) is None


def test_a_request_that_lives_for_ever_is_refused(database: Database) -> None:
    assert spend(database, "a", until=FURTHEST_S + 1) is Reason.PROOF_INVALID
    assert held(database) == (0, 0, 0)


def test_one_sender_cannot_fill_the_store_for_the_others(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "NONCES_OF_A_KEY", 3)
    monkeypatch.setattr(nonces, "NONCES", 5)
    assert [spend(database, str(number)) for number in range(4)] == [None, None, None, Reason.NONCES_FULL]
    assert spend(database, "0") is Reason.REPLAYED  # what is remembered is still known
    assert [spend(database, str(number), key="other") for number in range(3)] == [None, None, Reason.NONCES_FULL]


def test_a_full_store_has_room_again_when_what_is_in_it_is_old(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "NONCES_OF_A_KEY", 20)
    monkeypatch.setattr(nonces, "_FORGOTTEN_AT_ONCE", 0)  # what comes by itself
    assert {spend(database, str(number)) for number in range(20)} == {None}
    assert spend(database, "more") is Reason.NONCES_FULL
    assert spend(database, "more", until=160.0, at=61.0 + GRACE_S) is None
    assert held(database) == (1, 1, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 400), st.integers(-100, 400)), max_size=40
    )
)
def test_whatever_the_clock_does_no_request_is_taken_twice(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, str, int, int]]
) -> None:
    taken: set[tuple[str, str, int]] = set()
    with opened(tmp_path_factory.mktemp("n") / "ledger") as database:
        for nonce, key, until, at in asked:
            if spend(database, nonce, key=key, until=float(until), at=float(at)) is None:
                assert (nonce, key, until) not in taken
                taken.add((nonce, key, until))
        rows, counted, total = held(database)
        assert rows == counted == total
