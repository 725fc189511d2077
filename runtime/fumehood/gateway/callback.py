"""Takes approvers' signed answers over HTTP: who brings one needs no token, because the answer itself shows whose it is.

Attack: anybody who reaches the port may ask. What no approver's key has signed is found out here, so that it costs the ledger nothing;
what passes is verified again by the ledger, which is the one that counts. How many are looked at at once is bounded. All that a sender
learns is whether an answer was taken: unknown approvals, another binding, a spent `jti` and a forged signature look the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fumehood.approvals.answers import MOST_CHARS, UnfitError, opened
from fumehood.faults import FumehoodError, Refused
from fumehood.ports import Ports

MOST_BYTES = MOST_CHARS
AT_ONCE = 8
_log = logging.getLogger("fumehood")


class Callback:
    """The path where answers come."""

    def __init__(self, ports: Ports) -> None:
        """Have looked at none yet."""
        self._ports = ports
        self._count = 0

    @contextmanager
    def one_more(self) -> Iterator[bool]:
        """Look at one for the body, if that is not one too many."""
        self._count += 1
        try:
            yield self._count <= AT_ONCE
        finally:
            self._count -= 1

    async def take(self, body: bytes) -> int:
        """The HTTP status of an answer: 204 when it was taken."""
        approvals = self._ports.approvals
        try:
            text = body.decode("ascii").strip()
            opened(text, approvals.keys, approvals.audience, self._ports.clock.wall_s())
            await self._ports.ledger.approval_answer(text)
        except (UnfitError, UnicodeDecodeError, Refused) as error:
            _log.warning("an answer was not accepted: %s", error)
            return 403
        except FumehoodError as error:
            _log.error("an answer could not be taken: %s", error)
            return 503
        return 204
