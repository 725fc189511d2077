"""What an engine is to the broker: something that makes a box whose init waits, and takes it away again.

Both engines end in the same box, because everything that can be done late is done the same way for both, by `box.py`:
/dev, /tmp, the seccomp filter, limits of processes, the workspace, the read-back. An engine only brings
namespaces, the image's read-only root, /proc with its masks, and an init with no capability.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fumehood.broker.cgroups import Group
from fumehood.broker.ids import BOX_UID, RANGE
from fumehood.broker.teardown import Teardown
from fumehood.model import Frame

HOSTNAME = "box"
INIT_FOLDER = "/.fumehood"
UP_DEADLINE_S = 20.0

# What /proc must not show or let be written. Paths that a kernel lacks are skipped by the runtimes.
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What an engine is told. `folder` is the box's own, in the broker's private mount namespace; its range has `id_count` ids."""

    task: str
    runtime_id: str
    frame: Frame
    folder: Path
    id_base: int
    id_count: int = RANGE

    @property
    def host_uid(self) -> int:
        """The tool's uid as the host sees it (its gid has the same number)."""
        return self.id_base + BOX_UID

    @property
    def container(self) -> str:
        """The container's name."""
        return f"fumehood-{self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A box whose init has said it is up. `pidfd` is init's, verified; `group` the cgroup it is in."""

    control: socket.socket
    pid: int
    pidfd: int
    container: str
    group: Group
    facts: Mapping[str, Any]


class Engine(Protocol):
    """One way to make boxes."""

    name: str
    user_namespace: bool

    def risks(self) -> Mapping[str, str]:
        """Known holes of this engine's runtime that nothing here closes: id to one line (rule 17)."""
        ...

    def launch(self, spec: Spec) -> Launched:
        """Make the box. Raises BoxFailed or Refused, and then nothing of it is left."""
        ...

    def remove(self, spec: Spec, teardown: Teardown) -> None:
        """Take away everything of the box, whose init has ended or is ended here. Idempotent; goes on with what was left before."""
        ...
