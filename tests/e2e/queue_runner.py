"""Run by a test, as root: a thousand calls of three senders that wait for two boxes. Prints what it saw, as JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

import anyio

from fumehood import Command, Profile, ToolCall, launch, open_runtime, profile, run_call

CALLS, BOXES, SERVED = 1000, 2, 45
SHARES = {"a": 700, "b": 200, "c": 100}


async def work(processes: launch.Processes[Profile]) -> dict[str, Any]:  # noqa: C901 - one scene, as it happens
    served: list[str] = []
    refused: list[dict[str, Any]] = []
    most = 0
    async with open_runtime(processes) as runtime:
        turns = runtime.ports.places._turns

        async def call(sender: str, command: tuple[str, ...]) -> None:
            nonlocal most
            asked = ToolCall(
                task=runtime.new_task(), tool=None, arguments={}, sender=replace(runtime.sender, name=sender),
                profile=processes.loaded, front_door="example",
            )  # fmt: skip
            outcome = await run_call(asked, Command(command), runtime.ports)
            most = max(most, len(turns.live))
            if outcome.reason is not None:
                refused.append({"reason": outcome.reason, "rule": outcome.rule, "retry_after_s": outcome.retry_after_s})
            elif sender != "first":
                served.append(sender)
                if len(served) >= SERVED:
                    waiting.cancel_scope.cancel()

        async with anyio.create_task_group() as waiting:
            first = anyio.CancelScope()

            async def sleep() -> None:
                with first:
                    async with anyio.create_task_group() as tasks:
                        for _ in range(BOXES):
                            tasks.start_soon(call, "first", ("sleep", "60"))

            waiting.start_soon(sleep)
            while len(turns.live) < BOXES:  # noqa: ASYNC110 - what is counted rings no bell
                await anyio.sleep(0.01)
            before = len(os.listdir("/proc/self/fd"))
            for sender, count in SHARES.items():
                for _ in range(count):
                    waiting.start_soon(call, sender, ("true",))
            while turns.waiting < CALLS:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.05)
            seen = {"waiting": turns.waiting, "descriptors": len(os.listdir("/proc/self/fd")) - before}
            # One too many, and what it is told.
            await call("d", ("true",))
            first.cancel()
        return {**seen, "served": "".join(served), "refused": refused, "most": most, "left": [turns.waiting, len(turns.live)]}


def main() -> None:
    settings = replace(launch.settings(), boxes=BOXES, queue_most=CALLS, queue_wait_s=300.0)
    folders = profile.search_folders(settings.profile_folders, os.environ)
    with launch.started(settings, lambda: profile.load(sys.argv[1], folders, settings.caller_uid)) as processes:
        sys.stdout.write(json.dumps(anyio.run(work, processes)) + "\n")


if __name__ == "__main__":
    main()
