"""`fumehood approvals`: what waits for a person, and what a person says to it; changes of workspaces that wait are among them.

Whoever runs this is an approver by the kernel's word: the owner of the state folder. `approve` shows the whole question and wants a
yes at a terminal; without one it wants `--yes` and the binding that was looked at, and does not count for what the same account asked
for. An agent that runs as this user could run this command in a terminal of its own making: where that matters, approvers have keys,
and answer by `answer` or a callback (docs/approvals.md). No tool in a box can reach the state folder.

All of it runs without the operator's rights; what a caller wrote reaches a terminal as `approvals.prompt` shows it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError, Refused
from fumehood.reasons import Reason

if TYPE_CHECKING:
    import socket

POLL_S = 1.0
Row = Mapping[str, Any]
Id = Annotated[str, typer.Argument(metavar="ID", help="An approval's id, or its beginning; or the task whose changes wait.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Configured = Annotated[str | None, typer.Option(help="The configuration file.")]
Why = Annotated[str, typer.Option(help="Why, for whoever asked and for the record.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What waits for a person's word (docs/approvals.md).")
    group.command("list")(list_)
    group.command("show")(show)
    group.command("approve")(approve)
    group.command("deny")(deny)
    group.command("watch")(watch)
    group.command("answer")(answer)
    group.command("sign")(sign)
    app.add_typer(group, name="approvals")


@dataclass(frozen=True, slots=True)
class _Doors:
    """Who is asked: the ledger about approvals, the broker about changes."""

    ledger: socket.socket
    broker: socket.socket

    def ask(self, verb: str, **args: Any) -> Any:
        return self._of(self.ledger, verb, args)[0]

    def kept(self, task: str) -> bytes | None:
        """The arguments of a call, if they were too long for its question and are still kept."""
        _, fds = self._of(self.ledger, "kept", {"task": task, "kind": "arguments"})
        for fd in fds:
            with os.fdopen(fd, "rb") as file:
                return file.read()
        return None

    def changes(self, verb: str, args: Mapping[str, Any]) -> tuple[Any, list[int]]:
        return self._of(self.broker, verb, args)

    @staticmethod
    def _of(sock: socket.socket, verb: str, args: Mapping[str, Any]) -> tuple[Any, list[int]]:
        from fumehood import wire

        try:
            return wire.request(sock, verb, args)
        except wire.WireError as error:
            raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{verb}: {error}") from error


@contextmanager
def _doors(config: str | None, *, decides: bool = False) -> Iterator[_Doors]:
    from fumehood import launch

    with launch.serving(replace(launch.settings(config), decides=decides)) as processes:
        yield _Doors(processes.ledger, processes.privileged)


def list_(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also what is decided or over.")] = False,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """List what waits: calls, and changes of workspaces."""
    with _doors(config) as doors:
        rows = _rows(doors, everything=everything)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    from rich import box
    from rich.table import Table

    from fumehood.approvals.prompt import when
    from fumehood.cli.records_view import draw, shown

    table = Table("id", "kind", "what", "asked by", "state", "until", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        until = "-" if row["until"] is None else when(row["until"])
        table.add_row(row["id"], row["kind"], shown(row["what"]), shown(row["asked_by"]), row["state"], until)
    draw(table)


def _rows(doors: _Doors, *, everything: bool) -> list[dict[str, Any]]:
    from fumehood.disguises import unmistakable

    doors.ask("approvals_expire")
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = doors.ask("approvals", after=after, everything=everything)
        for each in page["approvals"]:
            question = each["question"]
            what = question["kind"] if question["tool"] is None else question["tool"]
            on = "" if question["server"] is None else f" of {question['server']}"
            found.append({
                "id": each["id"], "kind": "call", "what": unmistakable(f"{what}{on}"), "asked_by": unmistakable(question["sender"]),
                "state": each["state"], "until": each["until"], "binding": each["binding"], "votes": each["votes"],
                "needs": each["need"], "told": each["told"], "task": each["task"], "spent_by": each["spent_by"],
            })  # fmt: skip
        if not page["more"]:
            break
        after = page["approvals"][-1]["id"]
    for each in doors.changes("pending_list", {})[0]["sets"]:
        what = unmistakable(f"{each['changes']} changes of {each['workspace']}")
        found.append({
            "id": each["task"], "kind": "changes", "what": what, "asked_by": "-", "state": "open", "until": None,
            "why": unmistakable(each["why"]),
        })  # fmt: skip
    return found


def show(
    name: Id,
    *,
    arguments: Annotated[bool, typer.Option("--arguments", help="All of a call's arguments, and nothing else.")] = False,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Show what waits, whole: what would happen, for whom, and why it was asked; of changes the difference."""
    with _doors(config) as doors:
        doors.ask("approvals_expire")
        row = _call(doors, name)
        if row is None:
            _write_changes(doors, name, as_json=as_json)
        elif arguments:
            _write_arguments(doors, row)
        elif as_json:
            sys.stdout.write(json.dumps(row, indent=2) + "\n")
        else:
            _write(row)


def approve(
    name: Id,
    *,
    reason: Why = "",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: what --binding names was looked at.")] = False,
    binding: Annotated[str | None, typer.Option(help="The binding that was looked at, as `show` prints it.")] = None,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Approve a call, once; or have a workspace's changes committed. Asks at a terminal."""
    if yes and binding is None:
        raise FumehoodError(
            Reason.BAD_REQUEST, "--yes goes with --binding DIGEST, so that what is approved is what was looked at",
            remedy="`fumehood approvals show ID` prints it; for changes give their task's id again.",
        )  # fmt: skip
    if not yes and not _at_terminal():
        detail = "an approval is given at a terminal, where the question was shown"
        raise FumehoodError(Reason.BAD_REQUEST, detail, remedy="A script gives --yes and --binding; a key signs (`approvals sign`).")
    with _doors(config, decides=True) as doors:
        row = _call(doors, name)
        if row is None:
            _settle_changes(doors, name, "pending_commit", ask=not yes, as_json=as_json)
            return
        if not yes:
            _write(row)
            if not _confirmed("Approve this call, once?"):
                raise typer.Exit(1)
        _vote(doors, row, binding or row["binding"], approves=True, reason=reason, at_terminal=not yes, as_json=as_json)


def deny(name: Id, *, reason: Why = "", config: Configured = None, as_json: AsJson = False) -> None:
    """Say no: the call is refused with the reason, as are equal ones until it expires. Changes are discarded."""
    with _doors(config, decides=True) as doors:
        row = _call(doors, name)
        if row is None:
            _settle_changes(doors, name, "pending_discard", ask=_at_terminal(), as_json=as_json)
            return
        _vote(doors, row, row["binding"], approves=False, reason=reason, at_terminal=_at_terminal(), as_json=as_json)


def watch(*, config: Configured = None, as_json: AsJson = False) -> None:
    """Show what comes to wait, as it comes; at a terminal, and ask for an answer. Ends with Ctrl-C."""
    with _doors(config, decides=True) as doors:
        seen: set[str] = set()
        while True:
            doors.ask("approvals_expire")
            for each in _rows(doors, everything=False):
                if each["id"] in seen or each["state"] != "open":
                    continue
                seen.add(each["id"])
                row = _call(doors, each["id"])
                if as_json or row is None:
                    typer.echo(json.dumps(row or each) if as_json else f"changes wait: `fumehood approvals show {each['id']}`")
                    continue
                _write(row)
                if _at_terminal():
                    _answer_at_terminal(doors, row)
            time.sleep(POLL_S)


def answer(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A signed answer, as `sign` or an approver's own program makes it.")],
    *,
    config: Configured = None,
    as_json: AsJson = False,
) -> None:
    """Take a signed answer, whichever way it came."""
    from fumehood import launch
    from fumehood.approvals.answers import MOST_CHARS
    from fumehood.cli.tasks import ledger_asker
    from fumehood.outward_config import OutwardConfig

    def read() -> str:
        try:
            return (sys.stdin.read(MOST_CHARS + 1) if file == "-" else Path(file).read_text()[: MOST_CHARS + 1]).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FumehoodError(Reason.BAD_REQUEST, f"{file} cannot be read: {error}") from error

    settings = replace(launch.settings(config), outward=OutwardConfig())
    with launch.started(settings, read, broker=False) as processes:
        done = ledger_asker(processes)("approval_answer", {"answer": processes.loaded[:MOST_CHARS]})
    _tell(done, as_json=as_json)


def sign(
    name: Annotated[str, typer.Argument(metavar="ID", help="The approval, whole, as you were told of it.")],
    binding: Annotated[str, typer.Argument(metavar="BINDING", help="Its binding, as you were told of it.")],
    decision: Annotated[str, typer.Argument(metavar="approve|deny")],
    *,
    key: Annotated[Path, typer.Option(help="Your Ed25519 private key, as `fumehood senders keygen` makes one.")],
    approver: Annotated[str, typer.Option("--as", help="Your name among `approvals.approvers`.")],
    audience: Annotated[str, typer.Option(help="`approvals.audience` there.")] = "fumehood",
    reason: Why = "",
) -> None:
    """Sign an answer, on any host: good for five minutes, once. Print it, for `approvals answer` or the callback."""
    import secrets

    from fumehood.approvals.answers import LIFETIME_S, made
    from fumehood.gateway.sender_keys import read_private_key

    if decision not in ("approve", "deny"):
        raise FumehoodError(Reason.BAD_REQUEST, f"{decision!r}: expected approve or deny")
    now_s = int(time.time())
    claims = {
        "iss": approver, "aud": audience, "iat": now_s, "exp": now_s + LIFETIME_S, "jti": secrets.token_urlsafe(16),
        "approval": name.lower(), "binding": binding, "decision": decision, "reason": reason,
    }  # fmt: skip
    typer.echo(made(read_private_key(key, os.getuid()).sign, claims))


def _call(doors: _Doors, name: str) -> Row | None:
    """The approval that a name begins; None when changes are what waits by it. Raises Refused when nothing does."""
    try:
        row: Row = doors.ask("approval", approval=name.lower())
    except Refused as error:
        sets: Sequence[Row] = doors.changes("pending_list", {})[0]["sets"]
        if error.reason is Reason.APPROVAL_UNKNOWN and any(each["task"] == name.lower() for each in sets):
            return None
        raise
    return row


def _vote(doors: _Doors, row: Row, binding: str, *, approves: bool, reason: str, at_terminal: bool, as_json: bool) -> None:
    said = {"approves": approves, "reason": reason.encode("utf-8", "replace").decode()[:1024], "at_terminal": at_terminal}
    _tell(doors.ask("approval_vote", approval=row["id"], binding=binding, **said), as_json=as_json)


def _tell(done: Row, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(done))
        return
    agreed = sum(vote["approves"] for vote in done["votes"])
    more = f": {agreed} said yes, and more must" if done["state"] == "open" else ""
    typer.echo(f"{done['id']} is {done['state']}{more}")


def _answer_at_terminal(doors: _Doors, row: Row) -> None:
    said = typer.prompt("approve, deny or skip?", default="skip", show_default=True)
    if said not in ("approve", "deny"):
        return
    reason = typer.prompt("reason", default="", show_default=False)
    try:
        _vote(doors, row, row["binding"], approves=said == "approve", reason=reason, at_terminal=True, as_json=False)
    except Refused as error:
        typer.echo(error.deny.line(), err=True)


def _write(row: Row) -> None:
    import shutil

    from fumehood.approvals.prompt import ARGUMENTS_BYTES, COLUMNS, lines

    columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns) if sys.stdout.isatty() else COLUMNS
    typer.echo("\n".join(lines(row, ARGUMENTS_BYTES, max(40, columns))))


def _write_arguments(doors: _Doors, row: Row) -> None:
    """All of them, escaped as in the prompt."""
    from fumehood.approvals.prompt import written

    question = row["question"]
    text = question.get("arguments")
    if text is not None and len(text) < question["arguments_bytes"]:
        data = doors.kept(row["task"])
        text = None if data is None else data.decode("ascii", "replace")
    if text is None:
        detail = f"the arguments of {row['id']} are no longer kept: it is {row['state']}"
        raise FumehoodError(Reason.RESULT_GONE, detail, remedy="Deny what cannot be looked at.")
    for line in written(text):
        typer.echo(line)


def _write_changes(doors: _Doors, name: str, *, as_json: bool) -> None:
    from fumehood.cli import workspace

    found = workspace.whole_set(doors.changes, name.lower())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in workspace.drawn(found, lambda index: workspace.contents(doors.changes, found["task"], index)):
        typer.echo(line)


def _settle_changes(doors: _Doors, name: str, verb: str, *, ask: bool, as_json: bool) -> None:
    if ask:
        _write_changes(doors, name, as_json=False)
        if not _confirmed("Commit these changes?" if verb == "pending_commit" else "Discard these changes for good?"):
            raise typer.Exit(1)
    done, _ = doors.changes(verb, {"task": name.lower()})
    typer.echo(json.dumps(done) if as_json else ", ".join(f"{value} changes {what}" for what, value in done.items() if what != "left"))


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _confirmed(question: str) -> bool:
    """Nothing but a typed yes is one."""
    return bool(typer.confirm(question, default=False))
