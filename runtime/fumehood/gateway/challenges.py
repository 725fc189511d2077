"""What a request must be signed for: a challenge that only this gateway, for this client, at this time could have given.

It is a MAC, so nothing is kept for clients that never come back, and it is bound to
* the gateway process: the key is made at its start and is nowhere else. What was captured before a restart, or is shown to a second
  gateway on the same database, was signed for another;
* the front door, and the sender that its transport knows: another sender's is another's;
* what lasts, where something does: the stdio or unix connection, the HTTP session of an older client. The stateless HTTP of 2026-07-28
  has neither, so there it is bound to the rest alone, and it is the nonce that keeps a message from being taken twice;
* the time, by a clock that never steps: this epoch's and the one's before it are taken, so a challenge is good for 5 to 10 minutes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets

from fumehood.model import Sender
from fumehood.ports import Clock
from fumehood.thumbprint import text_of

EPOCH_S = 300.0


class Challenges:
    """The challenges of one front door of one gateway process."""

    def __init__(self, clock: Clock) -> None:
        """Make the key that this process alone has."""
        self._clock = clock
        self._key = secrets.token_bytes(32)

    def of(self, sender: Sender, connection: str | None) -> str:
        """The challenge for a client now."""
        return self._made(sender, connection, self._epoch())

    def good(self, sender: Sender, connection: str | None) -> frozenset[str]:
        """Those that a client may still answer."""
        epoch = self._epoch()
        return frozenset(self._made(sender, connection, each) for each in (epoch, epoch - 1))

    def _epoch(self) -> int:
        return int(self._clock.monotonic_s() // EPOCH_S)

    def _made(self, sender: Sender, connection: str | None, epoch: int) -> str:
        bound = json.dumps([sender.tenant, sender.uid, sender.name, connection, epoch])
        return text_of(hmac.digest(self._key, bound.encode("utf-8", "surrogatepass"), hashlib.sha256))
