"""Pins of the tools that a server has: made here, judged by the ledger.

A pin is the SHA-256 of the RFC 8785 form of everything that decides what a tool is: its whole definition, and what answers for it,
which is an image and a command, or a URL. Invariants: a call carries the pin and the image of the very catalogue that judged its
arguments; what may be called is the ledger's word at the moment when the call's record is opened, and nothing remembered here;
of a server that cannot be pinned, because the ledger is gone or full, nothing is offered.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fumehood.admission.policy import permits
from fumehood.canonical import canonical
from fumehood.disguises import hidden
from fumehood.faults import FumehoodError
from fumehood.gateway.catalogue import Catalogue, Tool
from fumehood.gateway.protocol import CALL_FAILED, NAME, GatewayError, printable
from fumehood.gateway.served import Served
from fumehood.model import Kind, PinOf, PinState, ToolCall
from fumehood.ports import Definition, Images, Ledger

DEFINITION_BYTES = 64 * 1024
_log = logging.getLogger("fumehood")


class Pinning:
    """The pins of one server."""

    def __init__(self, served: Served, ledger: Ledger, images: Images) -> None:
        """Ask `ledger` about the tools of `served`."""
        self._served = served
        self._ledger = ledger
        self._images = images
        self._blocked: dict[str, frozenset[str]] = {}

    @property
    def image(self) -> str | None:
        """The digest of the image that the server would start from now; None for a remote one, or where it is missing."""
        profile = self._served.profile
        found = None if profile.upstream is not None else self._images.resolve(profile.image)
        return None if found is None else found.digest

    async def pinned(self, read: Catalogue, place: str, image: str | None) -> Catalogue:
        """A catalogue that was just read, with its pins, which the ledger now knows. Raises `GatewayError`.

        `place` is which set of client capabilities it was read for; `image` what its server was started from.
        """
        of = PinOf(server=self._served.pinned_as, capabilities=f"sha256:{hashlib.sha256(place.encode()).hexdigest()}")
        tools: dict[str, Tool] = {}
        told: list[Definition] = []
        for name, tool in read.tools.items():
            if not permits(self._served.profile, Kind.TOOL, name):
                tools[name] = tool  # nobody is asked to review what nobody can call
                continue
            try:
                text = self._text(tool.definition, image)
            except ValueError as error:
                _log.warning("the tool %s is not offered: it cannot be pinned: %s", printable(name), error)
                tools[name] = Tool(tool.definition, None, f"it cannot be pinned: {error}")
                continue
            tools[name] = replace(tool, pin=f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
            concealed = next(hidden(tool.definition), None)
            told.append(Definition(tool=name, text=text, trusted=concealed is None))
        try:
            states = await self._ledger.pins_seen(of, self._served.profile.name, place, told)
        except FumehoodError as error:
            raise _gone(error) from error
        blocked = frozenset(name for name, state in states.items() if state is not PinState.ACCEPTED)
        self._blocked[of.capabilities] = blocked
        if blocked:
            shown = ", ".join(f"{printable(name, 80)} ({states[name].value})" for name in sorted(blocked)[:16])
            _log.warning("the server %s: not offered until the operator accepts: %s; see `fumehood pins`", self._served.name, shown)
        return replace(read, tools=tools, pin_of=of, image=image)

    async def offered(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with those tools only that may be called now. Raises `GatewayError`."""
        if catalogue.pin_of is None or not catalogue.tools:
            return catalogue
        try:
            accepted = await self._ledger.pins_of(catalogue.pin_of, self._served.profile.name)
        except FumehoodError as error:
            raise _gone(error) from error
        found = catalogue.tools.items()
        return replace(catalogue, tools={name: tool for name, tool in found if tool.pin and accepted.get(name) == tool.pin})

    async def decided(self, catalogues: Iterable[Catalogue]) -> bool:
        """Whether the operator has decided on something that was blocked when it was last asked about."""
        changed = False
        for each in catalogues:
            if each.pin_of is None or not (before := self._blocked.get(each.pin_of.capabilities)):
                continue
            accepted = (await self.offered(each)).tools
            self._blocked[each.pin_of.capabilities] = now = before - accepted.keys()
            changed = changed or now != before
        return changed

    def _text(self, definition: Mapping[str, Any], image: str | None) -> str:
        """What the pin is the digest of. Raises ValueError."""
        served = self._served
        whole = {"tool": definition, "image": image, "argv": list(served.argv), "url": served.profile.upstream}
        text = canonical(whole)
        if len(text) > DEFINITION_BYTES:
            raise ValueError(f"its definition has over {DEFINITION_BYTES} bytes")
        return text.decode()


def stamped(call: ToolCall, judge: Catalogue) -> ToolCall:
    """The call as one that this catalogue has judged."""
    if call.kind is not Kind.TOOL:
        return replace(call, image_digest=judge.image)
    tool = judge.tools.get(call.tool or "")
    return replace(call, image_digest=judge.image, pin=None if tool is None else tool.pin, pin_of=judge.pin_of)


def _gone(error: FumehoodError) -> GatewayError:
    return GatewayError(CALL_FAILED, f"{NAME}: {printable(str(error), 1000)}", {"reason": error.reason.value})
