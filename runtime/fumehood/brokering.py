"""`ports.Broker` over the socket to the broker process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fumehood.asking import Asker
from fumehood.faults import BoxFailed
from fumehood.memory import Memory
from fumehood.model import Binding, FileChange, Frame, Usage
from fumehood.ports import Exited, Listen, Made, Settled, Sockets
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import Surveyed
from fumehood.turns import Capacity
from fumehood.wire import TooLongError, WireError, close_all


class BrokerClient:
    """The worker's broker. Raises `Refused` or `BoxFailed`; one that is gone is BoxFailed(BROKER_DIED)."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    async def stopped(self, heard: int) -> tuple[int, str]:
        """Wait for an operator's stop after those that we have heard of: how many that are now, and what was said."""
        told = await self._ask("stopped", {"heard": heard})
        return int(told["heard"]), str(told["why"])

    async def capacity(self) -> Capacity:
        """What this host bears of boxes at once."""
        return Capacity(**await self._ask("capacity", {}))

    async def make(self, task: str, frame: Frame) -> Made:
        """Make a box whose init waits."""
        return Made(**await self._ask("make", {"task": task, "frame": frame.fields()}))

    async def network(self, task: str, listen: Sequence[Listen]) -> Sockets:
        """Sockets inside a box's network."""
        facts, fds = await self._ask_fds("network", {"task": task, "listen": [asdict(each) for each in listen]})
        pairs = [(fds[at], fds[at + 1]) for at in range(0, len(fds) - 1, 2)]
        if len(pairs) != 2 + len(listen):
            close_all(fds)
            raise BoxFailed(Reason.BROKER_DIED, "the broker sent other sockets than were asked for")
        packets = fds[-1] if len(fds) % 2 else None
        return Sockets(dns_udp=pairs[0], dns_tcp=pairs[1], listeners=tuple(pairs[2:]), packets=packets, facts=facts)

    async def bind(self, task: str, binding: Binding, supplies: Supplies) -> Mapping[str, Any]:
        """Attach the call's own things."""
        fields = {**asdict(binding), "workspace_fd": None}
        fds = [] if binding.workspace_fd is None else [binding.workspace_fd]
        files = [{"name": each.name, "size_bytes": len(each.content), "over": each.over} for each in supplies.files]
        args = {"task": task, "binding": fields, "files": files}
        facts: Mapping[str, Any]
        if files:
            with Memory(b"".join(each.content for each in supplies.files)).seal() as contents:
                facts = await self._ask("bind", args, [*fds, contents.fd])
        else:
            facts = await self._ask("bind", args, fds)
        return facts

    async def start(
        self, task: str, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int], *, check_fence: bool
    ) -> Mapping[str, Any]:
        """Read back, then start the tool."""
        command = {"argv": list(argv), "env": dict(env), "check_fence": check_fence}
        found: Mapping[str, Any] = await self._ask("start", {"task": task, **command}, stdio)
        return found

    async def wait(self, task: str) -> Exited:
        """Wait for the end."""
        fields = await self._ask("wait", {"task": task})
        fields["usage"] = Usage(**fields["usage"])
        for name in ("killed", "failed"):
            fields[name] = None if fields[name] is None else Reason(fields[name])
        return Exited(**fields)

    async def kill(self, task: str, reason: Reason) -> None:
        """End the box's processes."""
        await self._ask("kill", {"task": task, "reason": reason.value})

    async def freeze(self, task: str, seconds: float) -> Usage:
        """Stop the box's processes where they stand."""
        return Usage(**await self._ask("freeze", {"task": task, "seconds": seconds}))

    async def thaw(self, task: str) -> None:
        """Let them go on."""
        await self._ask("thaw", {"task": task})

    async def survey(self, task: str) -> Surveyed:
        """What else is in a box that stands still."""
        fields = await self._ask("survey", {"task": task})
        return Surveyed(processes=fields["processes"], listeners=tuple(fields["listeners"]))

    async def put(self, task: str, source: int, path: str) -> None:
        """Copy a file into the workspace."""
        await self._ask("put", {"task": task, "path": path}, [source])

    async def get(self, task: str, path: str, target: int, most_bytes: int | None = None) -> None:
        """Copy a file out of the workspace."""
        await self._ask("get", {"task": task, "path": path, "most_bytes": most_bytes}, [target])

    async def settle(self, task: str, action: str, protect: Sequence[str]) -> Settled:
        """Commit, hold or discard."""
        fields = await self._ask("settle", {"task": task, "action": action, "protect": list(protect)})
        fields["files"] = tuple(FileChange(**change) for change in fields["files"])
        fields["failed"] = None if fields["failed"] is None else Reason(fields["failed"])
        return Settled(**fields)

    async def remove(self, task: str) -> Mapping[str, Any]:
        """Remove everything of the box."""
        facts: Mapping[str, Any] = await self._ask("remove", {"task": task})
        return facts

    async def _ask(self, verb: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> Any:
        result, unasked = await self._ask_fds(verb, args, fds)
        close_all(unasked)
        return result

    async def _ask_fds(self, verb: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        try:
            return await self._asker.ask(verb, args, fds)
        except TooLongError as error:
            remedy = "Pass long input on stdin or in a file."
            raise BoxFailed(Reason.BAD_REQUEST, f"{verb}: {error}", remedy=remedy) from error
        except WireError as error:
            raise BoxFailed(Reason.BROKER_DIED, f"{verb}: {error}") from error
