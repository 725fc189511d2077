from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import anyio
import pytest

from fumehood.gateway import stdio

pytestmark = pytest.mark.anyio


async def read_all(data: bytes, limit: int) -> list[bytes | None]:
    source, other = os.pipe()
    try:
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                for start in range(0, len(data), 7):
                    os.write(other, data[start : start + 7])
                    await anyio.lowlevel.checkpoint()
                os.close(other)

            tasks.start_soon(write)
            with anyio.fail_after(5):
                return [frame async for frame in stdio.read_frames(source, limit)]
    finally:
        os.close(source)
    raise AssertionError


async def test_lines_are_bounded_and_a_long_one_is_told_once() -> None:
    got = await read_all(b"a\r\n\n  \n" + b"x" * 100 + b"\nbc\n" + b"y" * 11 + b"\n" + b"z" * 10 + b"\nend without", 10)
    assert got == [b"a", None, b"bc", None, b"z" * 10]


async def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\nb\n")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        assert [frame async for frame in stdio.read_frames(fd)] == [b"a", b"b"]
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_client_that_does_not_read_blocks_its_writer_and_not_the_loop(kind: str) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    sink = stdio.FrameSink(writer)
    frame = os.urandom(2**20).replace(b"\n", b" ")
    got: list[bytes | None] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sink.send, frame)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()  # the loop still turns while the writer waits

        async def read() -> None:
            got.append(await anext(stdio.read_frames(reader)))

        with anyio.fail_after(10):
            await read()
    assert got == [frame.rstrip(b"\r")]
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await sink.send(b"nobody")
    sink.close()
    os.close(writer)


async def test_a_stray_print_misses_the_protocol() -> None:
    program = (
        "import os; from fumehood.gateway import stdio; i, o = stdio.claim(); print('stray', flush=True);"
        "os.write(1, b'stray'); os.system('echo stray'); os.write(o, os.read(0, 9) + os.read(i, 9)); assert i > 2 < o"
    )
    with anyio.fail_after(10):
        done = await anyio.run_process([sys.executable, "-c", program], input=b"true")
    assert done.stdout == b"true"
    assert done.stderr.count(b"stray") == 3
