"""What the operator process reads again when it is asked: the same file, for the same fronts, or a refusal.

What only the start can do is compared and refused, not passed over: after a reload the file says what is in force.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

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
    servers = [] if found.gateway is None else [server.name for server in found.gateway.servers]
    _refuse(_other_settings(begun, now, servers))
    served = Reader(found, os.environ, begun.caller_uid, begun.state).read(fronts)
    _refuse(_other_fronts(serving, served))
    allowed = launch.with_workspace(now, *(server.workspace_fd for server in served.servers)).workspace_roots
    return Revision(Allowed(allowed or (), now.mount_roots), parts_of(served))


def _other_settings(begun: Settings, now: Settings, servers: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """What processes were told when they had the rights to be told it, and whether it is another now."""
    for name in _AT_THE_START:
        yield getattr(now, name) != getattr(begun, name), f"`{name}`"
    yield (now.queue_wait_s, now.queue_most) != (begun.queue_wait_s, begun.queue_most), "`queue`"
    # The worker has no rights left to be given others with, and leases under way were issued with these.
    yield now.outward != begun.outward, "`egress` or `credentials`"
    # The ledger was told at the start, by who may tell it: not by the worker, which could let itself trust what it likes.
    yield now.witnesses != begun.witnesses, "`evidence`"
    for server in servers:
        yield now.reviews(server) != begun.reviews(server), f"`pins` of the server `{server}`"


def _other_fronts(serving: ServedSet, served: ServedSet) -> Iterator[tuple[bool, str]]:
    """What belongs to sockets: the worker has them from whoever could bind them, and could not bind others."""
    yield (served.http and served.http.listen) != (serving.http and serving.http.listen), "`gateway.http.listen`"
    without_tls = (served.http and served.http.tls is None) != (serving.http and serving.http.tls is None)
    yield without_tls, "whether there is `gateway.http.tls`"
    # A context forgets no authority that it was given once.
    yield _authorities(served) != _authorities(serving), "what `gateway.http.oauth.client_authorities` holds"
    yield served.unix != serving.unix, "`gateway.unix.path`"
    yield served.unix_envelope != serving.unix_envelope, "`gateway.unix.envelope`"
    yield served.unix_users != serving.unix_users, "`gateway.unix.users`"  # the socket's access list is its maker's


def _authorities(served: ServedSet) -> str | None:
    return served.http.oauth.authorities if served.http is not None and served.http.oauth is not None else None


def _refuse(compared: Iterable[tuple[bool, str]]) -> None:
    for is_other, what in compared:
        if is_other:
            detail = f"{what} was changed, which only the start can do"
            raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Start the gateway anew, or change it back.")
