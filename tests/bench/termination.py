"""What the gate's end of TLS costs: handshakes, and requests that it judges, writes a credential into and passes on.

Three processes, as in life: a server, the gate, and the clients. `handshakes()` and `requests()` give milliseconds, direct and through
the gate in turns, so that round by round both met the same machine. Run with `tests` in PYTHONPATH, or call the functions.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import ssl
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from fumehood.egress.authority import Authority
from terminating import NAME, USE, Server, terminated

CLIENTS = 8


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        authority = Authority("bench", [NAME])
        server = await asyncio.start_server(Server().serve, "127.0.0.1", 0, ssl=authority.make_context(NAME))
        pipe.send((server.sockets[0].getsockname()[1], authority.pem))
        await asyncio.sleep(3600)

    asyncio.run(main())


def _gate(pipe: Connection, upstream: int, pem: bytes) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with terminated(Path(folder), use=USE, upstream=(upstream, pem.decode())) as inside:
                pipe.send((inside.port, inside.pem))
                await asyncio.sleep(3600)

    asyncio.run(main())


class Rig:
    """A server and a gate in processes of their own."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        self._processes = [context.Process(target=_serve, args=(theirs,), daemon=True)]
        self._processes[0].start()
        self.direct = ours.recv()
        self._processes.append(context.Process(target=_gate, args=(theirs, *self.direct), daemon=True))
        self._processes[1].start()
        self.gated = ours.recv()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem.decode())
    return context


def handshakes(place: tuple[int, bytes], count: int) -> list[float]:
    """Connect and shake hands, one after the other; milliseconds each."""
    port, pem = place
    context, taken = _context(pem), []
    for _ in range(count):
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname=NAME):
            taken.append((time.perf_counter() - begun) * 1e3)
    return taken


async def requests(place: tuple[int, bytes], port: int, count: int, *, fresh: bool = False) -> list[float]:
    """The same GET from 8 clients at once, `count` each; over connections that are kept, or one each. Milliseconds each."""
    context, taken = _context(place[1]), []
    head = f"GET /a HTTP/1.1\r\nHost: {NAME}:{port}\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n".encode()

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", place[0], ssl=context, server_hostname=NAME)

    async def client() -> None:
        reader, writer = await connect()
        for number in range(count + 1):
            begun = time.perf_counter()
            if fresh and number:
                writer.transport.abort()
                reader, writer = await connect()
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            if number:  # the first has the gate's own connection to make
                taken.append((time.perf_counter() - begun) * 1e3)
        writer.transport.abort()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return taken


def rank(values: list[float], share: float) -> float:
    """A percentile by nearest rank."""
    return sorted(values)[max(0, -(-int(len(values) * share * 1000) // 1000) - 1)]


def main() -> None:
    """Print all of it."""
    with Rig() as rig:
        handshakes(rig.gated, 5)
        each = {"direct": handshakes(rig.direct, 200), "gate": handshakes(rig.gated, 200)}
        for name, taken in each.items():
            sys.stdout.write(f"handshake {name}: p50 {rank(taken, 0.5):.2f} ms, p99 {rank(taken, 0.99):.2f} ms\n")
        for fresh in (False, True):
            found: dict[str, list[float]] = {"direct": [], "gate": []}
            for _ in range(8):
                for name, place in (("direct", rig.direct), ("gate", rig.gated)):
                    found[name] += asyncio.run(requests(place, rig.gated[0], 40, fresh=fresh))
            for share in (0.5, 0.99):
                direct, gated = (rank(found[name], share) for name in ("direct", "gate"))
                kind = "fresh" if fresh else "kept"
                ratio = gated / direct
                sys.stdout.write(
                    f"request {kind} p{share * 100:g}: direct {direct:.2f} gate {gated:.2f} = {ratio:.2f}x\n"
                )


if __name__ == "__main__":
    main()
