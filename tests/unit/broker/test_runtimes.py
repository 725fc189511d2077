"""Which runtime makes a box, and which never does."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxlike import settings_for
from fumehood.broker.host import Host, find_runtime
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason


def test_a_runtime_that_hides_its_boxes_is_refused_by_name(tmp_path: Path) -> None:
    host = object.__new__(Host)
    host.settings, host.engines = settings_for(tmp_path), {}
    with pytest.raises(BoxFailed, match="nothing could be read back") as refused:
        host._engine("oci", "runsc")
    assert refused.value.reason is Reason.UNENFORCEABLE


def test_the_runtime_named_is_used_or_none(tmp_path: Path) -> None:
    mine = tmp_path / "crun"
    mine.write_text("")
    mine.chmod(0o755)
    assert find_runtime("crun", {"crun": str(mine)}) == mine
    assert find_runtime(None, {"crun": str(mine)}) == mine
    with pytest.raises(BoxFailed) as refused:
        find_runtime("runc", {"runc": str(tmp_path / "nowhere")})
    assert refused.value.reason is Reason.ENGINE_UNAVAILABLE
