"""What two runs of the conformance suite say about the gateway, and that the forwarder changes one header alone."""

from __future__ import annotations

import socket
import threading

import pytest
from forwarder import forwarding
from suite import ABSENT, Found, compare, judge

PASS = Found("pass", 2)


def _checks(*states: str) -> list[dict[str, str]]:
    return [{"id": "some", "status": state, "errorMessage": "words"} for state in states]


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        (("SUCCESS", "INFO"), "pass"), (("SUCCESS", "SKIPPED"), "pass"), (("SUCCESS", "WARNING"), "warn"),
        (("WARNING", "FAILURE"), "fail"), (("SKIPPED", "INFO"), "skip"), ((), "skip"),
    ],
)  # fmt: skip
def test_a_scenario_passes_when_something_succeeded_and_nothing_was_complained_of(
    states: tuple[str, ...], verdict: str
) -> None:
    assert judge(_checks(*states)).verdict == verdict


@pytest.mark.parametrize("gateway", [Found("fail"), Found("warn"), Found("skip"), None])
def test_what_passes_directly_must_pass_through_the_gateway(gateway: Found | None) -> None:
    through = {"b": PASS} if gateway is None else {"a": gateway, "b": PASS}
    rows = compare(["a", "b"], {"a": PASS, "b": PASS}, through)
    assert [row.worse for row in rows] == [True, False]


def test_a_required_scenario_that_was_never_run_is_shown_and_has_not_passed() -> None:
    (row,) = compare(["a"], {}, {})
    assert (row.direct, row.gateway, row.worse) == (ABSENT, ABSENT, False)


def test_what_fails_directly_proves_nothing() -> None:
    rows = compare(["a"], {"a": Found("fail"), "x": PASS}, {"a": Found("fail"), "x": PASS})
    assert [(row.scenario, row.required, row.worse) for row in rows] == [("a", True, False), ("x", False, False)]


def test_the_forwarder_adds_its_header_and_keeps_a_strange_host() -> None:
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                while b"body" not in got:
                    got.extend(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        with forwarding(f"http://127.0.0.1:{port}/mcp", "Authorization: Bearer secret") as url:
            client = socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), timeout=5)
            with client:
                client.sendall(b"POST /mcp HTTP/1.1\r\nHost: evil.example.com\r\nConnection: keep-alive\r\n")
                client.sendall(b"Content-Length: 4\r\n\r\nbody")
                said = b""
                while chunk := client.recv(4096):
                    said += chunk
        answering.join(5)
    assert said.endswith(b"\r\n\r\nok")
    assert got.splitlines() == [
        b"POST /mcp HTTP/1.1", b"Authorization: Bearer secret", b"Connection: close", b"Host: evil.example.com",
        b"Content-Length: 4", b"", b"body",
    ]  # fmt: skip
