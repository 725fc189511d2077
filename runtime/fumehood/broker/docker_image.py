"""Images in a Docker engine: a root goes in as one layer, and nothing else does.

Imported roots carry no configuration at all: no HEALTHCHECK (it would run before our init), no VOLUME (it would be a
writable mount under a read-only root), no ENTRYPOINT, ENV or LABEL (rule 13). The engine is root's, so only commands of
root reach this.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

_TIMEOUT_S = 300


class DockerImages:
    """One answering engine."""

    def __init__(self, client: Any) -> None:
        """Use a connected `docker.DockerClient`."""
        self._client = client

    def has(self, docker_id: str) -> bool:
        """Whether the engine still has this image."""
        from docker.errors import ImageNotFound

        try:
            self._client.api.inspect_image(docker_id)
        except ImageNotFound:
            return False
        return True

    def load(self, tar: Iterable[bytes], repository: str, tag: str) -> str:
        """Import a root tar; the id of the image."""
        from docker.errors import DockerException

        try:
            said = self._client.api.import_image_from_stream(tar, repository=repository, tag=tag)
        except DockerException as error:
            raise FumehoodError(
                Reason.IMAGE_BUILD_FAILED, f"the Docker engine did not take the image: {error}"
            ) from None
        statuses = [json.loads(line).get("status", "") for line in said.splitlines() if line.strip()]
        if not statuses or not statuses[-1].startswith("sha256:"):
            raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"the Docker engine did not take the image: {said[-300:]}")
        return str(statuses[-1])

    def remove(self, docker_id: str) -> bool:
        """Remove an image; False when a container uses it."""
        from docker.errors import APIError, ImageNotFound

        with contextlib.suppress(ImageNotFound):
            try:
                tags = self._client.api.inspect_image(docker_id).get("RepoTags") or [docker_id]
                for tag in tags:
                    self._client.api.remove_image(tag)
            except ImageNotFound:
                raise
            except APIError:
                return False
        return True


def docker_images() -> DockerImages | None:
    """The engine that answers, or None."""
    try:
        import docker
        from docker.errors import DockerException
    except ModuleNotFoundError:  # installed without the `docker` extra
        return None
    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        client.ping()
    except DockerException:
        return None
    return DockerImages(client)
