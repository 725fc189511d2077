"""Boxes by a Docker engine on this host, through its API.

Nothing of a call is in the create options, because they stay on the engine's disk and in `inspect`: an image, limits, and an init that
connects once to a socket in a root-only folder. Without userns-remap the engine has one user namespace for all, so each live
box runs as a uid of its own, from its own range, and the record says `userns: none`. Docker's own seccomp profile stays off because
init installs ours on itself before anything else can run, and the read-back proves it.

The engine must run on this kernel: a box whose init is not a process that we can see is refused (Docker Desktop, a
remote DOCKER_HOST). Source: Docker Engine API 1.41.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from fumehood.broker import processes
from fumehood.broker.cgroups import Group, Trees
from fumehood.broker.control import receive_report
from fumehood.broker.engines import HOSTNAME, INIT_FOLDER, MASKED, READ_ONLY, UP_DEADLINE_S, Launched, Spec
from fumehood.broker.engines.docker_facts import local_socket
from fumehood.broker.teardown import Teardown
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason
from fumehood.state import PREFIX

_GONE_DEADLINE_S = 5.0
_ASK_AGAIN_S = 0.02
_ANSWER_S = 30
_PEER = struct.Struct("=iii")


def container_config(spec: Spec, control_folder: Path) -> dict[str, Any]:
    """The body of POST /containers/create: pure, compared whole in tests."""
    frame = spec.frame
    return {
        "Image": frame.docker_image,
        "Entrypoint": [f"{INIT_FOLDER}/init", f"{INIT_FOLDER}/s"],
        "Cmd": [],
        "Env": [],
        "User": f"{spec.host_uid}:{spec.host_uid}",
        "Hostname": HOSTNAME,
        "WorkingDir": "/",
        "Tty": False,
        "OpenStdin": False,
        "NetworkDisabled": False,
        "Labels": {PREFIX: spec.runtime_id, f"{PREFIX}.task": spec.task},
        # An image's HEALTHCHECK ran before the seccomp filter was on.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Binds": [f"{control_folder}:{INIT_FOLDER}:ro"],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", "seccomp=unconfined"],
            "Privileged": False,
            "Init": False,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "OomScoreAdj": 0,
            "Memory": frame.memory_bytes,
            "MemorySwap": frame.memory_bytes,
            "PidsLimit": frame.pids + 1,
            "CpuPeriod": 100_000,
            "CpuQuota": max(1000, round(frame.cpu * 100_000)),
            "MaskedPaths": list(MASKED),
            "ReadonlyPaths": list(READ_ONLY),
        },
    }


@dataclass(slots=True)
class _Live:
    folder: Path
    container_id: str | None = None
    pidfd: int | None = None
    group: Group | None = None


class DockerEngine:
    """Boxes by the Docker engine behind one local socket. `folder` holds the control sockets, reachable only by root."""

    name = "docker"
    user_namespace = False

    def __init__(self, *, url: str, trees: Trees, init: Path, folder: Path, risks: Mapping[str, str]) -> None:
        self._api = connect(url)
        self._trees = trees
        self._init = init
        self._folder = folder
        self._risks = risks
        self._live: dict[str, _Live] = {}

    def risks(self) -> Mapping[str, str]:
        """Known holes of the runtime that this engine drives."""
        return self._risks

    def launch(self, spec: Spec) -> Launched:
        """Create and start the container, and take its init's one connection."""
        if spec.frame.docker_image is None:
            raise BoxFailed(
                Reason.IMAGE_MISSING, "the image is not in this Docker engine",
                remedy="Run `fumehood image build` again while the engine answers.",
            )  # fmt: skip
        live = _Live(folder=self._folder / spec.task)
        self._live[spec.task] = live
        live.folder.mkdir(mode=0o755)
        os.link(self._init, live.folder / "init")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            _bind(listener, live.folder)
            (live.folder / "s").chmod(0o666)  # its folder is reachable by root alone, and by this one box
            listener.listen(1)
            try:
                created = self._api.create_container_from_config(container_config(spec, live.folder), spec.container)
                live.container_id = created["Id"]
                (self._folder / f"{spec.task}.id").write_text(live.container_id)
                self._api.start(live.container_id)
            except ImageNotFound as error:
                raise BoxFailed(Reason.IMAGE_MISSING, "the image is gone from the Docker engine") from error
            except (APIError, DockerException, OSError) as error:
                raise BoxFailed(Reason.BOX_FAILED, f"docker: {_words(error)}") from error
            control, pid = self._accept(listener, live, spec)
        try:
            report, _ = receive_report(control, UP_DEADLINE_S)
            if report.kind != "U":
                raise BoxFailed(Reason.BOX_FAILED, f"init said `{report.kind}` first")
            container_id = live.container_id
            live.pidfd = processes.verified_pidfd(pid, lambda pid: _is_init_in(pid, container_id), "the box's init")
            live.group = Group.of_process(self._trees, pid)
        except BaseException:
            control.close()
            raise
        return Launched(
            control=control, pid=pid, pidfd=live.pidfd, container=container_id, group=live.group,
            facts={"runtime": "docker", "userns": "none"},
        )  # fmt: skip

    def remove(self, spec: Spec, teardown: Teardown) -> None:
        """Remove the container with its volumes, check that the engine forgot it, and remove the socket's folder."""
        live = self._live.get(spec.task)
        if live is None:
            return
        if (pidfd := live.pidfd) is not None:
            live.pidfd = None
            teardown.take("init", lambda: processes.end(pidfd, _GONE_DEADLINE_S))
        # A create whose answer was lost is found by its name.
        gone = teardown.take("container", lambda: remove_container(self._api, live.container_id or spec.container))
        if live.group is not None:
            teardown.take("cgroup", live.group.remove)
        else:  # no init of it was ever seen: an engine that died while it made the container may have left one
            ids = range(spec.id_base, spec.id_base + spec.id_count)
            teardown.take("processes", lambda: processes.end_of_ids(ids, _GONE_DEADLINE_S))
        if gone:  # else the notes stay, for the sweeper to find the container by
            shutil.rmtree(live.folder, ignore_errors=True)
            (self._folder / f"{spec.task}.id").unlink(missing_ok=True)
        if teardown.is_clean:
            del self._live[spec.task]

    def _accept(self, listener: socket.socket, live: _Live, spec: Spec) -> tuple[socket.socket, int]:
        """The one connection, from the uid that this box alone has. The socket's name goes before anything else runs."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        if not poll.poll(UP_DEADLINE_S * 1000):
            raise BoxFailed(
                Reason.ENGINE_UNAVAILABLE, "the container's init never reached this host",
                remedy="Use a Docker engine that runs on this kernel (not Docker Desktop, not a remote one).",
            )  # fmt: skip
        control, _ = listener.accept()
        (live.folder / "s").unlink()
        pid, uid, _ = _PEER.unpack(control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != spec.host_uid:
            control.close()
            raise BoxFailed(Reason.READBACK_MISMATCH, f"uid {uid} connected to the control socket of uid {spec.host_uid}")
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return control, pid


def _bind(listener: socket.socket, folder: Path) -> None:
    """Name the socket through a descriptor of its folder: sun_path has 108 bytes, and a state folder may lie deep."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/s")
    finally:
        os.close(directory)


def connect(url: str) -> docker.APIClient:
    """A client of a local engine. Raises BoxFailed(ENGINE_UNAVAILABLE) for a remote one or one that does not answer."""
    local_socket(url)
    try:
        return docker.APIClient(base_url=url, version="1.41", timeout=_ANSWER_S)
    except DockerException as error:
        raise BoxFailed(Reason.ENGINE_UNAVAILABLE, f"docker: {_words(error)}") from error


def remove_container(api: docker.APIClient, container: str) -> bool:
    """Remove by id or name, with volumes; True when the engine no longer knows it.

    Asked until it is gone: an engine that is told to kill a box which ends by itself at that moment answers with a conflict, and
    one that still unmounts answers with an error. In both cases it would keep a dead container for good.
    """
    deadline = time.monotonic() + _GONE_DEADLINE_S
    while True:
        try:
            api.remove_container(container, force=True, v=True)
        except NotFound:
            return True
        except APIError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_ASK_AGAIN_S)
        except (DockerException, OSError):
            return False
        else:
            return True


def _is_init_in(pid: int, container_id: str) -> bool:
    """The process is PID 1 of its namespace and in this container's cgroup."""
    if processes.status_fields(pid)["NSpid"].split()[-1] != "1":
        return False
    return container_id in Path(f"/proc/{pid}/cgroup").read_text()


def _words(error: Exception) -> str:
    explanation = getattr(error, "explanation", None)
    return " ".join(str(explanation or error).split())[:400]
