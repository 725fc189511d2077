"""Whatever a stranger signs, or does not, is judged: refused as a value, and never a fault of ours."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fake_issuer import FakeIssuer, Holder, signed
from fumehood.gateway.oauth import dpop, keys, tokens
from fumehood.gateway.oauth.signed import UnfitError, read
from fumehood.model import Proof

ISSUER = FakeIssuer()
HOLDER = Holder(ISSUER, "https://localhost/mcp")
NONCES = dpop.Nonces()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
    | st.sampled_from(["dpop+jwt", "at+jwt", "ES256", "k1", "EC", "P-256", "a-1", "mcp", ISSUER.issuer, ISSUER.resource, time.time()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "d", "jkt", "x5t#S256"]), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip
HEADERS = st.dictionaries(st.sampled_from(["typ", "alg", "kid", "jwk", "crit"]), VALUES, max_size=3)
CLAIMS = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf", "cnf", "scope", "jti", "htm", "htu", "ath", "nonce"]), VALUES, max_size=4
)
MANY = settings(max_examples=100, deadline=None)


def text_of(header: dict[str, Any], claims: dict[str, Any], key: Any) -> str:
    """Signed as well as it can be: so that what is behind the signature is reached."""
    algorithm = header.get("alg")
    if algorithm != "ES256":
        return signed(header, claims, None)
    return signed(header, claims, key)


@MANY
@given(st.text(max_size=60) | st.builds(".".join, st.lists(st.text("eyJ-_.Aw0=", max_size=20), max_size=4)))
def test_any_text_as_a_token(text: str) -> None:
    with suppress(UnfitError):
        read(text, 100, "invalid_token", "token")


@MANY
@given(HEADERS, CLAIMS)
def test_any_header_and_claims_of_a_token(header: dict[str, Any], claims: dict[str, Any]) -> None:
    _, key = ISSUER.keys["k1"]
    text = text_of({"typ": "at+jwt", "alg": "ES256", "kid": "k1", **header}, {**ISSUER.claims(), **claims}, key)
    with suppress(UnfitError):
        found = read(text, tokens.TOKEN_CHARACTERS, "invalid_token", "token")
        issuer = ISSUER.config()
        tokens.key_id_of(found, issuer)
        tokens.judge(found.claims, issuer, ISSUER.resource, time.time())
        tokens.confirmation_of(found.claims)
        tokens.check_scopes(found.claims, ("mcp",))
        assert tokens.sender_of(found.claims, issuer) in {issuer.sender_name(name) for name in ("alice", "bob")}


@MANY
@given(HEADERS, CLAIMS)
def test_any_header_and_claims_of_a_proof(header: dict[str, Any], claims: dict[str, Any]) -> None:
    now_s = time.time()
    HOLDER.nonce = NONCES.new(now_s)
    honest = read(HOLDER.proof(), dpop.PROOF_CHARACTERS, "invalid_dpop_proof", "proof")
    text = text_of({**honest.header, **header}, {**honest.claims, **claims}, HOLDER.key)
    with suppress(UnfitError):
        proof, _ = dpop.prove(
            text, HOLDER.thumbprint, HOLDER.token, method="POST", url="https://localhost/mcp", nonces=NONCES, now_s=now_s
        )
        assert isinstance(proof, Proof)
        assert proof.until_s <= now_s + dpop.AGE_S + dpop.SKEW_S


@MANY
@given(st.lists(st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops", "d"]), VALUES), max_size=3))
def test_any_set_of_keys(listed: list[dict[str, Any]]) -> None:
    with suppress(keys.NoKeysError):
        assert keys.keys_of(json.dumps({"keys": listed}).encode(), ("ES256", "RS256", "EdDSA"))
