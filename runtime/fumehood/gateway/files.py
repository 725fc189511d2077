"""Files of a server's workspace as resources: `workspace:///path`, for clients whose profile names them.

Invariants: only an entry of `resources.allow` that itself begins with `workspace:///` opens any (`*` speaks of the
server's own resources); a file is read by the broker in a box of its own, below the workspace's own descriptor, never
through a link, a mount or a dot segment; what cannot be read is an error that says nothing of the host. There is no
way in: MCP writes no resources, so files come in through the directory that the operator gives.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from fumehood.admission.policy import WORKSPACE_FILES, permits
from fumehood.memory import Memory
from fumehood.model import Kind, Outcome, Profile, Scope, SessionLife, WorkspaceMode

MAX_LINKS = 32
MAX_PATH_BYTES = 4096
TEMPLATE: Mapping[str, Any] = {
    "uriTemplate": f"{WORKSPACE_FILES}{{+path}}",
    "name": "workspace",
    "title": "Files of the workspace",
    "description": "A file below /workspace as it is between calls; its path percent-encoded.",
}
# Not `mimetypes`: it reads the host's tables, which is none of a box's business and may be forbidden to us.
_TYPES = {
    "md": "text/markdown", "html": "text/html", "csv": "text/csv", "json": "application/json", "pdf": "application/pdf",
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp",
    "svg": "image/svg+xml",
}  # fmt: skip


def offered(profile: Profile) -> bool:
    """Whether there can be files to read."""
    shared = {WorkspaceMode.RO, WorkspaceMode.RW, WorkspaceMode.DIRECT}
    named = any(entry.startswith(WORKSPACE_FILES) for entry in profile.resources or ())
    return named and profile.filesystem.workspace in shared


def path_of(uri: str) -> str | None:
    """The path below the workspace that an address names, or None for one that names none, or two ways."""
    encoded = uri.removeprefix(WORKSPACE_FILES)
    lowered = encoded.lower()
    # `?` and `#` would begin what is no path; an encoded slash would be one name to the policy and two to the kernel.
    if any(mark in lowered for mark in ("?", "#", "\\", "%2f", "%5c", "%00")):
        return None
    path = unquote_to_bytes(encoded)
    if not 0 < len(path) <= MAX_PATH_BYTES or b"\0" in path or any(part in {b"", b".", b".."} for part in path.split(b"/")):
        return None
    try:
        return path.decode()
    except UnicodeDecodeError:
        return None


def uri_of(path: str) -> str:
    """The address of a path below the workspace."""
    return WORKSPACE_FILES + quote(path.encode("utf-8", "surrogateescape"))


def reading_profile(profile: Profile) -> Profile:
    """The profile for reading a file: the call's own, except that nothing can be changed."""
    files = replace(profile.filesystem, workspace=WorkspaceMode.RO)
    return replace(profile, scope=Scope.CALL, session=SessionLife(), filesystem=files)


def contents(uri: str, path: str, memory: Memory) -> dict[str, Any]:
    """A file as a resource: text if it is UTF-8."""
    data = os.pread(memory.fd, os.fstat(memory.fd).st_size, 0)
    kind = _TYPES.get(path.rpartition(".")[2].lower())
    try:
        found = {"mimeType": kind or "text/plain", "text": data.decode()}
    except UnicodeDecodeError:
        found = {"mimeType": kind or "application/octet-stream", "blob": base64.b64encode(data).decode()}
    return {"contents": [{"uri": uri, **found}], "ttlMs": 0, "cacheScope": "private"}


def links(outcome: Outcome, profile: Profile) -> list[dict[str, Any]]:
    """Resource links to the files that a call changed and its client may read."""
    if outcome.pending or not offered(profile):
        return []
    found = [change for change in outcome.files if change.kind in {"added", "modified"}]
    allowed = [change for change in found if permits(profile, Kind.RESOURCE, uri_of(change.path))]
    return [
        {"type": "resource_link", "uri": uri_of(change.path), "name": change.path, "size": change.size_bytes}
        for change in allowed[:MAX_LINKS]
    ]
