"""What comes before a call's box: a signed request of 10 KB is read, judged, taken once and recorded, against a real ledger process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own fakes and signer

from fakes import call, new_task, ports
from fumehood.admission import approval, deciding, screen, verify
from fumehood.app import SystemClock
from fumehood.evidence.client import LedgerClient
from fumehood.gateway import frames, strict_json
from fumehood.gateway.bounds import excess
from fumehood.gateway.proofs import CHALLENGE_KEY, Proofs
from fumehood.gateway.schema import Schema
from fumehood.gateway_config import EnvelopeConfig
from fumehood.lifecycle import Event
from fumehood.model import ArgumentBounds, Deny, Image, Kind, Outcome, Result, Sender, ToolCall, Verified
from fumehood.policies.booking import account_of
from fumehood.policies.policy import Policy, default
from fumehood.ports import Ledger, Opened, SenderKey
from ledgers import SERVE, Running, client, running
from signed import Signer

SERVE_OPERATOR = SERVE.replace("sys.argv[2])", "sys.argv[2], takes_senders=True)")
METHOD = "tools/call"
ROW = {
    "type": "object", "additionalProperties": False,
    "properties": {"id": {"type": "integer"}, "name": {"type": "string", "maxLength": 200}, "on": {"type": "boolean"}},
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"rows": {"type": "array", "items": ROW}, "text": {"type": "string"}}, "required": ["rows"]}
ARGUMENTS = {"rows": [{"id": number, "name": f"row {number} " + "x" * 40, "on": True} for number in range(80)], "text": "y" * 3400}


class _OneImage:
    def resolve(self, name: str) -> Image:
        return Image(name=name, digest="sha256:" + "1" * 64, docker_id=None)


class Admitting:
    """One sender's requests at one front door, whose nonces and records are a ledger process's."""

    def __init__(self, folder: Path) -> None:
        """Make the sender known, as its operator would."""
        self.folder = folder
        self.signer = Signer()
        self.sender = Sender(uid=0, name="bench")
        self.schema = Schema(SCHEMA)
        with running(folder, program=SERVE_OPERATOR) as ledger:
            added = {"name": self.signer.name, "key": self.signer.x, "tenant": "local", "groups": [], "audiences": []}
            ledger.ask("sender_add", **added)

    def frame(self, proofs: Proofs) -> bytes:
        """One signed request, as it comes over the wire."""
        challenge = proofs.told(self.sender, "c")[CHALLENGE_KEY]["challenge"]
        params = self.signer.sign(METHOD, {"name": "put", "arguments": ARGUMENTS, "_meta": {}}, challenge)
        return strict_json.dumps({"jsonrpc": "2.0", "id": 1, "method": METHOD, "params": params})

    def judged(self, arguments: dict[str, Any]) -> str | None:
        """Whether the arguments are within bounds and fit their schema."""
        return excess(arguments, ArgumentBounds()) or (None if (fault := self.schema.fault(arguments)) is None else str(fault))

    async def measure(self, ledger: Running, rounds: int) -> dict[str, list[float]]:
        """Milliseconds of each stage, and of all of them, by request."""
        async with client(ledger) as worker:
            proofs = Proofs(EnvelopeConfig, worker, SystemClock())
            alone = Proofs(EnvelopeConfig, _Remembering(worker, self.signer.known()), SystemClock())
            found: dict[str, list[float]] = {"the envelope alone": [], "until it is verified": [], "the whole": []}
            for number in range(rounds + 20):
                kept = found if number >= 20 else {name: [] for name in found}
                text = frames.read(self.frame(alone)).params
                began = time.perf_counter()
                await alone.admit(self.sender, "c", METHOD, text or {})
                kept["the envelope alone"].append((time.perf_counter() - began) * 1e3)
                frame = self.frame(proofs)
                began = time.perf_counter()
                verified, known = await self._verified(proofs, worker, frame)
                kept["until it is verified"].append((time.perf_counter() - began) * 1e3)
                task = await self._granted(verified, known, worker)
                kept["the whole"].append((time.perf_counter() - began) * 1e3)
                await worker.close(Outcome(task=task, result=Result.OK))
            return found

    async def _verified(self, proofs: Proofs, worker: LedgerClient, frame: bytes) -> tuple[Verified, Known]:
        """A request's way to its record and through the first stage, as the gateway and the spine go it."""
        request = frames.read(frame)
        params: dict[str, Any] = request.params
        origin = await proofs.admit(self.sender, "c", METHOD, params)
        assert self.judged(params["arguments"]) is None
        wanted: ToolCall = replace(
            call(task=new_task()), tool="put", kind=Kind.TOOL, sender=self.sender, arguments=params["arguments"],
            request_digest=origin.digest, proof=origin.proof,
        )  # fmt: skip
        wanted = replace(wanted, profile=replace(wanted.profile, tools=None))
        opened = await worker.open(wanted, account_of(wanted, default().config))
        verified = verify.check(wanted, _OneImage())
        assert not isinstance(verified, Deny)
        return verified, Known(default(), opened)

    async def _granted(self, verified: Verified, known: Known, worker: LedgerClient) -> str:
        """The rest of the way: searched for secrets, decided, and nobody asked."""
        through = ports(cast("Ledger", worker))
        screened = screen.check(verified, (), through.known)
        assert not isinstance(screened, Deny)
        verdict = deciding.judged(screened, known, through)
        assert not isinstance(verdict, Deny)
        again = partial(deciding.judged_again, screened, known, through)
        assert not isinstance(await approval.settle(verdict, again, None, _Silent(), through), Deny)
        return verified.call.task


@dataclass(frozen=True)
class Known:
    """What the record's log has that a call is decided by."""

    policy: Policy
    opened: Opened


class _Silent:
    """A log to which a call that asks nobody writes nothing."""

    async def event(self, event: Event, **_: Any) -> None:
        raise AssertionError(event)


class _Remembering:
    """A ledger that has taken every nonce already before it is asked: what is left is the envelope's own cost."""

    def __init__(self, worker: LedgerClient, key: SenderKey) -> None:
        self._worker = worker
        self._key = key

    async def sender(self, kid: str) -> SenderKey | None:
        return self._key if kid == self._key.kid else None

    async def spend(self, key: str, nonce: str, until_s: float) -> None:
        """It is taken."""


def admitted(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by stage."""
    admitting = Admitting(folder)
    with running(folder, runtime="admitting") as ledger:
        measure: Callable[..., Any] = admitting.measure
        return anyio.run(measure, ledger, rounds)
