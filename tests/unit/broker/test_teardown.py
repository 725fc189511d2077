from __future__ import annotations

import pytest

from fumehood.broker.teardown import Teardown


@pytest.mark.parametrize(("found", "clean"), [({}, True), ({"init": True, "cgroup": True}, True), ({"init": True, "cgroup": False}, False)])
def test_a_box_is_gone_when_everything_that_was_looked_at_is(found: dict[str, bool], clean: bool) -> None:
    teardown = Teardown()
    for what, gone in found.items():
        assert teardown.take(what, lambda gone=gone: gone) is gone
    facts = teardown.facts()
    assert (teardown.is_clean, facts["clean"]) == (clean, clean)
    assert {what: each["gone"] for what, each in facts["taken"].items()} == found
    assert sum(each["ms"] for each in facts["taken"].values()) <= facts["removed_in_ms"] + 0.1
