"""A pipe that is closed while somebody waits for it: its number is the next call's."""

from __future__ import annotations

import os

import anyio
import pytest

from fumehood.execution.pipes import Heard, Lines, Pipes
from fumehood.faults import ExchangeFailed
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio


async def test_a_call_whose_session_ends_reads_nothing_of_the_call_that_has_its_pipes_number_next() -> None:
    pipes = Pipes(stdin=True)
    lines = Lines(pipes, 1000, Heard())
    failed: list[ExchangeFailed] = []

    async def visit() -> None:
        with pytest.raises(ExchangeFailed) as caught:
            await lines.receive()
        failed.append(caught.value)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(visit)
            await anyio.wait_all_tasks_blocked()
            number = pipes.our_out
            os.write(pipes.box_out, b"half a line")  # it is woken, and runs when the number is another's
            pipes.close()
            other = Pipes(stdin=True)
            assert number in {other.our_out, other.our_err, other.box_in, other.our_in}
            os.write(other.box_out, b"a secret of another sender's\n")
            os.write(other.box_err, b"another\n")
    assert [error.reason for error in failed] == [Reason.SERVER_DIED]
    assert os.read(other.our_out, 100) == b"a secret of another sender's\n"
    assert os.read(other.our_err, 100) == b"another\n"
    other.close()


async def test_a_call_whose_session_ends_writes_nothing_to_the_call_that_has_its_pipes_number_next() -> None:
    pipes = Pipes(stdin=True)
    lines = Lines(pipes, 1000, Heard())
    failed: list[ExchangeFailed] = []

    async def visit() -> None:
        with pytest.raises(ExchangeFailed) as caught:
            await lines.send(b"x" * 2**20)
        failed.append(caught.value)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(visit)
            await anyio.wait_all_tasks_blocked()
            pipes.close()
            others = [Pipes(stdin=True) for _ in range(3)]
    assert [error.reason for error in failed] == [Reason.SERVER_DIED]
    for other in others:
        os.set_blocking(other.box_in, False)
        with pytest.raises(BlockingIOError):
            os.read(other.box_in, 1)
        other.close()


async def test_what_waits_for_another_pipe_of_that_number_is_not_disturbed() -> None:
    pipes = Pipes(stdin=True)
    lines = Lines(pipes, 1000, Heard())
    heard: list[bytes] = []

    async def visit() -> None:
        with pytest.raises(ExchangeFailed):
            await lines.receive()

    async def receive(of: Pipes) -> None:
        heard.append(await Lines(of, 1000, Heard()).receive())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(visit)
            await anyio.wait_all_tasks_blocked()
            pipes.close()
            other = Pipes(stdin=True)
            tasks.start_soon(receive, other)  # it was "another task is already reading"
            await anyio.wait_all_tasks_blocked()
            os.write(other.box_out, b"its own\n")
    assert heard == [b"its own"]
    other.close()
