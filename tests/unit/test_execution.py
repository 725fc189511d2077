"""Running work: real pipes and real processes, in a box that is only pretended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from fakes import call
from fumehood import execution
from fumehood.execution import ENVIRONMENT, Command, Exchange, ServerStreams
from fumehood.faults import ExchangeFailed
from fumehood.model import Decision, Fresh, Grant, Image, Limits, Outcome, Plan, Result, Usage, Verdict, Verified
from fumehood.ports import Exited
from fumehood.reasons import Reason
from fumehood.sandbox import plan as planned
from fumehood.screening.known import KnownSecrets

T = TypeVar("T")


@dataclass
class PlainProcessBox:
    """A process of this host in a box's place: started, waited for and killed as the broker would, confined by nothing."""

    engine: str = "none"
    container: str = "none"
    process: subprocess.Popen[bytes] | None = None
    killed: Reason | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)

    async def start(self, argv: tuple[str, ...], env: Mapping[str, str], stdio: tuple[int, int, int]) -> None:
        self.env = dict(env)
        self.process = subprocess.Popen(argv, stdin=stdio[0], stdout=stdio[1], stderr=stdio[2], env=dict(env), cwd="/")

    async def wait(self) -> Exited:
        assert self.process is not None
        code = await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        if self.killed is not None:
            return Exited(killed=self.killed, signal=9)
        return Exited(exit_code=code) if code >= 0 else Exited(signal=-code)

    async def kill(self, reason: Reason) -> None:
        self.killed = self.killed or reason
        if self.process is not None:
            self.process.kill()

    async def freeze(self, seconds: float) -> Usage:
        raise NotImplementedError(seconds)

    async def park(self, seconds: float) -> None:
        raise NotImplementedError(seconds)

    async def resume(self) -> None:
        raise NotImplementedError

    thaw = resume

    async def put(self, source: int, path: str) -> None:
        self.copied.append(f"put {path} {os.read(source, 100).decode()}")

    async def get(self, path: str, target: int, most_bytes: int | None = None) -> None:  # noqa: ARG002 - as the real one
        self.copied.append(f"get {path}")
        os.write(target, b"got")


def plan(**limits: Any) -> Plan:
    request = call(tool=None)
    request = replace(request, profile=replace(request.profile, limits=Limits(**limits), environment=(("OWN", "1"),)))
    verified = Verified(call=request, image=Image(name="python", digest="sha256:" + "0" * 64, docker_id=None))
    made = planned(Fresh(grant=Grant(verdict=Verdict(verified=verified, decision=Decision.ALLOW, rule="test"))))
    assert isinstance(made, Plan)
    return made


def run(work: execution.Work, box: PlainProcessBox | None = None, **limits: Any) -> Outcome:
    async def bounded() -> Outcome:
        with anyio.fail_after(15):
            return await execution.run(box or PlainProcessBox(), work, plan(**limits), KnownSecrets())

    before = len(os.listdir("/proc/self/fd"))
    outcome = anyio.run(bounded)
    assert len(os.listdir("/proc/self/fd")) <= before, "a pipe was left open"
    return outcome


def python(code: str, **options: Any) -> Command:
    return Command((sys.executable, "-c", code), **options)


# ---- commands --------------------------------------------------------------------------------------------------------


def test_a_command_that_ends_well() -> None:
    outcome = run(python("import sys; print('out'); print('err', file=sys.stderr)"))
    assert (outcome.result, outcome.exit_code, outcome.stdout, outcome.stderr) == (Result.OK, 0, b"out\n", b"err\n")
    assert not outcome.stdout_truncated


@pytest.mark.parametrize(
    ("code", "reason", "status", "signal"),
    [("raise SystemExit(3)", Reason.EXIT_NONZERO, 3, None), ("import os; os.kill(os.getpid(), 15)", Reason.SIGNALLED, None, 15)],
)
def test_a_command_that_ends_badly(code: str, reason: Reason, status: int | None, signal: int | None) -> None:
    outcome = run(python(code))
    assert (outcome.result, outcome.reason, outcome.exit_code, outcome.signal) == (Result.FAILED, reason, status, signal)


def test_the_environment_is_ours_and_the_profiles_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    box = PlainProcessBox()
    run(python("pass"), box)
    assert box.env == {**ENVIRONMENT, "OWN": "1"}


def test_a_flood_is_cut_off_and_the_tool_lives() -> None:
    outcome = run(python("import sys; sys.stdout.write('x' * 8000); sys.exit(7)"), output_bytes=1000)
    assert (outcome.exit_code, len(outcome.stdout), outcome.stdout_truncated, outcome.stdout_total_bytes) == (7, 1000, True, 8000)


def test_sixteen_times_the_limit_exactly_lives_and_one_byte_more_is_killed() -> None:
    lives = run(python("import sys; sys.stdout.write('x' * 16000)"), output_bytes=1000)
    assert lives.result is Result.OK
    killed = run(python("import sys, time; sys.stderr.write('x' * 16001); sys.stderr.flush(); time.sleep(60)"), output_bytes=1000)
    assert (killed.result, killed.reason, len(killed.stderr)) == (Result.KILLED, Reason.OUTPUT, 1000)


def test_each_stream_has_its_own_limit() -> None:
    code = "import sys; sys.stdout.write('x' * 10000); sys.stderr.write('y' * 500)"
    outcome = run(python(code), output_bytes=1000)
    assert (outcome.stdout_truncated, outcome.stderr_truncated, outcome.result) == (True, False, Result.OK)


def test_silence_is_killed_and_chatter_is_not() -> None:
    assert run(python("import time; time.sleep(60)"), idle_s=0.3).reason is Reason.IDLE
    chatter = "import time\nfor _ in range(8): print('.', flush=True); time.sleep(0.15)"
    assert run(python(chatter), idle_s=1.0).result is Result.OK


def test_input_passes_through_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"z" * 300_000)
    with path.open("rb") as source:
        outcome = run(python("import sys; print(len(sys.stdin.read()))", stdin=source.fileno()))
    assert outcome.stdout == b"300000\n"


def test_a_tool_that_does_not_read_its_input_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x" * 4096)
    os.close(writing)
    outcome = run(python("pass", stdin=reading))
    os.close(reading)
    assert outcome.result is Result.OK


def test_input_that_never_ends_does_not_hold_the_call() -> None:
    reading, writing = os.pipe()
    outcome = run(python("pass", stdin=reading))
    os.close(reading)
    os.close(writing)
    assert outcome.result is Result.OK


def test_no_input_is_an_empty_one() -> None:
    assert run(python("import sys; print(repr(sys.stdin.read()))")).stdout == b"''\n"


def test_the_streams_are_no_terminals() -> None:
    assert run(python("import os; print([os.isatty(fd) for fd in range(3)])")).stdout == b"[False, False, False]\n"


def test_output_is_passed_on_as_it_comes_within_its_limit() -> None:
    heard: list[tuple[str, bytes]] = []
    run(python("print('x' * 5000)", on_output=lambda name, chunk: heard.append((name, chunk))), output_bytes=1000)
    assert b"".join(chunk for _, chunk in heard) == b"x" * 1000
    assert {name for name, _ in heard} == {"stdout"}


def test_files_go_in_before_and_come_out_after_a_good_end_only(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("content")
    for code, copied in (("pass", ["put a content", "get b"]), ("raise SystemExit(1)", ["put a content"])):
        box = PlainProcessBox()
        source, target = os.open(tmp_path / "in", os.O_RDONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        run(python(code, put=((source, "a"),), get=(("b", target),)), box)
        assert box.copied == copied
        os.close(source)
        os.close(target)


# ---- conversations ---------------------------------------------------------------------------------------------------

ECHO = "import sys\nfor line in sys.stdin: sys.stdout.write('you said ' + line); sys.stdout.flush()"


def server(code: str, converse: Callable[[ServerStreams], Awaitable[Any]]) -> Exchange:
    return Exchange((sys.executable, "-c", code), converse)


async def hello(streams: ServerStreams) -> bytes:
    await streams.send(b"hello")
    return await streams.receive()


def test_a_conversation_gives_its_value_and_ends_the_server() -> None:
    outcome = run(server(ECHO, hello))
    assert (outcome.result, outcome.value) == (Result.OK, b"you said hello")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('no licence')", Reason.SERVER_DIED),
        ("import sys; sys.stdout.write('half a line'); sys.stdout.flush()", Reason.SERVER_DIED),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", Reason.RESULT_TOO_LARGE),
        ("import sys; sys.stdin.readline(); sys.stdout.write('x' * 70_000 + '\\n'); sys.stdout.flush(); sys.stdin.read()", Reason.RESULT_TOO_LARGE),
    ],
)
def test_a_server_that_goes_wrong_is_a_typed_failure(code: str, reason: Reason) -> None:
    outcome = run(server(code, hello), result_bytes=1024)
    assert (outcome.result, outcome.reason) == (Result.FAILED, reason)


TWO_LINES = "import sys; sys.stdin.readline(); sys.stdout.write('x' * {size} + '\\nnext\\n'); sys.stdout.flush(); sys.stdin.read()"


@pytest.mark.parametrize("size", [70_000, 300_000])
def test_a_line_that_was_too_long_is_dropped_whole_and_the_next_one_is_read(size: int) -> None:
    async def patient(streams: execution.Streams) -> list[bytes]:
        await streams.send(b"go")
        with pytest.raises(ExchangeFailed):
            await streams.receive()
        return [await streams.receive()]

    outcome = run(server(TWO_LINES.format(size=size), patient), result_bytes=1024)
    assert (outcome.result, outcome.value) == (Result.OK, [b"next"])


@pytest.mark.parametrize("size", [500, 70_000, 300_000])
def test_a_long_line_comes_as_sealed_memory_and_no_longer_one_than_asked_for(size: int) -> None:
    async def long(streams: execution.Streams) -> tuple[int, bytes]:
        await streams.send(b"go")
        line = await streams.receive_long(300_000)
        if isinstance(line, bytes):
            return len(line), await streams.receive()
        with line:
            assert os.pread(line.fd, 2**20, 0) == b"x" * line.size
            with pytest.raises(OSError, match="not permitted"):
                os.write(line.fd, b"more")
            return line.size, await streams.receive_long(10)

    outcome = run(server(TWO_LINES.format(size=size), long), result_bytes=1024)
    assert (outcome.result, outcome.value) == (Result.OK, (size, b"next"))


def test_a_line_longer_than_what_is_kept_is_dropped_too() -> None:
    async def long(streams: execution.Streams) -> bytes:
        await streams.send(b"go")
        with pytest.raises(ExchangeFailed) as caught:
            await streams.receive_long(200_000)
        assert caught.value.reason is Reason.RESULT_TOO_LARGE
        return await streams.receive()

    outcome = run(server(TWO_LINES.format(size=300_000), long), result_bytes=1024)
    assert (outcome.result, outcome.value) == (Result.OK, b"next")


def test_a_dead_servers_last_words_are_in_the_detail() -> None:
    async def patient(streams: ServerStreams) -> bytes:
        return await streams.receive()

    outcome = run(server("import sys; sys.exit('no licence')", patient))
    assert outcome.detail.endswith("its stderr ends: no licence")


def test_what_the_conversation_refuses_is_the_reason() -> None:
    async def picky(streams: ServerStreams) -> bytes:
        await hello(streams)
        raise ExchangeFailed(Reason.SERVER_GARBAGE, "not the protocol")

    outcome = run(server(ECHO, picky))
    assert (outcome.result, outcome.reason, outcome.detail) == (Result.FAILED, Reason.SERVER_GARBAGE, "not the protocol")


def test_a_server_killed_by_its_limits_is_killed_and_not_failed() -> None:
    box = PlainProcessBox()

    async def until_killed(streams: ServerStreams) -> bytes:
        await box.kill(Reason.WALL)
        return await streams.receive()

    outcome = run(server(ECHO, until_killed), box)
    assert (outcome.result, outcome.reason) == (Result.KILLED, Reason.WALL)


def test_a_servers_flood_on_stderr_is_killed() -> None:
    async def patient(streams: ServerStreams) -> bytes:
        return await streams.receive()

    outcome = run(server("import sys\nwhile True: sys.stderr.write('x' * 65536)", patient), output_bytes=1000)
    assert (outcome.result, outcome.reason) == (Result.KILLED, Reason.OUTPUT)
