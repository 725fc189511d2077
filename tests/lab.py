"""A state folder of the tests' own, the command line on it, and what may not be left of it on the host.

Everything of one session lies below one root-owned folder outside /tmp (configuration is trusted only there), so that other
runtimes on this host are neither seen nor disturbed. The image store alone is shared, read-only, through a link.

What is ours is told apart from what is others' by the runtime id: the kernel (inotify) tells of every runtime that begins in our
state folder, and each cgroup, container, process and id range that names one of these is ours to answer for.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fumehood
from fumehood.broker.ids import RANGE

# Without it nobody but the owner may call: over HTTP, nobody.
SENDERS = "policy: {shipped: [owner, senders, taint]}\n"
PARENT = Path("/var/lib/fumehood-tests")
STORE = Path("/var/lib/fumehood/images")
FUMEHOOD = Path(sys.executable).parent / "fumehood"
IDS = 2**29  # where the range that /etc/subuid reserves for boxes begins
RISKS = ("cve-2025-31133", "cve-2025-52565", "cve-2025-52881")
_IN_CREATE = 0x100
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Done:
    """One finished `fumehood` command."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def said(self) -> Any:
        """The JSON that it printed."""
        assert self.stdout, f"exit {self.status}, no output; stderr: {self.stderr}"
        return json.loads(self.stdout)

    @property
    def told(self) -> str:
        """The stdout of the tool itself, of a `run --json`."""
        text = self.said["stdout"]
        assert isinstance(text, str), text
        return text

    def one_clear_line(self) -> str:
        """The one line on stderr, which is no traceback."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("fumehood: "), self.stderr
        return lines[0]


@dataclass
class Live:
    """A `fumehood run` whose tool runs. Its stdout is passed through, so the tool can say where it is."""

    process: subprocess.Popen[str]

    def line(self, timeout_s: float = 20) -> str:
        """The next line that the tool writes."""
        assert self.process.stdout is not None
        with _alarm(timeout_s):
            line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"ended early: {self.end()}")
        return line.rstrip("\n")

    def say(self, text: str) -> None:
        """Write a line to the tool."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self, timeout_s: float = 30) -> Done:
        """Close its input and wait for its end."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=timeout_s)
        return Done(self.process.returncode, out, err, time.monotonic() - began)

    @property
    def worker(self) -> int:
        """The process that was started: it became the worker."""
        return self.process.pid

    def ours(self) -> dict[str, int]:
        """The pids of the three processes."""
        return ours(self.worker)


@dataclass
class Lab:
    """One session's folder."""

    folder: Path
    inotify: int
    runtimes: set[str] = field(default_factory=set)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def cwd(self) -> Path:
        """Where a command starts."""
        return self.folder

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a command: nothing of the developer's."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "FUMEHOOD_STATE": str(self.state),
            "FUMEHOOD_CONFIG": str(self.folder / "fumehood.yaml"),
            "PYTHONPATH": str(Path(fumehood.__file__).parents[1]),  # what the tests import is what they run
        }

    def as_user(self, *argv: str) -> list[str]:
        """The command line that runs `argv` as who uses the lab: root."""
        return [*argv]

    def profile(self, name: str, text: str = "") -> str:
        """A profile that extends `python`; its path, which is what its records call it."""
        path = self.folder / "profiles" / f"{name}.yaml"
        path.write_text("extends: python\n" + text)
        return str(path)

    def workspace(self, name: str) -> Path:
        """A fresh directory that can be given to a box."""
        path = self.folder / "workspaces" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def fumehood(
        self, *args: str, input: str | None = None, timeout: float = 60, env: Mapping[str, str] | None = None,  # noqa: A002
        cwd: Path | None = None, program: Sequence[str] = (),
    ) -> Done:  # fmt: skip
        """Run the command line to its end. `program` replaces the `fumehood` script."""
        began = time.monotonic()
        done = subprocess.run(
            [*(program or [str(FUMEHOOD)]), *args], input=input if input is not None else "", capture_output=True,
            text=True, timeout=timeout, env={**self.env, **(env or {})}, cwd=cwd or self.cwd, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def run(
        self, engine: str, *command: str, profile: str = "python", workspace: Path | None = None, **options: Any
    ) -> Done:
        """`fumehood run --json`."""
        given = [] if workspace is None else ["--workspace", str(workspace)]
        return self.fumehood(
            "run", "--profile", profile, "--engine", engine, "--json", *given, "--", *command, **options
        )

    def python(self, engine: str, code: str, **options: Any) -> Done:
        """`run` of a Python program."""
        return self.run(engine, "python3", "-c", code, **options)

    def attacked(self, patch: str, engine: str, *command: str, **options: Any) -> Done:
        """`run` where a part of ours was taken over: `patch` is Python that runs before the command line does."""
        program = f"{patch}\nfrom fumehood.cli.main import main\nimport sys\nsys.argv[0] = 'fumehood'\nmain()"
        return self.run(engine, *command, program=[sys.executable, "-c", program], **options)

    @contextmanager
    def live(
        self, engine: str, code: str, *, profile: str = "python", workspace: Path | None = None
    ) -> Iterator[Live]:
        """A tool that runs for the length of the body. What is left of it afterwards is killed."""
        given = [] if workspace is None else ["--workspace", str(workspace)]
        argv = [str(FUMEHOOD), "run", "--profile", profile, "--engine", engine, *given, "--", "python3", "-uc", code]
        process = subprocess.Popen(
            self.as_user(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.env, cwd=self.cwd,
        )  # fmt: skip
        try:
            yield Live(process)
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=30)

    def record(self, column: str, value: str) -> dict[str, Any]:
        """The newest record with this value, straight from the database, while no ledger runs."""
        query = f"SELECT * FROM records WHERE {column} = ? ORDER BY task DESC LIMIT 1"  # noqa: S608 - a test's own words
        with sqlite3.connect(f"file:{self.state}/ledger/ledger.db?mode=ro&immutable=1", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            row = connection.execute(query, (value,)).fetchone()
        assert row is not None, f"no record has {column} {value}"
        return dict(row)

    def seen_runtimes(self) -> set[str]:
        """The id of every runtime that began in our state folder."""
        try:
            while data := os.read(self.inotify, 65536):
                offset = 0
                while offset < len(data):
                    _, _, _, length = struct.unpack_from("iIII", data, offset)
                    self.runtimes.add(data[offset + 16 : offset + 16 + length].rstrip(b"\0").decode())
                    offset += 16 + length
        except BlockingIOError:
            pass
        return self.runtimes

    def boxed(self, marker: str) -> int:
        """The pid of the one process in a box of this lab's (others' may run the same program) whose arguments hold the marker."""
        slots = [int(path.name) for path in (self.state / "ids").iterdir()]
        return boxed(marker, [range(IDS + slot * RANGE, IDS + (slot + 1) * RANGE) for slot in slots])

    def left(self) -> list[str]:
        """Everything on this host that is ours and should be gone."""
        runtimes = self.seen_runtimes()
        found = [str(path) for name in ("run", "ids") for path in (self.state / name).iterdir()]
        found += [str(path) for path in (self.state / "locks").iterdir() if path.name != "queue"]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        for tree, groups, _ in os.walk("/sys/fs/cgroup"):  # which others change meanwhile, and os.walk does not mind
            if tree.endswith("/fumehood"):
                found += [f"{tree}/{name}" for name in groups if name.split(".")[0] in runtimes]
        found += [f"container {name}" for name, runtime in containers() if runtime in runtimes]
        found += [f"process {pid}: {text}" for pid, text in self._processes(runtimes)]
        return found

    def _processes(self, runtimes: set[str]) -> Iterator[tuple[int, str]]:
        folder = os.fsencode(self.folder)
        for pid in pids():
            try:
                told = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                groups = Path(f"/proc/{pid}/cgroup").read_text()
            except OSError:
                continue
            if pid != os.getpid() and folder in told:
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            elif any(runtime in groups for runtime in runtimes):
                yield pid, groups.splitlines()[0]


def new_folder(mark: str, *names: str) -> Path:
    """A folder of this process's with these folders in it, and a configuration that accepts the engines' risks."""
    PARENT.mkdir(mode=0o711, exist_ok=True)
    PARENT.chmod(0o711)
    folder = PARENT / f"{os.getpid()}{mark}"
    for name in ("", *names):
        (folder / name).mkdir(mode=0o711)
    (folder / "fumehood.yaml").write_text(f"accept_risk: [{', '.join(RISKS)}]\n{SENDERS}")
    return folder


def open_lab(mark: str = "") -> Lab:
    """Make the session's folder, or one of a file's own with a `mark`."""
    folder = new_folder(mark, "home", "profiles", "workspaces", "state", "state/run", "state/ids", "state/locks")
    for name in ("ids", "locks"):
        (folder / "state" / name).chmod(0o700)
    (folder / "state" / "images").symlink_to(STORE)
    inotify = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    assert inotify >= 0
    assert _libc.inotify_add_watch(inotify, os.fsencode(folder / "state" / "run"), _IN_CREATE) >= 0
    return Lab(folder, inotify)


def close_lab(lab: Lab) -> None:
    """Remove the session's folder."""
    os.close(lab.inotify)
    shutil.rmtree(lab.folder, ignore_errors=True)


def needs(*images: str) -> None:
    """Skip where no real box can be made: without root, the command or one of these images."""
    if os.geteuid() != 0:
        pytest.skip("needs root: real boxes")
    missing = [f"the image `{image}`" for image in images if not (STORE / "names" / image).exists()]
    if not FUMEHOOD.exists():
        missing.insert(0, "the command")
    if missing:
        pytest.skip(f"needs ./scripts/setup: {', '.join(missing)}")


def needs_oci() -> None:
    """Skip where no OCI runtime is installed."""
    if not (shutil.which("crun") or shutil.which("runc")):
        pytest.skip("no OCI runtime is installed")


@contextmanager
def lab_for(image: str, mark: str = "") -> Iterator[Lab]:
    """A lab for the body, or a skip where it or the image cannot be had. `mark` tells the labs of one session apart."""
    needs(image)
    lab = open_lab(mark)
    try:
        yield lab
    finally:
        close_lab(lab)


def docker(*args: str) -> str:
    """A `docker` command that must succeed."""
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def docker_answers() -> bool:
    """Whether a Docker engine answers on this host."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False).returncode == 0


def containers() -> list[tuple[str, str]]:
    """Name and `fumehood` label of every container that has one."""
    if shutil.which("docker") is None:
        return []
    done = subprocess.run(
        ["docker", "ps", "-a", "--no-trunc", "--filter", "label=fumehood", "--format", '{{.Names}} {{.Label "fumehood"}}'],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return [(name, runtime) for name, _, runtime in (line.partition(" ") for line in done.stdout.splitlines())]


def pids() -> list[int]:
    """Every process of the host."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """The child processes of all of a process's threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """A process's children and theirs, parents first."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def ours(worker: int) -> dict[str, int]:
    """The pids of root's three processes, told apart by their uids."""
    found = {"worker": worker}
    for pid in children(worker):
        found["broker" if os.stat(f"/proc/{pid}").st_uid == 0 else "ledger"] = pid
    return found


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def with_marker(marker: str) -> list[int]:
    """Every process that has the marker among its arguments, this one and the command line's own excepted."""
    found = []
    for pid in pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if pid != os.getpid() and marker.encode() in words and b"run" not in words:
            found.append(pid)
    return found


def boxed(marker: str, ids: Iterable[range]) -> int:
    """The host's pid of the one process with a uid of these ranges whose arguments hold the marker."""
    found = []
    for pid in pids():
        try:
            uid = int(status(pid)["Uid"].split()[0])
            if any(uid in each for each in ids) and marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except (OSError, KeyError):
            continue
    (only,) = found
    return only


def memory_holds(pid: int, needle: bytes) -> bool:
    """Whether any readable page of a process has these bytes."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for low, high in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) r", maps, re.MULTILINE):
            begin, end = int(low, 16), int(high, 16)
            try:
                memory.seek(begin)
                if needle in memory.read(end - begin):
                    return True
            except (OSError, ValueError, OverflowError):
                continue  # vvar and the like
    return False


def gone(pid: int, timeout_s: float = 10) -> bool:
    """Wait until a process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    import select

    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


@contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"nothing within {timeout_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
