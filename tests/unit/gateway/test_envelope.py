"""One signature, in one writing, over exactly one request: everything else is refused, and says no more than it must."""

from __future__ import annotations

import hashlib
import hmac
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OKPKey

from fakes import FakeClock, FakeLedger
from fumehood.faults import LedgerGone
from fumehood.gateway import envelope, proofs, strict_json
from fumehood.gateway.challenges import EPOCH_S, Challenges
from fumehood.gateway.envelope import Claims, Expected, UnfitError
from fumehood.gateway.protocol import GatewayError
from fumehood.model import Sender
from fumehood.reasons import Reason
from fumehood.thumbprint import text_of
from signed import Signer, plain, proved
from signed import proofs as door

ALICE, BOB = Signer("alice"), Signer("bob")
NOW = 1_800_000_000.0
PARAMS: dict[str, Any] = {
    "name": "write", "arguments": {"path": "a/b", "text": "π", "n": 1.5},
    "_meta": {"fumehood/session": "s1", "fumehood/idempotencyKey": "k1", "progressToken": 7},
}  # fmt: skip
OWNER = Sender(uid=0, name="root")


def claims(params: Any = PARAMS, **changes: Any) -> dict[str, Any]:
    made = ALICE.claims("tools/call", params, "chal", iat=int(NOW), exp=int(NOW) + 30)
    return {**made, **changes}


def refused(token: Any, params: Any = PARAMS, *, now_s: float = NOW, **known: Any) -> str | None:
    """What is wrong with a token as Alice's for a request; None when nothing is."""
    try:
        found = envelope.read(token)
    except UnfitError:
        return "unfit"
    if not envelope.is_signed(found, ALICE.x):
        return "unsigned"
    expected = Expected(
        audience="fumehood", challenges=frozenset({"chal"}), digest=envelope.digest("tools/call", params), now_s=now_s, skew_s=5.0
    )
    deny = envelope.fault(found.claims, ALICE.known(**known), expected)
    return None if deny is None else deny.reason.value


def test_a_good_envelope_is_good_and_jose_reads_and_writes_it_too() -> None:
    made = ALICE.token(claims())
    assert refused(made) is None
    ours = {name: getattr(envelope.read(made).claims, name) for name in Claims.__slots__}
    again = envelope.write(ALICE.kid, Claims(**ours), ALICE.private.sign)
    assert refused(again) is None
    public = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": ALICE.x})
    assert public.thumbprint() == ALICE.kid
    for each in (made, again):
        with pytest.warns(match="RFC 9864"):
            assert json.loads(jws.deserialize_compact(each, public, algorithms=["EdDSA"]).payload) == ours


@given(st.data())
def test_any_changed_byte_of_an_envelope_is_refused(data: st.DataObject) -> None:
    made = ALICE.token(claims())
    at = data.draw(st.integers(0, len(made) - 1))
    changed = data.draw(st.characters(max_codepoint=127).filter(lambda letter: letter != made[at]))
    assert refused(made[:at] + changed + made[at + 1 :]) in {"unfit", "unsigned"}


@given(st.data())
def test_any_changed_byte_of_a_signed_request_is_refused_or_is_the_same_request(data: st.DataObject) -> None:
    body = strict_json.dumps(PARAMS)
    at, bit = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(body)
    changed[at] ^= 1 << bit
    try:
        params = strict_json.parse(bytes(changed))
    except strict_json.UnfitError:
        return
    same = {**PARAMS, "_meta": {name: value for name, value in PARAMS["_meta"].items() if name != "progressToken"}}
    meta = params.get("_meta")
    shorn = {**params, "_meta": {name: value for name, value in meta.items() if name != "progressToken"}} if isinstance(meta, dict) else params
    if shorn == same:
        assert refused(ALICE.token(claims()), params) is None
    else:
        assert refused(ALICE.token(claims()), params) == "proof_invalid"


def test_the_writing_of_a_request_does_not_matter_and_nothing_of_the_way_does() -> None:
    other = {
        "_meta": {"progressToken": "x", "traceparent": "00-1", "fumehood/idempotencyKey": "k1", "fumehood/session": "s1"},
        "arguments": {"n": 15e-1, "text": "\u03c0", "path": "a/b"}, "name": "write",
    }  # fmt: skip
    assert refused(ALICE.token(claims()), other) is None


@pytest.mark.parametrize(
    "meta",
    [
        {}, {"fumehood/session": "s2", "fumehood/idempotencyKey": "k1"}, {"fumehood/session": "s1", "fumehood/idempotencyKey": "k2"},
        {"fumehood/session": "s1", "fumehood/idempotencyKey": "k1", "of/tomorrow": 1},
        {"fumehood/session": "s1", "fumehood/idempotencyKey": "k1", "io.modelcontextprotocol/clientCapabilities": {"sampling": {}}},
    ],
)  # fmt: skip
def test_a_swapped_session_key_or_unknown_member_of_meta_is_refused(meta: dict[str, Any]) -> None:
    assert refused(ALICE.token(claims()), {**PARAMS, "_meta": meta}) == "proof_invalid"


def test_an_envelope_of_a_list_is_none_of_a_call() -> None:
    of_a_list = claims(bd=envelope.digest("tools/list", PARAMS))
    assert refused(ALICE.token(of_a_list)) == "proof_invalid"


def hmac_with_the_public_key() -> str:
    head = text_of(json.dumps({"alg": "HS256", "typ": "mcp-call+jws", "kid": ALICE.kid}).encode())
    signed = f"{head}.{text_of(json.dumps(claims()).encode())}"
    return f"{signed}.{text_of(hmac.digest(plain(ALICE.x), signed.encode(), hashlib.sha256))}"


def unsigned() -> str:
    head = text_of(json.dumps({"alg": "none", "typ": "mcp-call+jws", "kid": ALICE.kid}).encode())
    return f"{head}.{text_of(json.dumps(claims()).encode())}."


@pytest.mark.parametrize(
    "token",
    [
        unsigned(),
        hmac_with_the_public_key(),
        ALICE.token(claims(), alg="none"),
        ALICE.token(claims(), alg="HS256"),
        ALICE.token(claims(), alg="Ed25519"),
        ALICE.token(claims(), alg="eddsa"),
        ALICE.token(claims(), alg=["EdDSA"]),
        ALICE.token(claims(), alg=None),
        ALICE.token(claims(), typ="JWT"),
        ALICE.token(claims(), typ=None),
        ALICE.token(claims(), kid=None),
        ALICE.token(claims(), kid="../../x"),
        ALICE.token(claims(), crit=["b64"], b64=False),
        ALICE.token(claims(), crit=[]),
        ALICE.token(claims(), jwk={"kty": "OKP", "crv": "Ed25519", "x": ALICE.x}),
        ALICE.token(claims(), jku="https://evil.example/keys"),
        ALICE.token(claims(), x5c=[]),
        ALICE.token({**claims(), "admin": True}),
        ALICE.token({**claims(), "nbf": int(NOW)}),
        ALICE.token({name: value for name, value in claims().items() if name != "aud"}),
        ALICE.token(claims(aud=["fumehood", "other"])),
        ALICE.token(claims(iat=NOW)),
        ALICE.token(claims(exp=str(int(NOW) + 30))),
        ALICE.token(claims(exp=True)),
        ALICE.token(claims(iat=-1)),
        ALICE.token(claims(exp=2**53)),
        ALICE.token(claims(jti="short")),
        ALICE.token(claims(jti="x" * 129)),
        ALICE.token(claims(jti="white space in it")),
        ALICE.token(claims(jti=7)),
        ALICE.token(claims(iss=None)),
        ALICE.token(claims(iss="x" * 5000)),
        ALICE.token([claims()]),
        ALICE.token("claims"),
        ALICE.raw(json.dumps({"alg": "EdDSA", "typ": "mcp-call+jws", "kid": ALICE.kid}), json.dumps(claims())[:-1] + ', "iss": "bob"}'),
        ALICE.raw(f'{{"alg": "none", "alg": "EdDSA", "typ": "mcp-call+jws", "kid": "{ALICE.kid}"}}', json.dumps(claims())),
        ALICE.raw(json.dumps({"alg": "EdDSA", "typ": "mcp-call+jws", "kid": ALICE.kid}), json.dumps(claims()).replace("30", "NaN", 1)),
        "", ".", "..", "...", "a.b.c", "a" * 3000, ALICE.token(claims()) + "=", ALICE.token(claims()) + "\n",
        ALICE.token(claims()) + ".x", " " + ALICE.token(claims()), None, 7, True, [], {}, ["a", "b", "c"], "é" * 20,
    ],
)  # fmt: skip
def test_what_is_no_envelope_of_ours_is_refused_before_any_signature_is_looked_at(token: Any) -> None:
    assert refused(token) == "unfit"


def test_a_signature_written_in_another_way_is_another_text_and_refused() -> None:
    made = ALICE.token(claims())
    signature = plain(made.rpartition(".")[2])
    # 64 bytes end in a letter of which four bits are spare: fifteen others decode to the same signature.
    texts = [made[:-1] + each for each in f"{string.ascii_letters}{string.digits}-_"]
    alike = [each for each in texts if plain(each.rpartition(".")[2]) == signature]
    assert len(alike) == 16
    assert [refused(each) for each in alike if each != made] == ["unfit"] * 15


@pytest.mark.parametrize(
    ("changes", "now_s", "said"),
    [
        ({}, NOW + 34.9, None),
        ({}, NOW + 35.0, "proof_expired"),
        ({}, NOW - 5.0, None),
        ({}, NOW - 5.1, "proof_expired"),
        ({"exp": int(NOW) + 60}, NOW, None),
        ({"exp": int(NOW) + 61}, NOW, "proof_invalid"),
        ({"iat": int(NOW) - 3600, "exp": int(NOW) + 30}, NOW, "proof_invalid"),
        ({"exp": int(NOW)}, NOW, "proof_invalid"),
        ({"exp": int(NOW) - 10}, NOW, "proof_invalid"),
        ({"iat": int(NOW) - 1000, "exp": int(NOW) - 970}, NOW, "proof_expired"),
        ({"iat": int(NOW) + 1000, "exp": int(NOW) + 1030}, NOW, "proof_expired"),
        ({"iss": "bob"}, NOW, "proof_invalid"),
        ({"aud": "another"}, NOW, "proof_invalid"),
        ({"chal": "another"}, NOW, "challenge_stale"),
        ({"bd": "sha256:" + "0" * 64}, NOW, "proof_invalid"),
    ],
)
def test_a_good_signature_over_wrong_claims_is_refused(changes: dict[str, Any], now_s: float, said: str | None) -> None:
    assert refused(ALICE.token(claims(**changes)), now_s=now_s) == said


def test_a_senders_key_is_good_for_its_own_audiences_only_and_not_when_it_is_revoked() -> None:
    made = ALICE.token(claims())
    assert refused(made, audiences=("fumehood", "x")) is None
    assert refused(made, audiences=("x",)) == "proof_invalid"
    assert refused(made, revoked=True) == "sender_revoked"


def test_a_challenge_is_one_gateways_one_senders_one_connections_and_of_its_time() -> None:
    clock = FakeClock()
    ours, theirs = Challenges(clock), Challenges(clock)
    first = ours.of(OWNER, "c1")
    assert first in ours.good(OWNER, "c1")
    assert first not in theirs.good(OWNER, "c1")
    assert first not in ours.good(OWNER, "c2") | ours.good(OWNER, None) | ours.good(Sender(uid=0, name="http:root"), "c1")
    assert first not in ours.good(Sender(uid=0, name="root", tenant="other"), "c1") | ours.good(Sender(uid=1, name="root"), "c1")
    clock.advance(EPOCH_S)
    assert first in ours.good(OWNER, "c1")
    clock.advance(EPOCH_S)
    assert first not in ours.good(OWNER, "c1")


class CountingLedger(FakeLedger):
    """Says how often it was asked to write."""

    writes = 0

    async def spend(self, key: str, nonce: str, until_s: float) -> None:
        self.writes += 1
        await super().spend(key, nonce, until_s)


async def said(front: proofs.Proofs, params: Any, sender: Sender = OWNER, connection: str | None = "c1") -> tuple[str, str]:
    """The message and the reason of a refusal, or who was admitted."""
    try:
        origin = await front.admit(sender, connection, "tools/call", params)
    except GatewayError as error:
        return error.message, error.data["reason"]
    return origin.sender.name, "admitted"


@pytest.mark.anyio
async def test_a_bad_signature_burns_no_nonce_and_costs_no_write() -> None:
    ledger = CountingLedger(senders={ALICE.kid: ALICE.known()})
    front = door(ledger)
    challenge = front.told(OWNER, "c1")[proofs.CHALLENGE_KEY]["challenge"]
    good = ALICE.sign("tools/call", PARAMS, challenge)
    token = good["_meta"][envelope.KEY]
    head, body, signature = token.split(".")
    for bad in (f"{head}.{body}.{'A' * 86}", f"{head}.{body}.{signature[::-1][:85]}A", BOB.token(json.loads(plain(body)), kid=ALICE.kid)):
        for _ in range(20):
            assert (await said(front, proved(PARAMS, bad)))[1] == "proof_invalid"
    assert ledger.writes == 0
    assert await said(front, good) == ("key:alice", "admitted")
    assert (await said(front, good))[1] == "replayed"
    assert ledger.writes == 2


@pytest.mark.anyio
async def test_an_unknown_key_a_bad_signature_and_rubbish_get_one_answer() -> None:
    front = door(FakeLedger(senders={ALICE.kid: ALICE.known()}))
    challenge = front.told(OWNER, "c1")[proofs.CHALLENGE_KEY]["challenge"]
    unknown = BOB.sign("tools/call", PARAMS, challenge)
    forged = proved(PARAMS, BOB.token(ALICE.claims("tools/call", PARAMS, challenge), kid=ALICE.kid))
    answers = {await said(front, each) for each in (unknown, forged, proved(PARAMS, "a.b.c"), proved(PARAMS, 7), proved(PARAMS, None))}
    assert len(answers) == 1
    assert answers.pop()[1] == "proof_invalid"


@pytest.mark.anyio
async def test_a_request_without_a_canonical_form_cannot_be_signed_and_goes_without_a_digest() -> None:
    front = door(FakeLedger(senders={ALICE.kid: ALICE.known()}))
    challenge = front.told(OWNER, "c1")[proofs.CHALLENGE_KEY]["challenge"]
    vague = {"name": "x", "arguments": {"n": 2**60}}
    token = ALICE.token(ALICE.claims("tools/call", {}, challenge))
    assert (await said(front, proved(vague, token)))[1] == "proof_invalid"
    assert (await front.admit(OWNER, "c1", "tools/call", vague)).digest is None


@pytest.mark.anyio
async def test_without_its_ledger_nothing_that_is_signed_is_taken() -> None:
    ledger = FakeLedger(senders={ALICE.kid: ALICE.known()})
    front = door(ledger)
    challenge = front.told(OWNER, "c1")[proofs.CHALLENGE_KEY]["challenge"]
    assert await said(front, ALICE.sign("tools/call", PARAMS, challenge)) == ("key:alice", "admitted")
    ledger.gone = True
    assert (await said(front, ALICE.sign("tools/call", PARAMS, challenge)))[1] == "ledger_unavailable"  # its key is known
    assert (await said(door(ledger), ALICE.sign("tools/call", PARAMS, challenge)))[1] == "ledger_unavailable"
    with pytest.raises(LedgerGone):
        await ledger.sender(ALICE.kid)


@pytest.mark.anyio
async def test_a_revocation_holds_for_a_gateway_that_knows_the_key_already() -> None:
    ledger = FakeLedger(senders={ALICE.kid: ALICE.known()})
    front = door(ledger)
    challenge = front.told(OWNER, "c1")[proofs.CHALLENGE_KEY]["challenge"]
    assert await said(front, ALICE.sign("tools/call", PARAMS, challenge)) == ("key:alice", "admitted")
    ledger.senders[ALICE.kid] = ALICE.known(revoked=True)
    assert (await said(front, ALICE.sign("tools/call", PARAMS, challenge)))[1] == "sender_revoked"


@pytest.mark.anyio
@pytest.mark.parametrize("token", ["http:{}", "oauth:{}@issuer", "unix:{}"])
async def test_the_token_of_one_sender_with_the_signature_of_another_is_refused(token: str) -> None:
    alices, bobs = (Sender(uid=0, name=token.format(name)) for name in ("alice", "bob"))
    front = door(FakeLedger(senders={each.kid: each.known() for each in (ALICE, BOB)}))
    challenge = front.told(alices, None)[proofs.CHALLENGE_KEY]["challenge"]
    assert await said(front, ALICE.sign("tools/call", PARAMS, challenge), alices, None) == (alices.name, "admitted")
    message, reason = await said(front, BOB.sign("tools/call", PARAMS, challenge), alices, None)
    assert (reason, "another's" in message) == ("proof_invalid", True)
    assert (await said(front, ALICE.sign("tools/call", PARAMS, challenge), bobs, None))[1] == "challenge_stale"


@pytest.mark.anyio
async def test_where_envelopes_are_required_nothing_but_a_greeting_goes_without_and_where_they_are_off_none_is_ignored() -> None:
    strict, none = door(mode="required"), door(mode="off")
    for method in ("tools/call", "tools/list", "resources/read", "tasks/get", "subscriptions/listen", "logging/setLevel", "x"):
        with pytest.raises(GatewayError) as refusal:
            await strict.admit(OWNER, "c1", method, {})
        assert refusal.value.data["reason"] == "proof_missing"
        assert refusal.value.data[proofs.CHALLENGE_KEY]["required"] is True
        assert (await none.admit(OWNER, "c1", method, {})).proof is None
    for method in ("ping", "initialize", "server/discover"):
        assert (await strict.admit(OWNER, "c1", method, {})).sender == OWNER
    assert (await said(none, proved(PARAMS, "a.b.c")))[1] == Reason.PROOF_INVALID
    assert none.told(OWNER, "c1") == {}
