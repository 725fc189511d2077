"""One order of an operator's about the evidence, carried out by a process of the ledger's uid: check, export, show, rotate.

A ledger's loop answers in messages and must not be kept waiting; a pass over a million entries is neither. So the command line forks
this process instead, which opens the database beside the ledgers of running runtimes, reads one view of it, and sends what it finds as
it finds it. It writes nothing there: only `rotate` changes something, and that is a key's file.

The answer is a number of messages `{"line": ...}` and then `{"done": ...}`, or what went wrong as a ledger says it. What may be longer
than a message goes into a descriptor that came with the order. The command line has given up its rights before it reads any of
it: names in a ledger were chosen by strangers.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fumehood import dsse, wire
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.keys import KeyFolder, PublicKey, jwks, public_keys
from fumehood.ledger.audit import Audit
from fumehood.model import Deny
from fumehood.reasons import Reason
from fumehood.store import chain
from fumehood.store.chain import Entry
from fumehood.store.database import Transaction, opened

_FILE_BYTES = 1024 * 1024
_PREFIX_CHARS = 6

Fields = Mapping[str, Any]


def serve(sock: socket.socket, folder: Path) -> None:
    """Carry out the one order that comes, and end."""
    got = wire.receive(sock)
    if got is None:
        return
    order, fds = got
    try:
        try:
            done = _carry_out(sock, folder, order, fds)
        except FumehoodError as error:
            wire.send(sock, wire.reply_of_error(error))
        else:
            wire.send(sock, {"done": done})
    except wire.WireError:
        pass  # whoever asked has gone
    finally:
        wire.close_all(fds)


def _carry_out(sock: socket.socket, folder: Path, order: Fields, fds: Sequence[int]) -> Any:
    keys = KeyFolder(folder)
    match order["do"]:
        case "keys":
            return jwks(keys.public())
        case "rotate":
            with opened(folder):  # which makes the folder
                return keys.rotate(order["overlap_s"]).jwk()
        case "verify":
            return _verify(sock, folder, order, fds, keys)
        case "export":
            with _view(folder) as conn, open(fds[0], "w", encoding="utf-8", closefd=False) as out:
                out.writelines(json.dumps(entry._asdict()) + "\n" for entry in chain.entries(conn))
                lines = ({"runtime_id": runtime, "seq": seq, "checkpoint": text} for _, runtime, seq, text in chain.checkpoints(conn))
                out.writelines(json.dumps(line) + "\n" for line in lines)
                return None
        case "heads":
            with _view(folder) as conn:
                for link, kind, signed in chain.heads(conn):
                    wire.send(sock, {"line": {**asdict(link), "ended": kind == "ended", "signed": signed}})
                return chain.witnesses(conn)
        case "receipt":
            with _view(folder) as conn, open(fds[0], "w", encoding="utf-8", closefd=False) as out:
                json.dump(_receipt(conn, order["task"], keys), out)
                return None
    raise LedgerGone(Reason.INTERNAL, "no such order")


def _verify(sock: socket.socket, folder: Path, order: Fields, fds: Sequence[int], keys: KeyFolder) -> Any:
    files = dict(zip(order["files"], fds, strict=True))
    trusted = {key.kid: key for key in keys.public()} if "keys" not in files else _given(files["keys"])
    lines: Iterator[str] = iter(())
    if "witness" in files:
        lines = open(files["witness"], encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - the caller closes it
    with _view(folder) as conn:
        audit = Audit(conn, trusted, lines)
        for fault in audit.faults():
            wire.send(sock, {"line": asdict(fault)})
        return {**asdict(audit.summary), "witnesses": chain.witnesses(conn)}


def _receipt(conn: Transaction, name: str, keys: KeyFolder) -> dict[str, Any]:
    """A call's statement, signed. Only what the chain says of it is signed: the entry's hash, and those up to the next checkpoint."""
    tasks = chain.tasks_named(conn, name)
    if len(tasks) != 1:
        detail = f"{name} begins the names of several tasks" if tasks else f"no task is named {name}"
        reason = Reason.BAD_REQUEST if tasks else Reason.TASK_UNKNOWN
        raise Refused(Deny(reason=reason, rule="ledger.receipt", detail=detail))
    entry = chain.ending(conn, tasks[0])
    if entry is None or entry.statement is None:
        raise Refused(Deny(
            reason=Reason.RECEIPT_NONE, rule="ledger.receipt",
            detail=f"task {tasks[0]} is not closed, or was closed before there was a chain",
        ))  # fmt: skip
    known = {key.kid: key for key in keys.public()}
    checkpoint = _covering(conn, entry, known)
    payload = entry.statement.encode()
    if json.loads(entry.body)["says"] != hashlib.sha256(payload).hexdigest():
        raise _edited(entry)
    envelope = dsse.signed(payload, dsse.STATEMENT, keys.current())
    signer = keys.current().public
    return {
        "task": tasks[0],
        "envelope": envelope,
        "entry": {"runtime": entry.runtime_id, "seq": entry.seq, "hash": entry.hash},
        "checkpoint": None if checkpoint is None else json.loads(checkpoint),
        "keys": jwks([signer, *(key for kid, key in known.items() if kid != signer.kid)]),
    }


def _covering(conn: Transaction, entry: Entry, keys: Mapping[str, PublicKey]) -> str | None:
    """The checkpoint after an entry, to which each one from here leads; None when there is none yet. Raises FumehoodError."""
    before: Entry | None = None
    for each in chain.chain_from(conn, entry.runtime_id, entry.seq):
        said = json.loads(each.body)
        whole = hashlib.sha256(each.body.encode()).hexdigest() == each.hash
        if not whole or (before is not None and said["prev"] != before.hash):
            raise _edited(each)
        before = each
        found = chain.checkpoint_at(conn, each.runtime_id, each.seq)
        if found is not None:
            try:
                payload, _ = dsse.opened(json.loads(found), dsse.CHECKPOINT, keys)
            except ValueError:
                raise _edited(each) from None
            if json.loads(payload)["hash"] != each.hash:
                raise _edited(each)
            return found
    return None


def _edited(entry: Entry) -> FumehoodError:
    return FumehoodError(
        Reason.EVIDENCE_EDITED, f"entry {entry.seq} of runtime {entry.runtime_id}, task {entry.task}, is not what was written"
    )


def _given(fd: int) -> dict[str, PublicKey]:
    with open(fd, "rb", closefd=False) as file:
        try:
            return public_keys(file.read(_FILE_BYTES).decode())
        except ValueError as error:
            raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="audit.keys", detail=f"--keys: {error}")) from None


@contextmanager
def _view(folder: Path) -> Iterator[Transaction]:
    """One view of the database, for reading alone."""
    with opened(folder) as database, database.read() as conn:
        conn.run("PRAGMA query_only = ON")
        yield conn
