"""A loopback proxy that adds one header to every request: the conformance suite has no option for `Authorization`.

Everything else passes as it came, a strange `Host` too, because the suite sends those on purpose; only our own port in it
becomes the gateway's. One request a connection (`Connection: close` both ways), so that no body has to be parsed to find
the next head. Either side's end ends the other: a client that hangs up must be seen to.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_HEAD_BYTES = 65536
_CHUNK = 65536


@contextmanager
def forwarding(url: str, header: str) -> Iterator[str]:
    """The address that leads to `url` with `header` (`Name: value`) in every request."""
    target = urlsplit(url)
    assert target.hostname is not None
    assert target.port is not None
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        swap = (f":{port}".encode(), f":{target.port}".encode())
        accepting = threading.Thread(
            target=_accept, args=(listener, (target.hostname, target.port), header.encode(), swap), daemon=True
        )
        accepting.start()
        yield f"http://127.0.0.1:{port}{target.path}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        accepting.join(5)


def _accept(listener: socket.socket, target: tuple[str, int], header: bytes, swap: tuple[bytes, bytes]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(client, target, header, swap), daemon=True).start()


def _serve(client: socket.socket, target: tuple[str, int], header: bytes, swap: tuple[bytes, bytes]) -> None:
    with client, suppress(OSError), socket.create_connection(target) as server:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = client.recv(_CHUNK)
            if not chunk or len(data) > _HEAD_BYTES:
                return
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        server.sendall(_changed(head, header, swap) + b"\r\n\r\n" + body)
        upward = threading.Thread(target=_copy, args=(client, server), daemon=True)
        upward.start()
        _copy(server, client)
        upward.join(5)


def _changed(head: bytes, header: bytes, swap: tuple[bytes, bytes]) -> bytes:
    first, *lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"keep-alive:"))]
    kept = [line.replace(*swap) if line.lower().startswith((b"host:", b"origin:")) else line for line in kept]
    return b"\r\n".join([first, header, b"Connection: close", *kept])


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
