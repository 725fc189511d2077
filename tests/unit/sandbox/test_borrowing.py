"""A call in a box that another task hosts, when that box ends at the wrong moment."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import pytest

from fumehood.faults import BoxFailed
from fumehood.lifecycle import NEXT, Event, State
from fumehood.model import Usage
from fumehood.reasons import Reason
from fumehood.sandbox.borrowing import Borrowed

pytestmark = pytest.mark.anyio


class Path:
    """A record's log that takes only what may follow."""

    def __init__(self) -> None:
        self.state = State.BOUND

    async def event(self, event: Event, **_: Any) -> None:
        self.state = NEXT[self.state, event]


class Dying:
    """A visitor whose box ends at one of its verbs."""

    number = 1
    readback: dict[str, Any] = {}  # noqa: RUF012 - read by one test

    def __init__(self, dies_at: str) -> None:
        self._dies_at = dies_at
        self.asked: list[str] = []

    async def thaw(self) -> None:
        await self._ask("thaw")

    async def freeze(self, _seconds: float | None = None) -> Usage:
        await self._ask("freeze")
        return Usage()

    async def _ask(self, verb: str) -> None:
        self.asked.append(verb)
        await anyio.lowlevel.checkpoint()
        if verb == self._dies_at:
            raise BoxFailed(Reason.BOX_DIED, "the box's init is gone")


@pytest.mark.parametrize(("dies_at", "left_at"), [("thaw", State.BOUND), ("freeze", State.EXITED), ("never", State.EXITED)])
async def test_a_box_that_ends_before_or_after_its_server_went_on_is_left_as_it_was_entered(dies_at: str, left_at: State) -> None:
    path, visitor = Path(), Dying(dies_at)
    box = Borrowed(visitor, path)  # type: ignore[arg-type]
    try:
        await box.enter()
    except BoxFailed as error:
        assert (dies_at, error.reason) == ("thaw", Reason.BOX_DIED)
    await box.leave()
    await box.leave()
    assert path.state is left_at
    assert visitor.asked == ["thaw", "freeze"], "it is stopped again though nobody knows whether it went on"
