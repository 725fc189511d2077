"""A gateway on stdio over the FAKE spine of `local_runner`: the real front, servers as plain subprocesses in no box.

usage: local_gateway.py [--allow NAME,NAME] [--wall SECONDS] [--result BYTES] -- COMMAND [ARGS...]
"""

from __future__ import annotations

import itertools
import os
import sys

import anyio
from local_runner import FakeSpine

from fumehood.gateway import adapter, stdio
from fumehood.gateway.answering import answering
from fumehood.gateway.front import Gateway, Served
from fumehood.model import Filesystem, Limits, Profile, SeccompPolicy, Sender, WorkspaceMode

TESTER = Sender(uid=os.getuid(), name="tester")


def served(argv: tuple[str, ...], **changes: object) -> Served:
    """What a gateway over this command serves; every tool allowed unless `tools` says otherwise."""
    limits = Limits(
        wall_s=float(str(changes.pop("wall_s", 20))), result_bytes=int(str(changes.pop("result_bytes", 2**23)))
    )
    profile = Profile(
        name="fake",
        digest="sha256:" + "0" * 64,
        image="none",
        seccomp=SeccompPolicy(name="none", default_errno=1, rules=()),
        tools=changes.pop("tools", None),  # type: ignore[arg-type] # the caller's own
        limits=limits,
        filesystem=Filesystem(workspace=WorkspaceMode.SCRATCH),
    )
    return Served(profile=profile, argv=argv, sender=TESTER)


def gateway(argv: tuple[str, ...], spine: FakeSpine, **changes: object) -> Gateway:
    """A gateway over the fake spine."""
    numbers = itertools.count(1)
    return Gateway(served(argv, **changes), spine.run, spine.refuse, lambda: f"task{next(numbers):022}")


def main() -> None:
    mine, argv = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    options = dict(zip(mine[::2], mine[1::2], strict=True))
    changes: dict[str, object] = {"wall_s": options.get("--wall", 20), "result_bytes": options.get("--result", 2**23)}
    if "--allow" in options:
        changes["tools"] = frozenset(options["--allow"].split(","))
    source, sink = stdio.claim()
    print("a stray print of some library")  # noqa: T201 - the attack: it must not reach the client
    os.write(1, b"a stray write of some child\n")
    anyio.run(adapter.serve, answering(gateway(tuple(argv), FakeSpine(), **changes)), source, sink, TESTER)


if __name__ == "__main__":
    main()
