"""What one front door asks of a request's origin, before anything of the request is done.

In order: the envelope is taken apart, its key looked up, its signature checked; then its claims; then its nonce is spent, on disk.
Only then is there a request. So a bad signature spends no nonce and costs no write; and what cannot be looked up or spent is refused.

Invariants: where a door takes envelopes at all, one that is there is verified, never passed over; who sends by the envelope and who
sends by the transport are one, or the request is refused; of an unknown key, a bad signature and something that is no envelope the
client hears the same.

`ping`, `initialize` and `server/discover` need none: they run and read nothing, and the latter two hand out the challenge. Lists do:
reading one can start a box. Notifications and answers cannot carry one; they reach only what their connection asked itself.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import anyio

from fumehood.faults import FumehoodError
from fumehood.gateway import envelope
from fumehood.gateway.challenges import Challenges
from fumehood.gateway.protocol import CALL_REFUSED, NAME, GatewayError
from fumehood.gateway_config import EnvelopeConfig, EnvelopeMode
from fumehood.model import Deny, Proof, Sender
from fumehood.ports import Clock, Ledger, SenderKey
from fumehood.reasons import Reason

CHALLENGE_KEY = "fumehood/challenge"
FREE = frozenset({"ping", "initialize", "server/discover"})
LEDGER_S = 10.0
_KNOWN_KEYS = 1024
_RULE = "gateway.envelope"
# Checked against where there is no key, so that an unknown one takes as long as a known one: the example of RFC 8037. That everybody
# can sign with it does not matter, for what comes of it is not looked at.
_NOBODY = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
_log = logging.getLogger("fumehood")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose a request is, its digest (None when it has no canonical form), and what it was proved by."""

    sender: Sender
    digest: str | None = None
    proof: Proof | None = None


class Proofs:
    """One front door's. `wanted` says what its configuration asks for at the moment."""

    def __init__(self, wanted: Callable[[], EnvelopeConfig], ledger: Ledger, clock: Clock) -> None:
        """Take envelopes for this process alone: challenges of another are of no use here."""
        self._wanted = wanted
        self._ledger = ledger
        self._clock = clock
        self._challenges = Challenges(clock)
        self._keys: OrderedDict[str, SenderKey] = OrderedDict()

    def told(self, sender: Sender, connection: str | None) -> dict[str, Any]:
        """What a client needs to know to sign; nothing where it is not to."""
        wanted = self._wanted()
        if wanted.mode is EnvelopeMode.OFF:
            return {}
        given = {
            "challenge": self._challenges.of(sender, connection), "audience": wanted.audience,
            "required": wanted.mode is EnvelopeMode.REQUIRED,
        }  # fmt: skip
        if (name := _name(sender)) is not None:
            given["sender"] = name
        return {CHALLENGE_KEY: given}

    async def admit(self, sender: Sender, connection: str | None, method: str, params: Mapping[str, Any]) -> Origin:
        """The origin of a request that a transport says is `sender`'s. Raises `GatewayError`: it may not be taken."""
        if method in FREE:
            return Origin(sender=sender)
        meta = params.get("_meta")
        if not isinstance(meta, dict) or envelope.KEY not in meta:
            if self._wanted().mode is EnvelopeMode.REQUIRED:
                raise self._refused(Deny(reason=Reason.PROOF_MISSING, rule=_RULE), sender, connection)
            return Origin(sender=sender, digest=_digest(method, params))
        if self._wanted().mode is EnvelopeMode.OFF:
            deny = Deny(
                reason=Reason.PROOF_INVALID, rule=_RULE, detail="this front door takes no envelopes", remedy="Send it without one.",
            )  # fmt: skip
            raise self._refused(deny, sender, connection)
        try:
            return await self._proved(sender, connection, method, params, meta[envelope.KEY])
        except FumehoodError as error:
            deny = Deny(reason=error.reason, rule=_RULE, detail=error.detail, remedy=error.remedy)
            raise self._refused(deny, sender, connection) from error

    async def _proved(
        self, sender: Sender, connection: str | None, method: str, params: Mapping[str, Any], text: object
    ) -> Origin:
        try:
            found = envelope.read(text)
        except envelope.UnfitError:
            raise self._refused(_UNKNOWN, sender, connection) from None
        key = await self._key(found.kid)
        signed = envelope.is_signed(found, _NOBODY if key is None else key.key)
        if key is None or not signed:
            raise self._refused(_UNKNOWN, sender, connection)
        wanted = self._wanted()
        digest = _digest(method, params)
        expected = envelope.Expected(
            audience=wanted.audience, challenges=self._challenges.good(sender, connection), digest=digest,
            now_s=self._clock.wall_s(), skew_s=wanted.skew_s,
        )  # fmt: skip
        deny = envelope.fault(found.claims, key, expected) or _disagreement(sender, key)
        if deny is not None:
            raise self._refused(deny, sender, connection)
        proof = Proof(method=envelope.METHOD, key=key.kid, nonce=found.claims.jti, until_s=float(found.claims.exp))
        await self._bounded(self._ledger.spend(proof.key, proof.nonce, proof.until_s))
        return Origin(sender=_sender(sender, key), digest=digest, proof=proof)

    async def _key(self, kid: str) -> SenderKey | None:
        """The key of a thumbprint. One that was read once is not read again: it can only be revoked, and `spend` sees to that."""
        if (known := self._keys.get(kid)) is not None:
            self._keys.move_to_end(kid)
            return known
        found: SenderKey | None = await self._bounded(self._ledger.sender(kid))
        if found is not None:
            self._keys[kid] = found
            if len(self._keys) > _KNOWN_KEYS:
                self._keys.popitem(last=False)
        return found

    async def _bounded(self, asked: Any) -> Any:
        with anyio.move_on_after(LEDGER_S):
            return await asked
        raise FumehoodError(Reason.LEDGER_UNAVAILABLE, "the ledger does not answer")

    def _refused(self, deny: Deny, sender: Sender, connection: str | None) -> GatewayError:
        """The refusal as the client gets it, with the challenge for the next try. No record: it must not cost a write."""
        _log.warning("a request of %s was refused: %s: %s", sender.name, deny.reason.value, deny.detail or deny.reason.meaning)
        data = {"result": "refused", "reason": deny.reason.value, "rule": deny.rule, "remedy": deny.remedy or deny.reason.remedy}
        return GatewayError(CALL_REFUSED, f"{NAME}: {deny.line()}", {**data, **self.told(sender, connection)})


_UNKNOWN = Deny(reason=Reason.PROOF_INVALID, rule=_RULE)


def _digest(method: str, params: Mapping[str, Any]) -> str | None:
    with suppress(ValueError):
        return envelope.digest(method, params)
    return None


def _name(sender: Sender) -> str | None:
    """The operator's name for who sends (`http:NAME`, `oauth:NAME@issuer`, `unix:NAME`); None on the owner's own connections."""
    _, marked, name = sender.name.partition(":")
    return name.partition("@")[0] if marked else None


def _disagreement(sender: Sender, key: SenderKey) -> Deny | None:
    """The operator named tokens and keys alike, so one name is one sender. The owner's own connections carry anybody's envelopes."""
    if _name(sender) in (None, key.name):
        return None
    return Deny(reason=Reason.PROOF_INVALID, rule=_RULE, detail="the token is one sender's and the signature another's")


def _sender(sender: Sender, key: SenderKey) -> Sender:
    """Who sends, for records and as the owner of sessions and tasks.

    Over HTTP as the token says, with or without an envelope, so that one sender stays one. On a local connection several can share a
    process, so each key's name is a sender of its own.
    """
    return sender if ":" in sender.name else replace(
        sender, name=f"key:{key.name}", tenant=key.tenant, groups=key.groups,
    )
