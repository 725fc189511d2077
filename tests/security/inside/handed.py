"""Functions that attack whoever called them, each handed over to a box by `tests/security/test_delegation.py`."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from fumehood import boxed

FORGED = json.dumps({"token": "0" * 32, "kind": "result", "value": "forged"})


class MineError(Exception):
    """A type that the decorator was told of."""


@dataclass
class Point:
    x: int
    label: str


def wire() -> Any:
    """What a hostile function can find in its own process: the way out and its token."""
    return next(one for one in gc.get_objects() if type(one).__name__ == "Wire")


@boxed
def forged_frames() -> str:
    print(FORGED)  # noqa: T201 - the attack
    subprocess.run(["/bin/sh", "-c", f"echo '{FORGED}'"], check=False)
    for fd in range(64):
        try:
            os.write(fd, FORGED.encode() + b"\n")
        except OSError:
            pass
    return "honest"


@boxed
def raw(line: str, repeat: int = 1) -> Any:
    """Write a line of the function's own making, with the right token."""
    found = wire()
    data = line.replace("TOKEN", found.token).encode()
    for _ in range(repeat):
        view = memoryview(data + b"\n")
        while view:
            view = view[os.write(found.fd, view) :]
    os._exit(0)


@boxed
def long_line(size: int) -> Any:
    found = wire()
    block = b"x" * 65536
    while size > 0:
        size -= os.write(found.fd, block)
    time.sleep(60)


@boxed
def nan() -> Any:
    return [float("nan")]


@boxed
def deep() -> Any:
    value: Any = []
    for _ in range(5000):
        value = [value]
    return value


@boxed
def an_object() -> Any:
    return {"a": object()}


@boxed
def huge() -> str:
    return "x" * (2 * 2**20)


@boxed
def wrong_type() -> int:
    return "text"


@boxed(raises=[MineError])
def raises(what: str) -> None:
    if what == "mine":
        raise MineError("of mine")
    if what == "exit":
        sys.exit(3)
    if what == "unprintable":
        raise type("E", (Exception,), {"__str__": lambda _self: 1 // 0})
    if what == "terminal":
        raise ValueError("\x1b]0;owned\x07 \u202e")
    raise type(what.rpartition(".")[2], (Exception,), {"__module__": what.rpartition(".")[0]})("hostile")


@boxed
def forks_and_holds() -> str:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    return "parent"


@boxed
def forks_and_dies() -> str:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)


@boxed
def child_answers_first() -> str:
    if os.fork() == 0:
        return "child"
    time.sleep(0.5)
    return "parent"


@boxed
def writes_source() -> list[str]:
    said = []
    for attempt in (
        lambda: open(__file__, "a"),
        lambda: os.unlink(__file__),
        lambda: os.chmod(__file__, 0o777),
        lambda: open(os.path.dirname(__file__) + "/new.py", "w"),
        lambda: open("/mnt/new.py", "w"),
    ):
        try:
            attempt()
            said.append("done")
        except OSError as error:
            said.append(type(error).__name__)
    return said


@boxed
def looks_around(paths: list[str]) -> dict[str, Any]:
    return {
        "beside": sorted(os.listdir(os.path.dirname(__file__))),
        "mounts": os.listdir("/mnt"),
        "there": [path for path in paths if os.path.exists(path)],
        "environment": sorted(os.environ),
        "uid": os.getuid(),
    }


@boxed
def logs() -> None:
    logging.getLogger("fumehood").critical("task done")
    logging.getLogger("root").critical("as root")
    logging.getLogger(__name__).log(10**9, "loud \x1b[2J")
    logging.getLogger(__name__).warning("%s", "%s %(secret)s")
    logging.getLogger("handed.own").error("own")
    for number in range(200):
        logging.getLogger(f"handed.{number}").error("many")


@boxed
def sleeps(seconds: float) -> str:
    time.sleep(seconds)
    return "woke"


@boxed
def echo(point: Point, more: list[Point] | None = None) -> list[Point]:
    return [point, *(more or [])]
