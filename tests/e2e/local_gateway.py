"""A gateway on stdio over the FAKE spine of `local_runner`: the real front, servers as plain subprocesses in no box.

usage: local_gateway.py [--allow NAME,NAME] [--wall SECONDS] [--result BYTES] -- COMMAND [ARGS...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from local_runner import FakeSpine

from fakes import new_task
from fumehood.gateway import adapter, stdio
from fumehood.gateway.front import Gateway, open_gateway
from fumehood.gateway.served import Served
from fumehood.model import ArgumentBounds, Filesystem, Limits, Profile, SeccompPolicy, Sender, WorkspaceMode
from signed import proofs

SENDER = Sender(uid=os.getuid(), name="tester")


def served(argv: tuple[str, ...], name: str = "fake", **changes: object) -> Served:
    """What a gateway over this command serves; every tool allowed, open where its schema is, and what the changes to the profile say."""
    limits = Limits(
        wall_s=float(str(changes.pop("wall_s", 20))), result_bytes=int(str(changes.pop("result_bytes", 2**23)))
    )
    workspace = WorkspaceMode(str(changes.pop("workspace", WorkspaceMode.SCRATCH)))
    allowed: dict[str, Any] = {"tools": None, "arguments": ArgumentBounds(open=("*",)), **changes}
    profile = Profile(
        name=name,
        digest="sha256:" + "0" * 64,
        image="none",
        seccomp=SeccompPolicy(name="none", default_errno=1, rules=()),
        limits=limits,
        filesystem=Filesystem(workspace=workspace),
        **allowed,
    )
    # The fake spine looks at no descriptor; that there is one counts.
    given = 0 if workspace in {WorkspaceMode.RO, WorkspaceMode.RW} else None
    return Served(name=name, profile=profile, argv=argv, workspace_fd=given)


@asynccontextmanager
async def gateway(argv: tuple[str, ...], spine: FakeSpine, **changes: object) -> AsyncIterator[Gateway]:
    """A gateway over the fake spine."""
    async with gateway_of([served(argv, **changes)], spine) as front:
        yield front


@asynccontextmanager
async def gateway_of(servers: Sequence[Served], spine: FakeSpine) -> AsyncIterator[Gateway]:
    """A gateway of several servers over the fake spine."""
    async with open_gateway(servers, spine.run, spine.refuse, new_task, spine.ports) as front:
        yield front


async def serve(argv: tuple[str, ...], source: int, sink: int, changes: dict[str, object]) -> None:
    async with gateway(argv, FakeSpine(), **changes) as front:
        await adapter.serve(front, source, sink, SENDER, proofs())


def main() -> None:
    mine, argv = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    options = dict(zip(mine[::2], mine[1::2], strict=True))
    changes: dict[str, object] = {"wall_s": options.get("--wall", 20), "result_bytes": options.get("--result", 2**23)}
    if "--allow" in options:
        changes["tools"] = frozenset(options["--allow"].split(","))
    source, sink = stdio.claim()
    print("a stray print of some library")  # noqa: T201 - the attack: it must not reach the client
    os.write(1, b"a stray write of some child\n")
    anyio.run(serve, tuple(argv), source, sink, changes)


if __name__ == "__main__":
    main()
