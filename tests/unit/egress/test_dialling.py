"""Resolving and dialling, against a name server and listeners of the test's own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fumehood.egress import resolver
from fumehood.egress.addresses import ADDRESS_NOT_ALLOWED
from fumehood.egress.dial import NOT_CONNECTED, PROXY_REFUSED, Dialer, _connect, dialer_of
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.resolver import NOT_RESOLVED, Resolver, split_place
from fumehood.ports import Outward
from nameserver import Nameserver, nameserver

LOOPBACK = ("127.0.0.0/8",)
pytestmark = pytest.mark.anyio


@asynccontextmanager
async def listener(address: str = "127.0.0.1", said: bytes = b"hi") -> AsyncIterator[int]:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, address, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for _ in range(10):  # who was dialled and left in one turn is accepted, answered and closed in the next few
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()


def dialer(server: Nameserver, **outward: Any) -> Dialer:
    return Dialer(Outward(resolvers=(server.place,), **outward))


async def why(name: str, port: int, dialing: Dialer, networks: tuple[str, ...] = LOOPBACK) -> tuple[Why, dict[str, Any]]:
    with pytest.raises(Rejected) as refused:
        (await dialing.dial(name, port, networks)).close()
    return refused.value.why, refused.value.facts


async def test_what_is_dialled_is_connected_and_does_not_wait_to_send() -> None:
    async with nameserver({"api.example": ["127.0.0.1"]}) as server, listener() as port:
        with await dialer(server).dial("api.example", port, LOOPBACK) as connection:
            assert not connection.getblocking()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert await asyncio.get_running_loop().sock_recv(connection, 9) == b"hi"


async def test_a_server_of_this_host_is_connected_when_the_kernel_says_so() -> None:
    async with listener() as port:
        connecting = _connect(ipaddress.IPv4Address("127.0.0.1"), port)
        with pytest.raises(StopIteration) as connected:  # in the turn in which it began
            connecting.send(None)
        with connected.value.value as connection:
            assert connection.getpeername() == ("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        await _connect(ipaddress.IPv4Address("127.0.0.1"), port)


async def test_a_name_that_turns_private_between_two_connections_is_dialled_no_more() -> None:
    async with nameserver({"api.example": ["127.0.0.1"]}) as server, listener() as port:
        dialing = dialer(server)
        (await dialing.dial("api.example", port, LOOPBACK)).close()
        server.records["api.example"] = ["169.254.169.254"]
        await asyncio.sleep(1.05)  # the least that an answer is kept
        found, facts = await why("api.example", port, dialing)
        assert found is ADDRESS_NOT_ALLOWED
        assert facts["addresses"] == {"169.254.169.254": "loopback or link-local"}


async def test_of_several_addresses_only_those_are_dialled_that_are_allowed() -> None:
    async with nameserver({"api.example": ["10.0.0.1", "169.254.169.254", "127.0.0.1", "::1"]}) as server, listener() as port:
        dialing = dialer(server)
        assert [str(each) for each in await dialing.judged("api.example", port, LOOPBACK)] == ["127.0.0.1"]
        (await dialing.dial("api.example", port, LOOPBACK)).close()


async def test_an_alias_is_judged_by_where_it_ends() -> None:
    async with nameserver({"inside.attacker.example": ["10.0.0.1"]}) as server:
        server.aliases["api.example"] = "inside.attacker.example"
        assert (await why("api.example", 80, dialer(server)))[0] is ADDRESS_NOT_ALLOWED


async def test_this_hosts_own_address_on_the_internet_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loopback stands in for a public address of the host: both are where packets come back to.
    monkeypatch.setattr("fumehood.egress.dial.judge", lambda *_: None)
    async with nameserver({"api.example": ["127.0.0.1"]}) as server, listener() as port:
        found, facts = await why("api.example", port, dialer(server), ())
        assert found is ADDRESS_NOT_ALLOWED
        assert facts["addresses"] == {"127.0.0.1": "this host's own"}


async def test_a_literal_address_is_judged_as_a_names_is() -> None:
    async with nameserver() as server, listener() as port:
        (await dialer(server).dial("127.0.0.1", port, LOOPBACK)).close()
        assert (await why("127.0.0.1", port, dialer(server), ()))[0] is ADDRESS_NOT_ALLOWED
        assert (await why("::ffff:127.0.0.1", port, dialer(server)))[0] is ADDRESS_NOT_ALLOWED
        assert server.asked == []


async def test_the_next_address_is_tried_when_the_first_refuses_and_when_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nameserver({"two.example": ["127.0.0.2", "127.0.0.1"]}) as server, listener() as port:
        (await dialer(server).dial("two.example", port, LOOPBACK)).close()
        real = asyncio.get_running_loop().sock_connect

        async def slow(connection: socket.socket, address: Any) -> None:
            if address[0] == "127.0.0.2":
                await asyncio.sleep(30)
            await real(connection, address)

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", slow)
        async with asyncio.timeout(2):
            (await dialer(server).dial("two.example", port, LOOPBACK)).close()


async def test_nobody_listening_is_said_with_the_address_that_was_tried() -> None:
    async with nameserver({"api.example": ["127.0.0.1"]}) as server, listener() as port:
        pass
    async with nameserver({"api.example": ["127.0.0.1"]}) as server:
        found, facts = await why("api.example", port, dialer(server))
    assert found is NOT_CONNECTED
    assert facts == {"name": "api.example", "port": port, "addresses": ["127.0.0.1"], "error": "Connection refused"}


async def test_a_name_that_does_not_exist_is_asked_for_once_in_a_while() -> None:
    async with nameserver() as server:
        dialing = dialer(server)
        for _ in range(5):
            assert (await why("nope.example", 80, dialing))[0] is NOT_RESOLVED
        assert len(server.asked) == 2


async def test_a_hundred_connections_at_once_ask_once() -> None:
    async with nameserver({"api.example": ["127.0.0.1"]}) as server:
        asking = Resolver((server.place,))
        await asyncio.gather(*(asking.addresses("api.example") for _ in range(100)))
        assert sorted(server.asked) == [("api.example", "A"), ("api.example", "AAAA")]


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async with nameserver({"api.example": ["127.0.0.1"]}) as server:
        asking = Resolver((server.place,))
        impatient = asyncio.create_task(asking.addresses("api.example"))
        other = asyncio.create_task(asking.addresses("api.example"))
        await asyncio.sleep(0)
        impatient.cancel()
        assert len(await other) == 1


async def test_a_silent_resolver_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "TIMEOUT_S", 0.2)
    async with nameserver() as server:
        server.is_silent = True
        async with asyncio.timeout(3):
            assert (await why("api.example", 80, dialer(server)))[0] is NOT_RESOLVED


async def test_answers_are_kept_as_long_as_they_say_and_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MOST_KEPT", 3)
    async with nameserver({f"n{number}.example": ["127.0.0.1"] for number in range(9)}) as server:
        server.ttl_s = 60
        asking = Resolver((server.place,))
        for number in range(9):
            await asking.addresses(f"n{number}.example")
        assert list(asking._kept) == ["n6.example", "n7.example", "n8.example"]
        count = len(server.asked)
        await asking.addresses("n8.example")
        assert len(server.asked) == count


async def test_the_hosts_file_comes_first_unless_resolvers_are_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.9 db.example # and more\nnonsense db2.example\n::1\n")
    monkeypatch.setattr(resolver, "_HOSTS", tmp_path / "hosts")
    assert [str(each) for each in await Resolver().addresses("db.example")] == ["127.0.0.9"]
    async with nameserver() as server:
        with pytest.raises(Rejected):
            await Resolver((server.place,)).addresses("db.example")


class Proxy:
    """An HTTP proxy that connects to wherever it is told, or says something else."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.answer = answer
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        writer.write(self.answer + (b"from beyond" if b" 200" in self.answer else b""))
        await writer.drain()
        writer.close()


@asynccontextmanager
async def proxy(serving: Proxy) -> AsyncIterator[str]:
    server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_proxy_is_told_the_address_that_was_judged_and_not_the_name() -> None:
    serving = Proxy()
    async with nameserver({"api.example": ["93.184.216.34"]}) as server, proxy(serving) as place:
        with await dialer(server, proxy=place).dial("api.example", 443) as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 99) == b"from beyond"
        assert serving.heads == [b"CONNECT 93.184.216.34:443 HTTP/1.1\r\nHost: 93.184.216.34:443\r\n\r\n"]
        server.records["api.example"] = ["10.0.0.1"]
        assert (await why("api.example", 443, dialer(server, proxy=place), ()))[0] is ADDRESS_NOT_ALLOWED
        assert len(serving.heads) == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 No\r\n\r\n", b"HTTP/1.1 200", b"", b"SSH-2.0 200\r\n\r\n", b"x" * 9000])
async def test_a_proxy_that_does_not_connect_is_said_so(answer: bytes) -> None:
    async with nameserver({"api.example": ["93.184.216.34"]}) as server, proxy(Proxy(answer)) as place:
        assert (await why("api.example", 443, dialer(server, proxy=place)))[0] is PROXY_REFUSED


def test_gates_of_one_runtime_share_their_answers_and_those_of_two_do_not() -> None:
    one, other = Outward(), Outward()
    assert dialer_of(one) is dialer_of(one)
    assert dialer_of(one) is not dialer_of(other)


@pytest.mark.parametrize(
    ("text", "place"),
    [("1.2.3.4:53", ("1.2.3.4", 53)), ("1.2.3.4", ("1.2.3.4", 9)), ("[::1]:53", ("::1", 53)), ("[::1]", ("::1", 9)), ("::1", ("::1", 9)),
     ("proxy.example:3128", ("proxy.example", 3128))],
)  # fmt: skip
def test_places_are_read_with_and_without_a_port(text: str, place: tuple[str, int]) -> None:
    assert split_place(text, 9) == place
