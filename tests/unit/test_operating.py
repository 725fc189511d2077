"""The operator process: what it tells whom, in which order, and that nothing but a good configuration changes anything.

The process itself runs; the test has the worker's and the broker's ends of its sockets.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fumehood import operating, wire
from fumehood.faults import FumehoodError
from fumehood.operating import Allowed, Part, Revision
from fumehood.reasons import Reason

OLD = Allowed(("/old",), ("/m",))


class Ends:
    """What the operator process hears and says."""

    def __init__(self, pid: int, worker: socket.socket, broker: socket.socket) -> None:
        self.pid, self.worker, self.broker = pid, worker, broker
        for end in (worker, broker):
            end.settimeout(10)

    def ask(self) -> None:
        wire.send(self.worker, {"verb": "reload"})

    def order(self, reply: dict[str, Any] | None = None) -> tuple[list[str], list[str]]:
        """The next order to the broker, which is answered."""
        got = wire.receive(self.broker)
        assert got is not None
        message, fds = got
        assert (message["verb"], fds) == ("allow", [])
        wire.send(self.broker, {"id": message["id"], **(reply or {"ok": {}})})
        return message["args"]["workspaces"], message["args"]["mounts"]

    def told(self) -> list[Part]:
        """What the worker is told, to the last part."""
        parts: list[Part] = []
        while True:
            got = wire.receive(self.worker)
            assert got is not None
            message, fds = got
            parts.append(Part(message["part"], tuple(fds)))
            if message["last"]:
                return parts

    def quiet(self, seconds: float = 0.2) -> bool:
        """Whether neither hears anything for a while."""
        return not select.select([self.worker, self.broker], [], [], seconds)[0]

    def gone(self) -> bool:
        pidfd = os.pidfd_open(self.pid)
        try:
            return bool(select.select([pidfd], [], [], 10)[0])
        finally:
            os.close(pidfd)


@contextmanager
def operator(reread: Callable[[], Revision], allowed: Allowed = OLD) -> Iterator[Ends]:
    (worker, workers), (broker, brokers) = wire.pair(), wire.pair()
    pid = os.fork()
    if pid == 0:
        try:
            workers.close()
            brokers.close()
            operating.serve(worker, broker, allowed, reread)
        finally:
            os._exit(0)
    worker.close()
    broker.close()
    try:
        yield Ends(pid, workers, brokers)
    finally:
        workers.close()
        brokers.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operating, "GRACE_S", 0.3)


def revision(*parts: Part, allowed: Allowed | None = None) -> Revision:
    return Revision(allowed or Allowed(("/new",), ("/n",)), parts or (Part({"a": 1}),))


def test_the_broker_allows_old_and_new_before_the_worker_hears_and_only_the_new_after_the_grace() -> None:
    with operator(lambda: revision(Part({"a": 1}), Part({"b": 2}))) as ends:
        ends.ask()
        assert not select.select([ends.worker], [], [], 0.5)[0], "told before the broker answered"
        assert ends.order() == (["/old", "/new"], ["/m", "/n"])
        assert [part.fields for part in ends.told()] == [{"a": 1}, {"b": 2}]
        began = time.monotonic()
        assert ends.order() == (["/new"], ["/n"])
        assert time.monotonic() - began < 5
        assert ends.quiet()


def test_what_is_said_in_the_request_decides_nothing() -> None:
    with operator(revision) as ends:
        args = {"workspaces": ["/etc"], "config": "/tmp/mine.yaml"}
        with open("/dev/null", "rb") as file:
            wire.send(ends.worker, {"id": 1, "verb": "allow", "args": args}, [file.fileno()])
        assert ends.order() == (["/old", "/new"], ["/m", "/n"])


def test_requests_that_wait_are_answered_by_one_reading() -> None:
    with operator(revision) as ends:
        for _ in range(20):
            ends.ask()
        readings = 0
        while not ends.quiet(1):
            if select.select([ends.broker], [], [], 0)[0]:
                ends.order()
            if select.select([ends.worker], [], [], 0)[0]:
                readings += len(ends.told())
        assert 1 <= readings <= 3


def test_a_directory_arrives_as_a_descriptor_that_the_reader_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")

    def read() -> Revision:
        return revision(Part({"server": "a"}, (os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY),)), Part({"end": 1}))

    with operator(read) as ends:
        for _ in range(2):
            ends.ask()
            ends.order()
            parts = ends.told()
            (directory,) = parts[0].fds
            assert os.listdir(directory) == ["file"]
            os.close(directory)
            ends.order()
        # Neither reading left anything open in the process that stays.
        open_there = [os.readlink(f"/proc/{ends.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{ends.pid}/fd")]
        assert str(tmp_path) not in open_there


def _refuses() -> Revision:
    raise FumehoodError(Reason.CONFIG_INVALID, "f:1:1: boxes: no")


def _crashes() -> Revision:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _faults() -> Revision:
    raise ZeroDivisionError


def _hangs() -> Revision:
    time.sleep(60)  # killed long before
    raise AssertionError


def _is_too_large() -> Revision:
    return revision(Part({"fine": 1}), Part({"a": "x" * wire.MESSAGE_BYTES}))


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (_refuses, "config_invalid: f:1:1: boxes: no"),
        (_crashes, "internal: the configuration could not be read again"),
        (_faults, "internal: the configuration could not be read again"),
        (_hangs, "internal: the configuration could not be read again: it took over 0.5 s"),
        (_is_too_large, "internal: the configuration could not be read again"),
    ],
)
def test_a_configuration_that_cannot_be_read_changes_nothing(
    read: Callable[[], Revision], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating, "READING_S", 0.5)
    with operator(read) as ends:
        for _ in range(2):  # and the process is there for the next try
            ends.ask()
            (part,) = ends.told()
            assert said in part.fields["refused"]
        assert ends.quiet(0.5), "the broker heard of a configuration that was refused"
        assert not Path(f"/proc/{ends.pid}/task/{ends.pid}/children").read_text(), "a reader was left"


def test_what_the_broker_refuses_is_refused_as_a_whole() -> None:
    with operator(revision) as ends:
        ends.ask()
        ends.order({"deny": {"reason": "bad_request", "rule": "r", "detail": "too many", "remedy": None}})
        (part,) = ends.told()
        assert "bad_request: too many" in part.fields["refused"]
        assert ends.quiet(0.6)


def test_a_worker_that_does_not_listen_does_not_keep_what_was_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operating, "_TELLING_S", 0.2)
    much = [Part({"a": "x" * (wire.MESSAGE_BYTES - 100)}) for _ in range(40)]
    with operator(lambda: revision(*much)) as ends:
        ends.ask()
        assert ends.order() == (["/old", "/new"], ["/m", "/n"])
        assert ends.order() == (["/new"], ["/n"])
        assert ends.gone()


def test_it_ends_with_the_worker_and_takes_no_signal_but_that() -> None:
    with operator(revision) as ends:
        ends.ask()
        ends.order()
        ends.told()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(ends.pid, number)
        ends.order()
        ends.ask()
        ends.order()
        ends.told()
        ends.worker.close()
        ends.order()
        assert ends.gone()


def test_its_memory_is_not_readable_through_proc() -> None:
    with operator(revision) as ends:
        ends.ask()
        ends.order()
        # A process that is not dumpable belongs to root in /proc.
        assert os.stat(f"/proc/{ends.pid}/environ").st_uid == 0
