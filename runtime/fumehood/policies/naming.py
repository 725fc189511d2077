"""What calls and senders are called in policies. Pure."""

from __future__ import annotations

from typing import NamedTuple

from fumehood.model import Kind, Sender, ToolCall

LOCAL = "local"
_TYPES = {Kind.TOOL: "Tool", Kind.PROMPT: "Prompt", Kind.RESOURCE: "Resource", Kind.COMPLETION: "Completion"}
_READS_LISTS = "catalogue"


class Named(NamedTuple):
    """A resource of a policy, and the server that it belongs to, if it does."""

    type: str
    id: str
    server: str | None


def door_of(sender: Sender) -> str:
    """How a sender is known: `local` by the kernel alone, else by what its name begins with, which no local account's can."""
    door, marked, _ = sender.name.partition(":")
    return door if marked else LOCAL


def resource_of(call: ToolCall) -> Named:
    """What is called. A server is the profile's where no front door names one."""
    server = call.server or call.profile.name
    if (kind := _TYPES.get(call.kind)) is not None:
        return Named(kind, f"{server}/{call.tool}", server)
    if call.is_hosting or call.front_door == _READS_LISTS:
        return Named("Server", server, None)
    return Named("Command", call.profile.name, None)
