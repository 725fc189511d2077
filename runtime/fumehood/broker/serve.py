"""The broker process: takes the worker's requests, one thread each, until the worker is gone; then removes everything.

The main thread only receives and dispatches. Each verb is a few lines here and its work elsewhere. When the
socket to the worker ends, for whatever reason, every box is removed before the process ends: a killed worker leaves nothing.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from fumehood import wire
from fumehood.broker import capacity, doctor, orders, pending, requests, sweep
from fumehood.broker.box import Box
from fumehood.broker.door import Door, end_elsewhere
from fumehood.broker.host import Host, close_host, open_host
from fumehood.broker.stopping import Stopping
from fumehood.faults import BoxFailed, FumehoodError, Refused
from fumehood.model import Deny, FileChange
from fumehood.reasons import Reason
from fumehood.settings import Settings


class Broker:
    """The verbs, and the boxes they are about."""

    def __init__(self, host: Host, ledger: socket.socket, worker: int) -> None:
        self._host = host
        self._boxes: dict[str, Box] = {}
        self._unclean: list[Box] = []
        self._lock = threading.Lock()
        self.stopping = Stopping(host, ledger, worker, self._live, self.remove_all)

    def answer(self, verb: str, args: Mapping[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Do one verb. Raises FumehoodError for what is refused or fails."""
        if verb == "stopped":
            return self.stopping.wait(args), []
        if verb == "capacity":
            return capacity.fields(self._host.settings.boxes), []
        if verb == "doctor":
            return doctor.report(self._host), []
        if verb == "end":
            runtime = requests.runtime_of(args)
            end_elsewhere(self._host.settings.state.run, runtime, requests.task_of(args))
            return {}, []
        if verb in pending.VERBS:
            return pending.VERBS[verb](self._host.settings.state, self._host.settings.caller_uid, dict(args))
        if verb == "network":
            return self._box(requests.task_of(args)).network(requests.listens_of(args))
        handler = self._verbs().get(verb)
        if handler is None:
            raise requests.refuse(f"there is no verb {verb!r:.40}")
        return handler(requests.task_of(args), args, fds), []

    def end(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """End a session's box for an operator, as its own end would. Raises FumehoodError when there is none of this task."""
        self._box(requests.task_of(args)).kill(Reason.SESSION_ENDED)
        return {}

    def remove_all(self) -> None:
        """Remove every box, all at once."""
        with self._lock:
            boxes, self._boxes, self._unclean = [*self._boxes.values(), *self._unclean], {}, []
        threads = [threading.Thread(target=box.remove) for box in boxes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def remove_rest(self) -> Iterator[str]:
        """Try again to remove what could not be removed when its call ended; the tasks of which nothing is left now."""
        for box in tuple(self._unclean):
            if box.remove().get("clean", True):
                with self._lock, suppress(ValueError):
                    self._unclean.remove(box)
                yield box.task

    def _verbs(self) -> Mapping[str, Callable[[str, Mapping[str, Any], list[int]], dict[str, Any]]]:
        return {
            "make": self._make, "bind": self._bind, "start": self._start, "wait": self._wait,
            "kill": self._kill, "freeze": self._freeze, "thaw": self._thaw, "survey": self._survey,
            "put": self._put, "get": self._get, "settle": self._settle, "remove": self._remove,
        }  # fmt: skip

    def _make(self, task: str, args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        self.stopping.check()
        box = Box(self._host, task, requests.frame_of(args.get("frame")))
        with self._lock:
            if task in self._boxes:
                raise requests.refuse("this task has a box already")
            if len(self._boxes) >= self._host.settings.boxes:
                raise Refused(Deny(reason=Reason.BUSY, rule="config.boxes", detail=f"{len(self._boxes)} boxes are live"))
            self._boxes[task] = box
        return dataclasses.asdict(box.make())

    def _bind(self, task: str, args: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        files = requests.files_of(args)
        if len(fds) > (2 if files else 1) or len(fds) < len(files[:1]):
            raise requests.refuse("bind takes at most a directory, and a memory file for the files")
        directory = None if len(fds) == len(files[:1]) else fds[0]
        return self._box(task).bind(requests.binding_of(args.get("binding")), directory, files, fds[-1] if files else None)

    def _start(self, task: str, args: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        if len(fds) != 3:
            raise requests.refuse("start takes three descriptors")
        argv, env = requests.command_of(args)
        self.stopping.check()  # a box that was being made when everything was stopped runs nothing
        return self._box(task).start(argv, env, fds, check_fence=args.get("check_fence") is True)

    def _put(self, task: str, args: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        self._box(task).put(requests.descriptor_of(fds), requests.inner_path_of(args))
        return {}

    def _get(self, task: str, args: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        self._box(task).get(requests.inner_path_of(args), requests.descriptor_of(fds), requests.most_bytes_of(args))
        return {}

    def _wait(self, task: str, _args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        return dataclasses.asdict(self._box(task).wait())

    def _kill(self, task: str, args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        reason = Reason(requests.choice_of(args, "reason", tuple(Reason)))
        with self._lock:
            box = self._boxes.get(task)
        if box is not None:  # else it is gone already: a session's box may go while a call in it ends it
            box.kill(reason)
        return {}

    def _freeze(self, task: str, args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        return dataclasses.asdict(self._box(task).freeze(requests.pause_of(args)))

    def _thaw(self, task: str, _args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        self._box(task).thaw()
        return {}

    def _survey(self, task: str, _args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        return self._box(task).survey()

    def _settle(self, task: str, args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        action = requests.choice_of(args, "action", ("commit", "hold", "discard"))
        settled = self._box(task).settle(action, requests.strings_of(args, "protect", 256))
        return {**dataclasses.asdict(settled), "files": _fitting(settled.files), "files_total": len(settled.files)}

    def _remove(self, task: str, _args: Mapping[str, Any], _fds: list[int]) -> dict[str, Any]:
        with self._lock:
            box = self._boxes.get(task)
        facts = box.remove() if box is not None else {}
        with self._lock:
            self._boxes.pop(task, None)
            if box is not None and not facts.get("clean", True):
                self._unclean.append(box)
        return facts

    def _live(self) -> list[Box]:
        with self._lock:
            return list(self._boxes.values())

    def _box(self, task: str) -> Box:
        with self._lock:
            box = self._boxes.get(task)
        if box is None:
            raise BoxFailed(Reason.BOX_DIED, "this task has no box, or has it no more")
        return box


def _fitting(files: Sequence[FileChange]) -> list[dict[str, Any]]:
    """As many changes as fit into one message; what is pending can be listed page by page."""
    rows: list[dict[str, Any]] = []
    room = wire.MESSAGE_BYTES // 2
    for change in files:
        row = dataclasses.asdict(change)
        room -= 2 * len(change.path.encode("utf-8", "surrogateescape")) + 200
        if room < 0:
            break
        rows.append(row)
    return rows


def serve(settings: Settings, worker: socket.socket, ledger: socket.socket, operator: socket.socket, worker_pidfd: int) -> None:
    """Run until the worker is gone. Never returns an error: what cannot be set up is told to every request."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the worker decides; its end is ours
    opened, closed = open_host, close_host
    if settings.rootless:
        from fumehood.broker import rootless  # root's broker never holds it

        opened, closed = rootless.open_host, rootless.close_host
    try:
        host = opened(settings)
    except (FumehoodError, OSError) as error:
        _refuse_all(worker, error)
        return
    try:
        for _ in sweep.sweep(host, ledger):
            pass  # the records say what was found; stderr may be a command's
        broker = Broker(host, ledger, worker_pidfd)
        sweeping = sweep.Sweeping(host, ledger, broker.remove_rest)
        door = Door(
            settings.state.run / settings.runtime_id, {"end": broker.end, "stop": lambda _args: broker.stopping.stop()}
        )
        threading.Thread(target=orders.take_orders, args=(operator, host), daemon=True).start()
        sending = threading.Lock()
        with ThreadPoolExecutor(max_workers=4 * settings.boxes + 5) as pool:
            try:
                while (got := wire.receive(worker)) is not None:
                    pool.submit(_answer, broker, worker, sending, *got)
            except wire.WireError:
                pass  # whoever sends that is not our worker any more
            sweeping.close()
            door.close()
            broker.stopping.finish()
            broker.remove_all()
    finally:
        closed(host)


def _answer(
    broker: Broker, worker: socket.socket, sending: threading.Lock, message: Mapping[str, Any], fds: list[int]
) -> None:
    reply_fds: list[int] = []
    try:
        args = message.get("args")
        result, reply_fds = broker.answer(str(message.get("verb")), args if isinstance(args, dict) else {}, fds)
        reply: dict[str, Any] = {"ok": result}
    except Exception as error:  # noqa: BLE001 - a verb's fault must not end the process that cleans up
        if not isinstance(error, FumehoodError):
            traceback.print_exc(file=sys.stderr)
        reply = wire.reply_of_error(error)
    finally:
        wire.close_all(fds)
    try:
        with sending:
            _send(worker, {"id": message.get("id"), **reply}, reply_fds)
    except (wire.WireError, OSError):
        pass  # the worker is gone; the main thread sees it too
    finally:
        wire.close_all(reply_fds)


def _send(worker: socket.socket, reply: dict[str, Any], fds: list[int]) -> None:
    try:
        wire.send(worker, reply, fds)
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:  # a user's descriptors under way are bounded, root's are not
            raise
        fault = BoxFailed(Reason.BUSY, "too many descriptors are under way", remedy="Raise the limit of open files.")
        wire.send(worker, {"id": reply["id"], **wire.reply_of_error(fault)})


def _refuse_all(worker: socket.socket, error: Exception) -> None:
    """Answer every request with why the broker could not start."""
    if not isinstance(error, FumehoodError):
        error = FumehoodError(Reason.STATE_UNAVAILABLE, str(error))
    try:
        while (got := wire.receive(worker)) is not None:
            message, fds = got
            wire.close_all(fds)
            wire.send(worker, {"id": message.get("id"), **wire.reply_of_error(error)})
    except (wire.WireError, OSError):
        os._exit(1)
