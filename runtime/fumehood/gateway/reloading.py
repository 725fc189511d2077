"""What the operator process reads again when it is asked: the same file, for the same fronts, or a refusal.

What only the start can do is compared and refused, not passed over: after a reload the file says what is in force.
"""

from __future__ import annotations

import os

from fumehood import config, launch
from fumehood.faults import FumehoodError
from fumehood.gateway.reading import Fronts, Reader
from fumehood.gateway.served import ServedSet, parts_of
from fumehood.operating import Allowed, Revision
from fumehood.reasons import Reason
from fumehood.settings import Settings

_AT_THE_START = ("state", "boxes", "docker_host", "accept_risk", "runtimes")


def reread(begun: Settings, fronts: Fronts, serving: ServedSet) -> Revision:
    """The configuration as it is now. Raises FumehoodError, and then nothing has changed.

    `begun` are the settings of the start, which name the file; `serving` is what was served then.
    """
    # The file of the start: one that appeared meanwhile where it is looked for first was not the operator's choice.
    found = config.load(begun.config_file, os.environ, begun.caller_uid)
    now = launch.settings(found=found)
    for name in _AT_THE_START:
        if getattr(now, name) != getattr(begun, name):
            raise _only_at_the_start(f"`{name}`")
    # The worker has no rights left to be given others with, and leases under way were issued with these.
    if now.outward != begun.outward:
        raise _only_at_the_start("`egress` or `credentials`")
    # The ledger was told at the start, by who may tell it: not by the worker, which could let itself trust what it likes.
    for server in found.gateway.servers if found.gateway is not None else ():
        if now.reviews(server.name) != begun.reviews(server.name):
            raise _only_at_the_start(f"`pins` of the server `{server.name}`")
    served = Reader(found, os.environ, begun.caller_uid, begun.state).read(fronts)
    # The worker has these sockets from whoever could bind them; it could not bind others.
    if (served.http and served.http.listen) != (serving.http and serving.http.listen):
        raise _only_at_the_start("`gateway.http.listen`")
    if (served.http and served.http.tls is None) != (serving.http and serving.http.tls is None):
        raise _only_at_the_start("whether there is `gateway.http.tls`")
    if served.unix != serving.unix:
        raise _only_at_the_start("`gateway.unix.path`")
    allowed = launch.with_workspace(now, *(server.workspace_fd for server in served.servers)).workspace_roots
    return Revision(Allowed(allowed or (), now.mount_roots), parts_of(served))


def _only_at_the_start(what: str) -> FumehoodError:
    remedy = "Start the gateway anew, or change it back."
    return FumehoodError(Reason.CONFIG_INVALID, f"{what} was changed, which only the start can do", remedy=remedy)
