"""A Docker engine of the test's own, which may be killed and restarted: data, state and socket in a folder of its own.

The machine's engine is asked for the image alone. Containers are told apart by the engine they are of: those of ours end with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab import PARENT, STORE, children, gone, pids

ANSWERS_S = 60.0


@dataclass
class OwnDocker:
    """One `dockerd`, with the `containerd` that it starts."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """What DOCKER_HOST must be to ask it."""
        return f"unix://{self.folder}/docker.sock"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        for stale in ("pid", "exec/containerd/containerd.pid"):  # a pid of before a kill may be another's, or a zombie's
            (self.folder / stale).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "dockerd", "--config-file", str(self.folder / "daemon.json"), "--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec"),
                    "--pidfile", str(self.folder / "pid"), "--host", self.host, "--bridge", "none", "--iptables=false",
                    "--userland-proxy=false",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until_s = time.monotonic() + ANSWERS_S
        while self.docker("version").returncode != 0:
            ended = self.process.poll()
            assert ended is None, f"dockerd ended with {ended}: {self._said()}"
            assert time.monotonic() < until_s, f"dockerd does not answer: {self._said()}"
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it as this signal does."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)

    def restart(self, number: int) -> None:
        """End it so and start it again."""
        self.stop(number)
        self.start()

    def docker(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        """The client, asking this one."""
        return subprocess.run(["docker", "--host", self.host, *args], capture_output=True, timeout=120, check=False)

    def take(self, image: str) -> None:
        """Have an image of the store here too, from the machine's engine."""
        digest = (STORE / "names" / image).read_text().strip().replace(":", "-")
        known = json.loads((STORE / digest / "image.json").read_text())["docker_id"]
        with subprocess.Popen(["docker", "save", known], stdout=subprocess.PIPE) as saved:
            subprocess.run(["docker", "--host", self.host, "load", "--quiet"], stdin=saved.stdout, stdout=subprocess.DEVNULL, check=True)
            if saved.stdout is not None:
                saved.stdout.close()
        assert saved.returncode == 0

    def left(self) -> list[str]:
        """Every container, and every process in one. A shim alone is the engine's own: its containerd was killed with it."""
        inside = [pid for shim in self._processes() if "containerd-shim" in _words(shim)[0] for pid in children(shim)]
        return [f"container {name}" for name in self.containers()] + [f"process {pid} in a container" for pid in inside]

    def containers(self) -> list[str]:
        """The names of all there are."""
        return self.docker("ps", "-a", "--format", "{{.Names}}").stdout.decode().split()

    def end(self) -> None:
        """Take everything of it away."""
        if self.process is not None and self.process.poll() is None:
            for name in self.containers():
                self.docker("rm", "-f", name)
            self.stop()
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            gone(pid)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split()[4]
            if place.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", place], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> list[int]:
        """Shims and what else has our folder among its words."""
        found = []
        for pid in pids():
            with suppress(OSError):
                if pid != os.getpid() and os.fsencode(f"{self.folder}/") in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def _said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]


def _words(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return [""]


@contextmanager
def own_docker(image: str) -> Iterator[OwnDocker]:
    """An engine with this image for the length of the body."""
    folder = PARENT / f"dockerd-{os.getpid()}"
    folder.mkdir(mode=0o711, parents=True)
    (folder / "daemon.json").write_text("{}")
    engine = OwnDocker(folder)
    try:
        engine.start()
        engine.take(image)
        yield engine
    finally:
        engine.end()
