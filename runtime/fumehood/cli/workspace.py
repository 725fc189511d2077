"""`fumehood diff|commit|discard TASK`: what a person does with changes that wait.

The broker keeps the changes and does the applying; this process, which has no rights, gets the contents as
descriptors opened for reading and draws the difference. Names and contents were written by a box: on a terminal, in a
pager or in a file, whatever could drive a terminal or hide itself from the reader (control characters, bidi
overrides, invisible ones) is written as an escape, so that what is approved is what was seen. `--json` is exact.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, BinaryIO

import typer

SHOWN_BYTES = 512 * 1024
_COLOURS = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"

Change = Mapping[str, Any]
Ask = Callable[[str, Mapping[str, Any]], tuple[Any, list[int]]]
Task = Annotated[str, typer.Argument(metavar="TASK", help="The task whose changes wait.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("diff")(diff)
    app.command("commit")(commit)
    app.command("discard")(discard)


def diff(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Default: list every task that waits.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show the changes of a task that wait to be committed or discarded."""
    with _broker() as ask:
        if task is None:
            _write_sets(ask("pending_list", {})[0], as_json=as_json)
        elif as_json:
            typer.echo(json.dumps(whole_set(ask, task.lower()), indent=2))
        else:
            found = whole_set(ask, task.lower())
            colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
            for line in drawn(found, lambda index: contents(ask, found["task"], index)):
                typer.echo(coloured(line) if colours else line)


def commit(task: Task, *, as_json: AsJson = False) -> None:
    """Apply the waiting changes of a task to its workspace, all or none."""
    with _broker() as ask:
        done, _ = ask("pending_commit", {"task": task.lower()})
    if as_json:
        typer.echo(json.dumps(done, indent=2))
    else:
        typer.echo(f"{done['committed']} changes committed")
        for name in done["left"]:
            typer.echo(f"could not be tidied: {visible(name)}", err=True)


def discard(task: Task, *, as_json: AsJson = False) -> None:
    """Forget the waiting changes of a task. They cannot be had back."""
    with _broker() as ask:
        done, _ = ask("pending_discard", {"task": task.lower()})
    typer.echo(json.dumps(done, indent=2) if as_json else f"{done['discarded']} changes discarded")


@contextmanager
def _broker() -> Iterator[Ask]:
    from fumehood import launch, wire
    from fumehood.faults import BoxFailed
    from fumehood.reasons import Reason

    processes: launch.Processes[None]
    with launch.serving(launch.settings()) as processes:
        broker = processes.broker
        if broker is None:
            raise BoxFailed(Reason.BROKER_DIED)
        yield lambda verb, args: wire.request(broker, verb, args)


def whole_set(ask: Ask, task: str) -> dict[str, Any]:
    """All pages of one set as one object."""
    found, _ = ask("pending_list", {"task": task, "offset": 0})
    following = found.pop("next")
    while following is not None:
        page, _ = ask("pending_list", {"task": task, "offset": following})
        found["changes"].extend(page["changes"])
        following = page["next"]
    return dict(found)


def _write_sets(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found["sets"], indent=2))
        return
    for waiting in found["sets"]:
        where, why = visible(waiting["workspace"]), visible(waiting["why"])
        typer.echo(f"{waiting['task']}  {waiting['changes']:>6} changes  {where}  ({why})")
    if not found["sets"]:
        typer.echo("nothing waits")
    if found["more"]:
        typer.echo("only the newest are listed", err=True)


def contents(ask: Ask, task: str, index: int) -> tuple[bytes | None, bytes | None]:
    """The old and the new content, None where there is none, each read one byte further than is shown."""
    told, fds = ask("pending_open", {"task": task, "index": index})
    read = []
    for fd in fds:
        with os.fdopen(fd, "rb") as file:
            read.append(_read(file))
    new = read.pop(0) if told["new"] else None
    return (read.pop(0) if told["old"] else None), new


def _read(file: BinaryIO) -> bytes:
    return file.read(SHOWN_BYTES + 1)


def drawn(found: Mapping[str, Any], opened: Callable[[int], tuple[bytes | None, bytes | None]]) -> Iterator[str]:
    """Give the lines of a whole set: why it waits, then every change."""
    yield f"# task {found['task']}, workspace {visible(found['workspace'])}"
    yield f"# waits because: {visible(found['why'])}"
    for path, why in found["refused"]:
        yield f"# never committed: {visible(path)}: {visible(why)}"
    for index, change in enumerate(found["changes"]):
        if change["op"] in ("file", "remove"):
            yield from difference(change, *opened(index))
        else:
            yield told(change)


def told(change: Change) -> str:
    """Say in one line what is no change of a file's content."""
    path = visible(change["path"])
    if change["op"] == "symlink":
        return f"symlink {path} -> {visible(change['target'])}"
    if change["op"] == "directory":
        return f"new directory {path} (mode {change['mode']:03o})"
    if change["op"] == "mode":
        return f"mode of directory {path} becomes {change['mode']:03o}"
    return f"removed {path}"


def difference(change: Change, old: bytes | None, new: bytes | None) -> Iterator[str]:
    """Give a unified diff of one file, or a line that says why there is none."""
    path = visible(change["path"])
    if change["op"] == "remove" and old is None:
        yield told(change)
        return
    before, after = _text(old), _text(new)
    if before is None or after is None:
        size = f"{change['size_bytes']} bytes, sha256 {change['sha256']}" if change["op"] == "file" else "removed"
        yield f"binary or large file {path}: {size}"
        return
    import difflib

    from_name = f"a/{path}" if old is not None else "/dev/null"
    to_name = f"b/{path}" if new is not None else "/dev/null"
    yield f"{change['kind']} {path}" + (f" (mode {change['mode']:03o})" if change["op"] == "file" else "")
    yield from difflib.unified_diff(_lines(before), _lines(after), from_name, to_name, lineterm="")


def _text(content: bytes | None) -> str | None:
    """The content as text, or None for what is no text or too much of it. What is not there is empty."""
    if content is None:
        return ""
    if len(content) > SHOWN_BYTES or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> list[str]:
    # Only \n ends a line: str.splitlines would let a form feed or U+2028 begin one that looks like the diff's own.
    lines = [visible(line, kept="\t") for line in text.split("\n")]
    if lines[-1]:
        lines[-1] += "\\ (no newline at the end)"
        return lines
    return lines[:-1]


def visible(text: str, kept: str = "") -> str:
    """Text that cannot drive a terminal or hide: what is not printable is written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def coloured(line: str) -> str:
    """Paint a diff's line for a terminal. It has been made visible already."""
    if line.startswith(("+++", "---", "#")):
        return f"{_BOLD}{line}{_PLAIN}"
    colour = _COLOURS.get(line[:1])
    return f"{colour}{line}{_PLAIN}" if colour else line
