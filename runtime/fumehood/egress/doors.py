"""The sockets of one box's gate, for as long as the box lives, and the one call at a time that they are open for.

Between calls the gate stands with its routes shut: it answers every question with REFUSED and every connection with a reset, and
what was waiting to be accepted when a call begins is reset too, because it was made before. Everything of a call's ends in `shut`,
which returns when its connections are reset. Nothing here hangs: whoever is not served is refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TypeAlias

from fumehood.egress import dns
from fumehood.egress.handlers import serve_of
from fumehood.egress.limits import HEAD_S, Budget, connection_bytes
from fumehood.egress.names import Names, Route
from fumehood.egress.packets import NO_LISTENER, Attempts
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.task import GateTask, reset, reset_when_closed
from fumehood.ports import Sockets

TOO_MANY_CONNECTIONS = Why(
    "too_many_connections", "the call has all the connections it may", "Raise `network.limits.connections`, or close them earlier."
)
NO_MEMORY = Why(
    "no_memory", "the runtime's memory for connections is used up", "Raise it in fumehood.yaml, or run fewer calls at once."
)
PORT_NOT_LISTED = Why("port_not_listed", "no rule names this port of the name", "Add it to `ports` of the rule, if it is right.")
NO_NAME = Why("no_name", "the connection is to an address that stands for no name", "Look the name up before connecting to it.")
TOO_MANY_QUESTIONS = Why("too_many_questions", "the call asks for names too often", "Raise `network.limits.dns_per_second`.")

_AT_ONCE = 16  # accepts or questions in one turn of the loop: others have theirs in between
_MOST_DNS_CONNECTIONS = 8
_SHUT_S = 1.0
_EXHAUSTED_S = 0.1
_CONTROL_BYTES = 128
_logger = logging.getLogger("fumehood")
_Running: TypeAlias = dict[asyncio.Task[None], socket.socket]


class Doors:
    """One box's. `outside` is who its refusals are logged for while no call is open."""

    def __init__(self, sockets: Sockets, names: Names, budget: Budget, outside: GateTask) -> None:
        """Take over the descriptors; answer, and let nobody through."""
        self._dns_udp = [socket.socket(fileno=fd) for fd in sockets.dns_udp]
        self._dns_tcp = [socket.socket(fileno=fd) for fd in sockets.dns_tcp]
        self._listeners = [socket.socket(fileno=fd) for pair in sockets.listeners for fd in pair]
        packets = None if sockets.packets is None else socket.socket(fileno=sockets.packets)
        self._attempts = None if packets is None else Attempts(packets, names)
        self._all = [*self._dns_udp, *self._dns_tcp, *self._listeners, *([] if packets is None else [packets])]
        self._names = names
        self._budget = budget
        self._outside = outside
        self._open: GateTask | None = None
        self._connections: _Running = {}
        self._dns_connections: _Running = {}
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        for each in self._all:
            each.setblocking(False)
        for each in self._dns_udp:
            self._loop.add_reader(each, self._on_question, each)
        for each in (*self._dns_tcp, *self._listeners):
            self._loop.add_reader(each, self._on_connection, each)
        if packets is not None:
            self._loop.add_reader(packets, self._on_attempt)

    def open(self, task: GateTask) -> None:
        """Serve this call. What was waiting to be accepted was made before it, and is reset."""
        self._drain()
        self._open = task

    async def shut(self) -> None:
        """Reset every connection of the call's, and serve nobody. Idempotent."""
        self._open = None
        self._drain()
        ending = {**self._connections, **self._dns_connections}
        for task, connection in ending.items():
            # Whoever closes it now, resets it; the other side is told by the handler's own ending.
            reset_when_closed(connection)
            task.cancel()
        if ending:
            _, late = await asyncio.wait(ending, timeout=_SHUT_S)
            for task in late:
                _logger.error("a handler of the gate did not end: %s", task.get_coro())
            await asyncio.sleep(0)  # transports close their sockets one turn after they are aborted

    async def close(self) -> None:
        """Shut, and close every socket."""
        try:
            await self.shut()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for each in self._all:
                self._loop.remove_reader(each)
            for each in self._all:
                if each.family != socket.AF_PACKET:
                    each.close()
                else:  # takes the kernel 10 ms, in which everybody else would stand still
                    self._loop.run_in_executor(None, each.close)

    @property
    def _current(self) -> GateTask:
        return self._open or self._outside

    # Questions for names.

    def _on_question(self, door: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, control, _, peer = door.recvmsg(dns.MOST_BYTES + 1, _CONTROL_BYTES)
            except OSError:
                return
            reply = self._answer(data)
            if reply is not None:
                # The packet's own address goes back with the answer: it comes from where the question went.
                with suppress(OSError):
                    door.sendmsg([reply], control, 0, peer)

    def _answer(self, data: bytes) -> bytes | None:
        task = self._open
        if task is None:
            self._outside.egress_log.counters["refused_while_shut"] += 1
            return dns.refused(data)
        if not task.meter.questions.take(self._loop.time()):
            if not task.egress_log.counters["too_many_questions"]:
                task.refuse(TOO_MANY_QUESTIONS, limit=task.meter.limits.dns_per_second)
            task.egress_log.counters["too_many_questions"] += 1
            return dns.refused(data)
        answer = dns.answer(data, self._names)
        if answer.why is None:
            task.log("dns", name=answer.name, type=answer.kind, answer=answer.code)
        else:
            task.refuse(answer.why, name=answer.name, type=answer.kind, answer=answer.code)
        return answer.reply

    async def _serve_questions(self, connection: socket.socket) -> None:
        """Questions over TCP, one after the other."""
        buffer = b""
        async with asyncio.timeout(HEAD_S):
            while True:
                while len(buffer) < 2 or len(buffer) < 2 + int.from_bytes(buffer[:2]):
                    got = await self._loop.sock_recv(connection, dns.MOST_BYTES)
                    if not got:
                        connection.close()
                        return
                    buffer += got
                    if int.from_bytes(buffer[:2]) > dns.MOST_BYTES:
                        raise Rejected(dns.QUESTION_MALFORMED, bytes=int.from_bytes(buffer[:2]))
                size = int.from_bytes(buffer[:2])
                reply, buffer = self._answer(buffer[2 : 2 + size]), buffer[2 + size :]
                if reply is None:
                    raise Rejected(dns.QUESTION_MALFORMED)
                await self._loop.sock_sendall(connection, len(reply).to_bytes(2) + reply)

    # Connections.

    def _on_connection(self, door: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            task = self._open
            # A handshake costs us time, a reset next to none: what is over the cap does not wait for its turn.
            if task is not None and not self._is_full(task) and (wait_s := task.meter.accepts.wait_s(self._loop.time())) > 0:
                self._rest(door, wait_s)
                return
            try:
                connection, _ = door.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:  # out of descriptors: the one that waits keeps waking us
                _logger.warning("the gate cannot accept: %s", error)
                self._rest(door, _EXHAUSTED_S)
                return
            connection.setblocking(False)
            if task is None:
                self._outside.egress_log.counters["refused_while_shut"] += 1
                reset(connection)
                continue
            self._admit(connection, door in self._dns_tcp, task)

    def _admit(self, connection: socket.socket, is_dns: bool, task: GateTask) -> None:
        if is_dns:
            if len(self._dns_connections) >= _MOST_DNS_CONNECTIONS:
                reset(connection)
                task.refuse(TOO_MANY_QUESTIONS, connections=_MOST_DNS_CONNECTIONS)
                return
            task.meter.accepts.take(self._loop.time())
            self._run(self._dns_connections, connection, None, task)
            return
        try:
            route = self._judge(connection, task)
        except OSError:  # it is gone already
            connection.close()
            return
        except Rejected as refusal:
            reset(connection)
            task.refuse(refusal.why, **refusal.facts)
            return
        task.meter.accepts.take(self._loop.time())
        self._run(self._connections, connection, route, task)

    def _is_full(self, task: GateTask) -> bool:
        return len(self._connections) >= task.meter.connections_most

    def _judge(self, connection: socket.socket, task: GateTask) -> Route:
        """What a connection is for, and whether there is room for it; its memory is taken. Raises Rejected, OSError."""
        address, port = connection.getsockname()[:2]
        name = self._names.name_at(address)
        if name is None:
            raise Rejected(NO_NAME, address=address, port=port)
        route = self._names.route(name, port)
        if route is None:
            raise Rejected(PORT_NOT_LISTED, name=name, port=port)
        if self._is_full(task):
            raise Rejected(TOO_MANY_CONNECTIONS, name=name, port=port, limit=task.meter.connections_most)
        if task.egress_log.is_broken or not self._budget.take(connection_bytes(route.rule)):
            raise Rejected(NO_MEMORY, name=name, port=port)
        return route

    async def _guarded(self, connection: socket.socket, route: Route | None, task: GateTask) -> None:
        """Serve one connection; its refusal, or what went wrong, is in the log."""
        try:
            if route is None:
                await self._serve_questions(connection)
            else:
                await serve_of(route.rule.kind)(connection, route, task)
        except Rejected as refusal:
            task.refuse(refusal.why, route, **refusal.facts)
        except (OSError, TimeoutError) as error:
            task.log("close", route, error=type(error).__name__)
        except Exception:
            _logger.exception("the gate's handler of %s", "questions" if route is None else route.label)
            task.log("alarm", route, error="internal")

    def _run(self, where: _Running, connection: socket.socket, route: Route | None, task: GateTask) -> None:
        serving = self._loop.create_task(self._guarded(connection, route, task))
        where[serving] = connection

        def ended(_: asyncio.Task[None]) -> None:
            # Not in the coroutine: one that is cancelled before its first step never gets to its end.
            del where[serving]
            reset(connection)
            if route is not None:
                self._budget.change(-connection_bytes(route.rule))

        serving.add_done_callback(ended)

    def _rest(self, door: socket.socket, seconds: float) -> None:
        """Accept nothing here for a while: what waits, waits in the kernel."""
        self._loop.remove_reader(door)

        def again() -> None:
            self._timers.pop(door, None)
            self._loop.add_reader(door, self._on_connection, door)

        self._timers[door] = self._loop.call_later(seconds, again)

    def _drain(self) -> None:
        for door in (*self._dns_tcp, *self._listeners):
            with suppress(OSError):
                while True:
                    reset(door.accept()[0])

    # Attempts that nobody took.

    def _on_attempt(self) -> None:
        if self._attempts is None:
            return
        task = self._current
        new, count = self._attempts.read()
        task.egress_log.counters["attempts"] += count
        for attempt in new:
            task.refuse(NO_LISTENER, **self._attempts.facts(attempt))
