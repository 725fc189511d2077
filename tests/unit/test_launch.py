"""How a runtime starts when one of its processes ends at the wrong moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxlike import settings_for
from fumehood import wire
from fumehood.faults import FumehoodError
from fumehood.launch import Crew
from fumehood.reasons import Reason


def test_a_process_that_was_killed_before_it_began_is_told_and_no_traceback(tmp_path: Path) -> None:
    ours, theirs = wire.pair()
    theirs.close()
    mine, other = wire.pair()
    crew = Crew(ledger=mine, broker=None, briefings={"ledger": ours}, children=[])
    with pytest.raises(FumehoodError, match="the ledger ended before it began") as found:
        crew.brief(settings_for(tmp_path))
    assert found.value.reason is Reason.BROKER_DIED
    crew.dismiss()
    other.close()
