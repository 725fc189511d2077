"""What changed in a gateway, told to whoever listens: transports turn it into notifications of each client's era."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fumehood.model import Sender

ListKind = Literal["tools", "prompts", "resources"]
LIST_KINDS: tuple[ListKind, ...] = ("tools", "prompts", "resources")


@dataclass(frozen=True, slots=True)
class Event:
    """A list that is another now (`tools`, `prompts`, `resources`), one `resource` that has changed, or one `task`.

    `uri` names the one resource or task. `sender` is whom it concerns, None for everybody; `connections` which of their
    connections, None for every one.
    """

    kind: Literal["tools", "prompts", "resources", "resource", "task"]
    uri: str | None = None
    sender: Sender | None = None
    connections: frozenset[str] | None = None


class Events:
    """The listeners of one gateway."""

    def __init__(self) -> None:
        """Have none."""
        self._listeners: list[Callable[[Event], None]] = []

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Tell `listener` every event from now on; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def publish(self, event: Event) -> None:
        """Tell everybody."""
        for listener in list(self._listeners):
            listener(event)
