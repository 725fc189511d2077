"""A client of `scripts/bench egress`, in a box's network or outside: reads a line of JSON, does it, writes a line of JSON. Standard library only.

The bench's plain server is told by a byte what to do: `e` echoes it, `d` pours and `u` swallows as many bytes as the next eight say.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import time
from typing import Any

PIECE = bytes(2**18)
PAUSE_S = 0.02  # a task may have 64 new connections a second; whoever has more waits, and that is not what is measured
Place = list[Any]  # host, port


def connects(place: Place, count: int, pause_s: float = PAUSE_S) -> list[float]:
    """Connect, send a byte and have it back, one after the other with a pause between; milliseconds each."""
    taken = []
    for _ in range(count):
        time.sleep(pause_s)
        begun = time.perf_counter()
        with socket.create_connection(tuple(place)) as made:
            made.sendall(b"e")
            made.recv(1)
            taken.append((time.perf_counter() - begun) * 1e3)
    return taken


def stream(place: Place, size: int, way: str) -> float:
    """Bytes a second over one connection that is there; `way` is `d` (down) or `u` (up)."""
    with socket.create_connection(tuple(place)) as made:
        made.sendall(b"e")
        made.recv(1)
        begun = time.perf_counter()
        made.sendall(way.encode() + size.to_bytes(8))
        if way == "d":
            buffer, left = bytearray(2**18), size
            while left:
                got = made.recv_into(buffer)
                if not got:
                    raise EOFError(left)
                left -= got
        else:
            for _ in range(size // len(PIECE)):
                made.sendall(PIECE)
            made.recv(1)
        return size / (time.perf_counter() - begun)


def handshakes(place: Place, pem: str, count: int) -> list[float]:
    """Connect and shake hands, one after the other; milliseconds each."""
    context, taken = _context(pem), []
    for _ in range(count):
        time.sleep(PAUSE_S)
        begun = time.perf_counter()
        with socket.create_connection(tuple(place[:2])) as plain, context.wrap_socket(plain, server_hostname=place[2]):
            taken.append((time.perf_counter() - begun) * 1e3)
    return taken


def requests(place: Place, pem: str, port: int, path: str, clients: int, count: int) -> list[float]:
    """The same GET from several clients at once, `count` each over a connection that is kept; milliseconds each."""
    context = _context(pem)
    head = f"GET /{path} HTTP/1.1\r\nHost: {place[2]}:{port}\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n".encode()

    async def client() -> list[float]:
        taken = []
        reader, writer = await asyncio.open_connection(place[0], place[1], ssl=context, server_hostname=place[2])
        for _ in range(count + 1):
            begun = time.perf_counter()
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            taken.append((time.perf_counter() - begun) * 1e3)
        writer.transport.abort()
        return taken[1:]  # the first has the gate's own connection to make

    async def every() -> list[float]:
        return [each for taken in await asyncio.gather(*(client() for _ in range(clients))) for each in taken]

    return asyncio.run(every())


def body(place: Place, pem: str, port: int, size: int, way: str) -> float:
    """Bytes a second of one HTTP body over TLS, down or up."""
    with (
        socket.create_connection(tuple(place[:2])) as plain,
        _context(pem).wrap_socket(plain, server_hostname=place[2]) as made,
    ):
        begun = time.perf_counter()
        if way == "d":
            made.sendall(f"GET /pour?{size} HTTP/1.1\r\nHost: {place[2]}:{port}\r\n\r\n".encode())
            left, buffer = size, bytearray(2**18)
            first = bytearray()
            while b"\r\n\r\n" not in first:
                first += made.recv(2**16)
            left -= len(first) - first.index(b"\r\n\r\n") - 4
            while left:
                got = made.recv_into(buffer)
                if not got:
                    raise EOFError(left)
                left -= got
        else:
            head = f"POST /upload HTTP/1.1\r\nHost: {place[2]}:{port}\r\nContent-Length: {size}\r\n\r\n".encode()
            made.sendall(head)
            for _ in range(size // len(PIECE)):
                made.sendall(PIECE)
            if not made.recv(2**16).startswith(b"HTTP/1.1 200"):
                raise ConnectionError("the upload was refused")
        return size / (time.perf_counter() - begun)


def where(name: str, port: int) -> Place:
    """The address that a name has here."""
    return [socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0], port, name]


def _context(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    return context


def main() -> None:
    """Do what each line says until there is none."""
    verbs = {each.__name__: each for each in (connects, stream, handshakes, requests, body, where)}
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        sys.stdout.write(json.dumps(verbs[verb](*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
