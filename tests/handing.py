"""A server's process with an open runtime that calls the functions of `security/inside/handed.py` when it is told to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fumehood
from lab import Lab, containers

DRIVER = """
import json, logging, os, sys, threading, time
import anyio
import fumehood
import handed

records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append([record.name, record.levelno, record.getMessage()])
logging.root.addHandler(Keep())

def made(arguments):
    return {name: handed.Point(**value) if name == "point" and isinstance(value, dict) else value for name, value in arguments.items()}

async def one(name, arguments, within):
    started = time.monotonic()
    del records[:]
    try:
        with anyio.fail_after(within):
            said = ["ok", repr(await getattr(handed, name)(**made(arguments)))]
    except fumehood.CallFailed as error:
        said = ["failed", error.reason.value, str(error), error.outcome.result.value]
    except fumehood.FumehoodError as error:
        said = ["refused", error.reason.value, str(error)]
    except Exception as error:
        said = ["raised", type(error).__module__ + "." + type(error).__qualname__, str(error), getattr(error, "__notes__", [])]
    return {"said": said, "seconds": time.monotonic() - started, "records": list(records)}

async def main():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    await anyio.to_thread.run_sync(time.monotonic)
    async with fumehood.Runtime.open(profile=sys.argv[1], engine=sys.argv[2]) as runtime:
        print(json.dumps("open"), flush=True)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            name, arguments, within = json.loads(line)
            if name == "exec":
                scope = {**globals(), "runtime": runtime}
                exec(arguments, scope)
                print(json.dumps(scope["found"]), flush=True)
            else:
                print(json.dumps(await one(name, arguments, within)), flush=True)
anyio.run(main)
"""
PROFILE = """\
extends: function
tools: {allow: "*"}
limits: {wall: 20s, result: 1MiB}
"""


class Driver:
    """A server's process with an open runtime."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=20)
            raise AssertionError(errors)
        return json.loads(line)

    def begin(self, name: str, arguments: Any, within: float = 30) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments, within]) + "\n")
        self.process.stdin.flush()

    def ask(self, name: str, arguments: Any, within: float = 30) -> Any:
        self.begin(name, arguments, within)
        return self.line()

    def call(self, name: str, within: float = 30, /, **arguments: Any) -> list[Any]:
        said: list[Any] = self.ask(name, arguments, within)["said"]
        return said


def start(lab: Lab, engine: str, code: str = DRIVER, **env: str) -> subprocess.Popen[str]:
    folder = lab.folder / "code"
    folder.mkdir(mode=0o755, exist_ok=True)
    shutil.copy(Path(__file__).parent / "security" / "inside" / "handed.py", folder / "handed.py")
    (folder / "handed.py").chmod(0o644)
    (folder / "secret.env").write_text("KEY=1")
    (folder / "driver.py").write_text(code)
    profile = lab.folder / "profiles" / "handed.yaml"
    profile.write_text(PROFILE)
    path = str(Path(fumehood.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), str(profile), engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**lab.env, "PYTHONPATH": path, "SERVERS_SECRET": "hunter2", **env}, cwd=folder,
    )  # fmt: skip


def boxes(lab: Lab) -> list[str]:
    """What there is of live boxes: their cgroups and containers."""
    runtimes = lab.seen_runtimes()
    # os.walk, not glob: others' groups vanish while we look.
    found = [name for folder, names, _ in os.walk("/sys/fs/cgroup") if Path(folder).name in runtimes for name in names]
    return found + [name for name, runtime in containers() if runtime in runtimes]


def until(true: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that must come to be."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
