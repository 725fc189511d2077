"""Runs the work in the bound box, bounds what comes out, and says how it ended.

`Work` is what happens inside: a `Command` (argument list, streams), an `Exchange` (a conversation with a server over the
box's streams), `Hosting` (a session's server, kept for others), a `Visit` (a conversation with such a server) or a `Call` (one with
a remote server, through the gate). Output beyond its limit is read and thrown away, so that a chatty tool is not killed by a full
pipe; at sixteen times the limit it is. The box's streams are pipes, never terminals.
"""

from fumehood.execution.running import ENVIRONMENT, run
from fumehood.execution.work import (
    Call,
    Command,
    Exchange,
    Hosting,
    Parking,
    Streams,
    Visit,
    Work,
    argv_of,
    recall_of,
    requester_of,
)
from fumehood.residence import ServerStreams

__all__ = [
    "ENVIRONMENT", "Call", "Command", "Exchange", "Hosting", "Parking", "ServerStreams", "Streams", "Visit", "Work", "argv_of",
    "recall_of", "requester_of", "run",
]  # fmt: skip
