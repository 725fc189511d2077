"""Whose request it is, by its access token: signatures first, then the proof's nonce is spent, then anything else.

In this order: the token is read, its issuer and key found, its signature verified; its claims judged, the subject looked up; what
it is bound to shown, by a proof or by the TLS connection's certificate. All that is computed and changes nothing, so a bad
signature burns no nonce, and a subject who is not admitted fills no store. Only then the nonce is spent, and only a request whose
nonce the ledger has made durable is anybody's. A ledger that does not answer lets nobody in.
"""

from __future__ import annotations

import hmac
import re

import anyio

from fumehood.faults import LedgerGone, Refused
from fumehood.gateway import http_head
from fumehood.gateway.http_head import Claimant, Head, Refusal
from fumehood.gateway.oauth import answers, dpop, tokens
from fumehood.gateway.oauth.fetching import KeyStore
from fumehood.gateway.oauth.given import OAuthFront
from fumehood.gateway.oauth.signed import Signed, UnfitError, read, verifies
from fumehood.model import Proof, Sender
from fumehood.oauth_config import Binding, IssuerConfig
from fumehood.ports import Ports
from fumehood.reasons import Reason

SPEND_S = 5.0
_CREDENTIALS = re.compile(r"(?P<scheme>bearer|dpop) +(?P<token>[A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_UNAVAILABLE = "unavailable"


class ResourceServer:
    """One configuration's. What `before` has read of issuers that are still the same is kept."""

    def __init__(self, front: OAuthFront, ports: Ports, before: ResourceServer | None = None) -> None:
        """Ask nobody anything yet."""
        self.front = front
        self._config = front.config
        self._ports = ports
        self.nonces: dpop.Nonces = dpop.Nonces() if before is None else before.nonces
        self.stores: dict[str, KeyStore] = {}
        for each in front.config.issuers:
            kept = None if before is None else before.stores.get(each.issuer)
            text = front.key_sets.get(each.issuer)
            if kept is None or text is not None or (kept.issuer.keys, kept.issuer.algorithms) != (each.keys, each.algorithms):
                kept = KeyStore(each, text, ports.outward, ports.clock)
            self.stores[each.issuer] = kept

    async def introduce(self, claimant: Claimant) -> Head | Refusal:
        """Say whose request this is, or why it is nobody's."""
        clock = self._ports.clock
        try:
            sender, proof, is_stale = await self._believed(claimant)
        except UnfitError as error:
            if error.error == _UNAVAILABLE:
                return Refusal(503, str(error), ((b"retry-after", b"5"),))
            return answers.refusal(self._config, error, self.nonces.new(clock.wall_s()))
        fresh = ((b"dpop-nonce", self.nonces.new(clock.wall_s()).encode()),) if is_stale else ()
        return http_head.admitted(claimant.method, claimant.headers, sender, proof, fresh)

    async def _believed(self, claimant: Claimant) -> tuple[Sender, Proof | None, bool]:
        """Whose it is, what it showed, and whether the nonce of that should be replaced. Raises UnfitError."""
        found = _CREDENTIALS.fullmatch(claimant.headers.get("authorization", ""))
        if found is None:
            raise UnfitError("", "an access token is needed")
        token, by_proof = found["token"], found["scheme"].lower() == "dpop"
        signed = read(token, tokens.TOKEN_CHARACTERS, "invalid_token", "token")
        issuer = tokens.issuer_of(signed, self._config)
        await self._verify(signed, issuer)
        now_s = self._ports.clock.wall_s()  # only now: the issuer may have taken its time
        tokens.judge(signed.claims, issuer, self._config.resource, now_s)
        bound = tokens.confirmation_of(signed.claims)
        shown, is_stale = self._shown(claimant, bound, token if by_proof else None, now_s)
        if shown is None and bound.certificate is not None:
            shown = Proof(method="mtls", key=bound.certificate, nonce="", until_s=signed.claims["exp"])
        sender = Sender(uid=self.front.uid, name=tokens.sender_of(signed.claims, issuer))
        tokens.check_scopes(signed.claims, self._config.scopes)
        if shown is not None and shown.nonce:
            await self._spend(shown)
        return sender, shown, is_stale

    async def _verify(self, signed: Signed, issuer: IssuerConfig) -> None:
        place = tokens.key_id_of(signed, issuer), signed.algorithm
        store = self.stores[issuer.issuer]
        await store.freshen(place)
        key = store.find(place)
        if key is None:
            if store.unread:
                raise UnfitError(_UNAVAILABLE, "the issuer's keys cannot be read at the moment")
            raise UnfitError("invalid_token", "the token is signed with a key that its issuer does not publish")
        if not verifies(signed, key, signed.algorithm):
            raise UnfitError("invalid_token", "the token's signature does not verify")

    def _shown(
        self, claimant: Claimant, bound: tokens.Confirmation, token: str | None, now_s: float
    ) -> tuple[Proof | None, bool]:
        """What is shown of all that the token is bound to; `token` is there when it came with a proof. Raises UnfitError."""
        ways = {Binding.DPOP: (bound.key,), Binding.MTLS: (bound.certificate,), Binding.EITHER: (bound.key, bound.certificate)}
        wanted = ways.get(self._config.binding)
        if wanted is not None and not any(wanted):
            raise UnfitError("invalid_token", "the token is not bound to its user's key or certificate as it has to be here")
        if bound.certificate is not None and not _equal(bound.certificate, claimant.certificate):
            raise UnfitError("invalid_token", "the token was issued to another certificate than this connection's")
        if bound.key is None and token is None:
            return None, False
        if bound.key is None:
            raise UnfitError("invalid_token", "the token is bound to no key, and a proof shows nothing of it")
        if token is None:
            # The downgrade: whoever stole the token has no key to prove anything with.
            raise UnfitError("invalid_token", "the token is bound to a key, and is sent as `Authorization: DPoP` with a proof")
        text = claimant.headers.get("dpop")
        if text is None:
            raise UnfitError("invalid_dpop_proof", "a DPoP proof is needed")
        return dpop.prove(
            text, bound.key, token, method=claimant.method, url=self._config.url, nonces=self.nonces, now_s=now_s
        )

    async def _spend(self, proof: Proof) -> None:
        """Take the proof's nonce. Raises UnfitError: it was taken before, or nobody can say."""
        try:
            with anyio.fail_after(SPEND_S):
                await self._ports.ledger.spend(proof.key, proof.nonce, proof.until_s)
        except Refused as error:
            if error.reason in (Reason.REPLAYED, Reason.PROOF_EXPIRED, Reason.PROOF_INVALID):
                raise UnfitError("invalid_dpop_proof", f"the DPoP proof is not taken: {error.reason.meaning}") from error
            raise UnfitError(_UNAVAILABLE, error.reason.meaning) from error
        except (LedgerGone, TimeoutError) as error:
            raise UnfitError(_UNAVAILABLE, "the ledger cannot take the proof's nonce at the moment") from error


def _equal(said: str, shown: str | None) -> bool:
    return shown is not None and hmac.compare_digest(said.encode("utf-8", "replace"), shown.encode())
