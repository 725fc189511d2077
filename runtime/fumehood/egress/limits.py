"""What one task may use of the gate, and all tasks together.

Pure but for the clock it is given: times are seconds of a clock that never steps. Invariants: no byte goes on that a cap does not
cover; memory for bytes on their way is counted for all tasks together, and when there is none left nobody may buffer ahead, but
everybody's next read still goes through once what was read before is written: slower for all, never stuck, never more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fumehood.egress.refusals import Rejected, Why
from fumehood.reach import EgressKind, EgressRule, NetworkLimits

BYTES_OUT = Why("bytes_out", "the call has sent all it may", "Raise `network.limits.bytes_out` if it must send more.")
BYTES_IN = Why("bytes_in", "the call has received all it may", "Raise `network.limits.bytes_in` if it must receive more.")

MOST_CONNECTIONS = 256  # of one task, whatever its profile says
HEAD_S = 5.0  # for a whole ClientHello or HTTP head, however it drips
CONNECTION_BYTES = 32 * 2**10  # what a connection takes before it buffers anything
TLS_BYTES = 256 * 2**10  # and what asyncio makes for each of its sides that TLS ends at, whether it is used or not
READ_BYTES = 256 * 2**10  # at once, of one direction of a connection; less where a rate is kept, which it would overshoot
_QUESTIONS_AT_ONCE_S = 3.0  # a program that starts asks for many names, each twice
_ACCEPTS_PER_S, _ACCEPTS_AT_ONCE = 64.0, 128.0


def connection_bytes(rule: EgressRule) -> int:
    """What a connection of a rule takes as long as it is there."""
    match rule.kind:
        case EgressKind.HTTP:
            sides = 0 if rule.insecure else 2
        case EgressKind.POSTGRES:
            sides = 0 if rule.credential is None else 1  # in the box there is none
        case _:
            sides = 0
    return CONNECTION_BYTES + sides * TLS_BYTES


@dataclass(slots=True)
class Bucket:
    """So many a second, and so many at once. `None` a second is no limit."""

    per_s: float | None
    at_once: float
    _left: float = field(init=False)
    _at_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._left = self.at_once

    def take(self, now_s: float, amount: float = 1.0) -> bool:
        """Take `amount` if it is there."""
        self._fill(now_s)
        if self.per_s is not None and self._left < amount:
            return False
        self._left -= amount
        return True

    def spend(self, now_s: float, amount: float) -> float:
        """Take `amount` whether it is there or not; the seconds until the debt is paid."""
        self._fill(now_s)
        self._left -= amount
        return self.wait_s(now_s, 0.0)

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        """The seconds until `amount` is there."""
        self._fill(now_s)
        return 0.0 if self.per_s is None else max(0.0, (amount - self._left) / self.per_s)

    def _fill(self, now_s: float) -> None:
        if self.per_s is None:
            self._left = self.at_once
        else:
            self._left = min(self.at_once, self._left + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = now_s


class Meter:
    """One task's bytes, questions and connections."""

    def __init__(self, limits: NetworkLimits) -> None:
        """Count from nothing."""
        self.limits = limits
        self.connections_most = min(limits.connections, MOST_CONNECTIONS)
        self.bytes_out = 0
        self.bytes_in = 0
        self.questions = Bucket(float(limits.dns_per_second), _QUESTIONS_AT_ONCE_S * limits.dns_per_second)
        self.accepts = Bucket(_ACCEPTS_PER_S, _ACCEPTS_AT_ONCE)
        rate = limits.bytes_per_second
        self._rate = Bucket(None if rate is None else float(rate), float(rate or 0))
        self.read_bytes = READ_BYTES if rate is None else max(1024, min(READ_BYTES, rate // 16))

    def sent(self, count: int, now_s: float) -> float:
        """Bytes about to leave the box for the world; the seconds to wait before the next. Raises Rejected(BYTES_OUT)."""
        if self.bytes_out + count > self.limits.bytes_out:
            raise Rejected(BYTES_OUT, bytes_out=self.bytes_out, limit=self.limits.bytes_out)
        self.bytes_out += count
        return self._rate.spend(now_s, count)

    def received(self, count: int, now_s: float) -> float:
        """Bytes about to enter the box; the seconds to wait before the next. Raises Rejected(BYTES_IN)."""
        if self.bytes_in + count > self.limits.bytes_in:
            raise Rejected(BYTES_IN, bytes_in=self.bytes_in, limit=self.limits.bytes_in)
        self.bytes_in += count
        return self._rate.spend(now_s, count)


class Budget:
    """The memory that all gates of a runtime may use for bytes on their way."""

    def __init__(self, most_bytes: int) -> None:
        """Nothing is used yet."""
        self.most_bytes = most_bytes
        self.used_bytes = 0

    @property
    def is_tight(self) -> bool:
        """Whether nothing may be buffered ahead: half of it is kept for new connections, so that unread downloads block none."""
        return self.used_bytes >= self.most_bytes // 2

    def take(self, count: int) -> bool:
        """Take memory for something new, unless there is none."""
        if self.used_bytes + count > self.most_bytes:
            return False
        self.used_bytes += count
        return True

    def change(self, count: int) -> None:
        """Note that what is under way has grown, or shrunk."""
        self.used_bytes += count
