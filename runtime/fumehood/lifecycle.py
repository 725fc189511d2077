"""The states of a call as one table. A pair that is not in `NEXT` is a fault of ours."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a call is on its path."""

    OPEN = "open"
    VERIFIED = "verified"
    DECIDED = "decided"
    WAITING = "waiting"
    GRANTED = "granted"
    PLANNED = "planned"
    QUEUED = "queued"
    MADE = "made"
    BOUND = "bound"
    RUNNING = "running"
    PARKED = "parked"
    EXITED = "exited"
    SETTLED = "settled"
    REMOVED = "removed"
    CLOSED = "closed"


class Event(StrEnum):
    """What moves a call. `ENDED` may come at any time: refusal, timeout, cancel, crash."""

    VERIFY = "verify"
    DECIDE = "decide"
    ASK = "ask"
    GRANT = "grant"
    PLAN = "plan"
    QUEUE = "queue"
    MAKE = "make"
    BIND = "bind"
    START = "start"
    PARK = "park"
    RESUME = "resume"
    EXIT = "exit"
    SETTLE = "settle"
    REMOVE = "remove"
    CLOSE = "close"


_STRAIGHT = (
    (State.OPEN, Event.VERIFY, State.VERIFIED),
    (State.VERIFIED, Event.DECIDE, State.DECIDED),
    (State.DECIDED, Event.GRANT, State.GRANTED),
    (State.DECIDED, Event.ASK, State.WAITING),
    # Asked anew: the policy changed while a person thought, or an equal request was faster.
    (State.WAITING, Event.ASK, State.WAITING),
    (State.WAITING, Event.GRANT, State.GRANTED),
    (State.GRANTED, Event.PLAN, State.PLANNED),
    (State.PLANNED, Event.QUEUE, State.QUEUED),  # only where no box was free at once
    (State.PLANNED, Event.MAKE, State.MADE),
    (State.QUEUED, Event.MAKE, State.MADE),
    (State.MADE, Event.BIND, State.BOUND),
    (State.BOUND, Event.START, State.RUNNING),
    (State.RUNNING, Event.PARK, State.PARKED),
    (State.PARKED, Event.RESUME, State.RUNNING),
    (State.RUNNING, Event.EXIT, State.EXITED),
    (State.PARKED, Event.EXIT, State.EXITED),
    (State.EXITED, Event.SETTLE, State.SETTLED),
)

NEXT: dict[tuple[State, Event], State] = {
    **{(before, event): after for before, event, after in _STRAIGHT},
    # A box is removed from wherever its call had come to; a call closes from wherever its box is gone or never was.
    **{(state, Event.REMOVE): State.REMOVED for state in State if state is not State.CLOSED},
    **{(state, Event.CLOSE): State.CLOSED for state in State if state is not State.CLOSED},
}
