"""What a Docker engine says of itself, asked without the `docker` package.

Choosing an engine must not cost what using one does: the package takes 0.4 s to import, and on a host whose Docker is not used at
all every call would pay that. Two answers over the engine's own socket, HTTP/1.0, so that the end of the answer is the end of the
stream. The peer is root's own daemon. Source: Docker Engine API 1.41, GET /info and /version.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from fumehood.faults import BoxFailed
from fumehood.reasons import Reason

_DEADLINE_S = 10.0
_MOST_BYTES = 4 * 2**20


def engine_facts(url: str) -> dict[str, str]:
    """Version, default runtime and its revision. Raises BoxFailed for an engine that does not answer or is not on this kernel."""
    path = local_socket(url)
    try:
        info, version = _get(path, "/v1.41/info"), _get(path, "/v1.41/version")
    except (OSError, ValueError) as error:
        raise BoxFailed(Reason.ENGINE_UNAVAILABLE, f"no Docker engine answers at {url}") from error
    if "docker desktop" in str(info.get("OperatingSystem", "")).lower():
        raise BoxFailed(
            Reason.ENGINE_UNAVAILABLE, "Docker Desktop runs its boxes in a virtual machine, where they cannot be checked",
            remedy="Use engine: oci, or Docker's engine on this host.",
        )  # fmt: skip
    if any("name=userns" in option for option in info.get("SecurityOptions") or ()):
        raise BoxFailed(
            Reason.ENGINE_UNAVAILABLE, "this engine maps every container to one shared id range (userns-remap)",
            remedy="Use engine: oci, which gives each box a range of its own.",
        )  # fmt: skip
    components = {part["Name"]: part for part in version.get("Components", [])}
    return {
        "version": str(version.get("Version")),
        "default_runtime": str(info.get("DefaultRuntime")),
        "runc": str(components.get("runc", {}).get("Version", "")),
    }


def local_socket(url: str) -> Path:
    """The engine's socket on this host. Raises BoxFailed(ENGINE_UNAVAILABLE) for an engine elsewhere."""
    if not url.startswith("unix://"):
        raise BoxFailed(
            Reason.ENGINE_UNAVAILABLE, f"the Docker engine at {url} is not on this host, so its boxes cannot be checked",
            remedy="Unset DOCKER_HOST or use engine: oci.",
        )  # fmt: skip
    return Path(url.removeprefix("unix://"))


def _get(path: Path, resource: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.settimeout(_DEADLINE_S)
        engine.connect(str(path))
        engine.sendall(f"GET {resource} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        answer = b""
        while chunk := engine.recv(65_536):
            answer += chunk
            if len(answer) > _MOST_BYTES:
                raise ValueError("the answer is too long")
    head, _, body = answer.partition(b"\r\n\r\n")
    found = json.loads(body)
    if b" 200 " not in head.split(b"\r\n", 1)[0] or not isinstance(found, dict):
        raise ValueError("not an answer of a Docker engine")
    return found
