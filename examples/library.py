"""One command in one box, from Python: `sudo .venv/bin/python examples/library.py`.

The runtime forks its privileged broker and its ledger; this process becomes the unprivileged worker for the length of the `with`.
"""

from __future__ import annotations

import os
import sys

import anyio

from fumehood import Command, Profile, ToolCall, launch, open_runtime, profile, run_call


async def work(processes: launch.Processes[Profile]) -> int:
    async with open_runtime(processes) as runtime:
        call = ToolCall(
            task=runtime.new_task(), tool=None, arguments={}, sender=runtime.sender, profile=processes.loaded,
            front_door="example",
        )  # fmt: skip
        outcome = await run_call(call, Command(("python3", "-c", "print(6 * 7)")), runtime.ports)
    print(f"{outcome.result}: {outcome.stdout.decode().strip()} in {outcome.engine} container {outcome.container}")
    return 0 if outcome.stdout == b"42\n" else 1


def main() -> int:
    settings = launch.settings()
    folders = profile.search_folders(settings.profile_folders, os.environ)
    with launch.started(settings, lambda: profile.load("python", folders, settings.caller_uid)) as processes:
        return anyio.run(work, processes)


if __name__ == "__main__":
    sys.exit(main())
