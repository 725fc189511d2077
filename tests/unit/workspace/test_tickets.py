from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fumehood.broker import tickets
from fumehood.broker.tickets import Ticket, take_ticket
from fumehood.faults import BoxFailed, Refused
from fumehood.reasons import Reason

RUNTIME = str(Path(tickets.__file__).parents[2])


class Place:
    def __init__(self, folder: Path) -> None:
        self.locks = folder / "locks"
        self.locks.mkdir()
        self.fd = os.open(folder, os.O_RDONLY)

    def take(
        self, *, exclusive: bool = True, deadline_s: float = 20, given_up: threading.Event | None = None
    ) -> Ticket:
        return take_ticket(self.locks, self.fd, exclusive=exclusive, deadline_s=deadline_s, given_up=given_up)

    def drawn(self) -> int:
        return len(list(self.locks.glob("*.*.*")))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    os.close(made.fd)


def test_readers_share_and_a_writer_is_alone(place: Place) -> None:
    first, second = place.take(exclusive=False), place.take(exclusive=False)
    with pytest.raises(Refused) as refused:
        place.take(deadline_s=0)
    assert refused.value.reason is Reason.WORKSPACE_BUSY
    first.release()
    second.release()
    writer = place.take(deadline_s=0)
    for exclusive in (True, False):
        with pytest.raises(Refused):
            place.take(exclusive=exclusive, deadline_s=0.03)
    writer.release()
    writer.release()
    assert place.drawn() == 0


def test_directories_do_not_wait_for_each_other(place: Place, tmp_path: Path) -> None:
    held = place.take()
    other = tmp_path / "other"
    other.mkdir()
    fd = os.open(other, os.O_RDONLY)
    take_ticket(place.locks, fd, exclusive=True, deadline_s=0).release()
    os.close(fd)
    held.release()


def test_first_come_first_served_and_readers_do_not_overtake_a_writer(place: Place) -> None:
    held = place.take()
    order: list[int] = []
    threads = []
    for number in range(6):

        def wait(number: int = number) -> None:
            ticket = place.take(exclusive=True)
            order.append(number)
            ticket.release()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        while place.drawn() < number + 2:  # its ticket is drawn: it stands in the queue
            assert threads[-1].is_alive()
    with pytest.raises(Refused):
        place.take(exclusive=False, deadline_s=0)
    held.release()
    for thread in threads:
        thread.join(20)
    assert order == list(range(6))


def test_a_ticket_of_a_process_that_was_killed_holds_nobody_up(place: Place) -> None:
    program = f"""
import sys, os, time
sys.path.insert(0, {RUNTIME!r})
from pathlib import Path
from fumehood.broker.tickets import take_ticket
held = take_ticket(Path({str(place.locks)!r}), {place.fd}, exclusive=True, deadline_s=5)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[place.fd]
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Refused):
            place.take(deadline_s=0)
        holder.kill()
        holder.wait(10)
        ticket = place.take(deadline_s=1)
    assert place.drawn() == 1
    ticket.release()


def test_a_call_that_is_cancelled_stops_waiting(place: Place) -> None:
    held = place.take()
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(BoxFailed) as failed:
        place.take(given_up=given_up)
    assert failed.value.reason is Reason.CANCELLED
    assert place.drawn() == 1
    held.release()


def test_many_threads_never_hold_it_together(place: Place) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def work() -> None:
        for _ in range(5):
            ticket = place.take()
            inside.append(1)
            seen.append(len(inside))
            inside.pop()
            ticket.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [1] * 30
