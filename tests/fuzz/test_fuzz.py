from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzzing


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_strangers_bytes_never_break_a_parser_nor_its_promise(target: str) -> None:
    # As many as fit into a moment; `scripts/fuzz` runs as long as one likes. A failure's note says how to repeat it.
    assert fuzzing.fuzz(target, 0.5, random.SystemRandom().randrange(2**32)) > 50


def test_what_breaks_a_promise_is_found_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(data: bytes) -> None:
        assert b"\xff" not in data

    monkeypatch.setitem(fuzzing.TARGETS, "broken", fuzzing.Target((b"seed",), check))
    with pytest.raises(AssertionError) as failed:
        fuzzing.fuzz("broken", 10, 1)
    assert "target broken, seed 1" in failed.value.__notes__[0]
