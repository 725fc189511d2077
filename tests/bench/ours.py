"""Our own calls, in a process that is a worker as `fumehood run` makes it: `run_call` on a runtime that stays up.

A sample is the time `await run_call(...)` takes: record opened and closed durably, box made, read back, run and removed.
The stages are the record's own timings; `close` is what `run_call` spends after the last of them. Calls appear in
`fumehood tasks` as calls of the front door `bench`. Holes of the installed runc are accepted by name, here alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
from commands import PRINTS, WORK, CannotRunError
from figures import Sample

from fumehood import launch, profile, wire
from fumehood.app import Runtime, open_runtime
from fumehood.call import run_call
from fumehood.execution import Command
from fumehood.faults import FumehoodError
from fumehood.model import Profile, Result, ToolCall
from fumehood.settings import Settings

PROFILE = "python"
ENGINES: Mapping[str, tuple[str, str | None]] = {
    "oci-crun": ("oci", "crun"),
    "oci-runc": ("oci", "runc"),
    "docker": ("docker", None),
}
_RISKS = ("cve-2025-31133", "cve-2025-52565", "cve-2025-52881")


def load(settings: Settings) -> Profile:
    """The profile that every contender's box is made from."""
    return profile.load(PROFILE, profile.search_folders(settings.profile_folders, os.environ), settings.caller_uid)


def serve_calls(sock: socket.socket) -> None:
    """Answer `{"engine": name}` with a sample of one call on that engine."""
    try:
        settings = launch.settings()
        settings = replace(settings, accept_risk=(*settings.accept_risk, *_RISKS))
        with launch.started(settings, as_caller=lambda: load(settings)) as processes:
            anyio.run(_serve, processes, sock)
    except FumehoodError as error:
        wire.send(sock, {"id": 0, "why": str(error)})


async def _serve(processes: launch.Processes[Profile], sock: socket.socket) -> None:
    async with open_runtime(processes) as runtime:
        while True:
            await anyio.wait_readable(sock)
            if (got := wire.receive(sock)) is None:
                return
            try:
                sample = await _call(runtime, processes.loaded, got[0]["args"]["engine"])
                reply: dict[str, Any] = {"ok": {"ms": sample.ms, "stages_ms": dict(sample.stages_ms)}}
            except CannotRunError as error:
                reply = {"why": str(error)}
            wire.send(sock, {"id": 0, **reply})


async def _call(runtime: Runtime, loaded: Profile, name: str) -> Sample:
    engine, program = ENGINES[name]
    call = ToolCall(
        task=runtime.new_task(), tool=None, arguments={"argv": list(WORK)}, sender=runtime.sender,
        profile=replace(loaded, engine=engine, runtime=program), front_door="bench",
    )  # fmt: skip
    started = time.perf_counter()
    outcome = await run_call(call, Command(WORK), runtime.ports)
    spent_ms = (time.perf_counter() - started) * 1000
    if outcome.result is not Result.OK or outcome.stdout != PRINTS:
        words = outcome.detail or outcome.stderr.decode(errors="replace")
        raise CannotRunError(f"{outcome.result.value}, {outcome.reason}: {words[:300]}")
    stages = dict(outcome.timings_ms)
    stages["close"] = spent_ms - stages.pop("total")
    return Sample(ms=spent_ms, stages_ms=stages)
