"""The names and numbers of MCP that both sides of the gateway use. A test holds the revisions equal to the SDK's.

Kept apart from the SDK so that a conversation with a server in a box imports nothing heavy and can be tested alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

HANDSHAKE_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""Revisions that open with `initialize`, oldest first."""

MODERN_VERSIONS: Final = ("2026-07-28",)
"""Revisions without a handshake: every request carries its own envelope in `_meta`."""

VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"
CLIENT_INFO_KEY: Final = "io.modelcontextprotocol/clientInfo"
SERVER_INFO_KEY: Final = "io.modelcontextprotocol/serverInfo"

LOG_LEVEL_KEY: Final = "io.modelcontextprotocol/logLevel"
TASKS_EXTENSION: Final = "io.modelcontextprotocol/tasks"

TASK_KEY: Final = "fumehood/task"
# Where a result comes from, as the profile says: `untrusted`.
RETURNS_KEY: Final = "fumehood/returns"
OUTCOME_KEY: Final = "fumehood/outcome"
SESSION_KEY: Final = "fumehood/session"
SERVER_KEY: Final = "fumehood/server"
IDEMPOTENCY_KEY: Final = "fumehood/idempotencyKey"
REPEATS_KEY: Final = "fumehood/repeats"
OWN_PREFIX: Final = "fumehood/"

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
RESOURCE_NOT_FOUND: Final = -32002
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022

LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""RFC 5424's names, least first."""

# -32000..-32019 are a server's to define; the SDK takes -32000 and -32001 for itself.
CALL_REFUSED: Final = -32010
CALL_FAILED: Final = -32011
CALL_KILLED: Final = -32012
TOO_MANY_REQUESTS: Final = -32013

NAME: Final = "fumehood"


class GatewayError(Exception):
    """A JSON-RPC error for the client."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        """Carry the three members of the error."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, slots=True)
class ServerError:
    """A server's own JSON-RPC error."""

    code: int
    message: str
    data: Any


@dataclass(frozen=True, slots=True)
class Era:
    """How one peer speaks: the revision, and whether it has the per-request envelope instead of a handshake."""

    version: str

    @property
    def modern(self) -> bool:
        """Whether every request carries its own envelope."""
        return self.version in MODERN_VERSIONS


def takes_tasks(capabilities: Mapping[str, Any]) -> bool:
    """Whether a client declares the Tasks extension."""
    extensions = capabilities.get("extensions")
    return isinstance(extensions, dict) and TASKS_EXTENSION in extensions


def printable(text: str, limit: int = 300) -> str:
    """A stranger's text for one line on a terminal: escapes and bidi controls would otherwise rewrite what is read."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in cut)
