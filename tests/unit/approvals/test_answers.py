"""A signed answer counts when an approver's key signed exactly this, for us, now; of anything else nothing is even parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OKPKey

from fumehood.approvals import answers
from fumehood.approvals.answers import TYPE, UnfitError, made, opened
from fumehood.thumbprint import text_of, thumbprint

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
X = text_of(KEY.public_key().public_bytes_raw())
KEYS = {"bob": text_of(OTHER.public_key().public_bytes_raw()), "alice": X}
NOW = 1_000_000
CLAIMS: dict[str, Any] = {
    "iss": "alice", "aud": "fumehood", "iat": NOW - 1, "exp": NOW + 200, "jti": "j" * 22, "approval": "0" * 26,
    "binding": "sha256:" + "b" * 64, "decision": "approve", "reason": "ok",
}  # fmt: skip


def read(text: str, now_s: float = NOW) -> answers.Answer:
    return opened(text, KEYS, "fumehood", now_s)


def test_an_answer_says_who_signed_what() -> None:
    found = read(made(KEY.sign, CLAIMS))
    assert (found.approver, found.kid, found.approves, found.approval) == ("alice", thumbprint(X), True, "0" * 26)
    assert (found.binding, found.reason, found.jti, found.until_s) == (CLAIMS["binding"], "ok", "j" * 22, NOW + 200)
    assert not read(made(KEY.sign, {**CLAIMS, "decision": "deny"})).approves


def test_a_library_of_jose_makes_one() -> None:
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": X, "d": text_of(KEY.private_bytes_raw())})
    text = jws.serialize_compact({"alg": "Ed25519", "typ": TYPE, "kid": thumbprint(X)}, json.dumps(CLAIMS), key, algorithms=["Ed25519"])
    assert read(text).approver == "alice"


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "bob"}, {"iss": "carol"}, {"aud": "another"}, {"exp": NOW}, {"exp": NOW + 301}, {"iat": NOW + 60, "exp": NOW + 100},
        {"iat": NOW - 400, "exp": NOW - 100}, {"decision": "yes"}, {"decision": ""}, {"jti": "short"}, {"jti": "no spaces allowed at all"},
        {"approval": 7}, {"reason": "r" * 1025}, {"iat": True}, {"iat": 1.5}, {"exp": 2**53}, {"extra": 1},
    ],
)  # fmt: skip
def test_a_claim_that_is_not_right_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UnfitError):
        read(made(KEY.sign, {**CLAIMS, **changed}))


@pytest.mark.parametrize("missing", CLAIMS)
def test_no_claim_may_be_left_out(missing: str) -> None:
    with pytest.raises(UnfitError):
        read(made(KEY.sign, {name: value for name, value in CLAIMS.items() if name != missing}))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": TYPE}, {"alg": "HS256", "typ": TYPE}, {"alg": "EdDSA", "typ": "mcp-call+jws"}, {"alg": "EdDSA"},
        {"alg": "EdDSA", "typ": TYPE, "crit": ["b64"], "b64": False}, {"alg": "EdDSA", "typ": TYPE, "jwk": {}},
    ],
)  # fmt: skip
def test_a_header_that_asks_for_something_else_is_refused(header: dict[str, Any]) -> None:
    parts = [text_of(json.dumps(part).encode()) for part in (header, CLAIMS)]
    with pytest.raises(UnfitError):
        read(".".join((*parts, text_of(KEY.sign(".".join(parts).encode())))))


def test_nothing_is_parsed_that_no_approver_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(_: str) -> dict[str, Any]:
        raise AssertionError("parsed")

    forged = made(Ed25519PrivateKey.generate().sign, CLAIMS)
    monkeypatch.setattr(answers, "_object", parsed)
    with pytest.raises(UnfitError, match="no approver's key"):
        read(forged)


def test_two_members_of_one_name_are_refused() -> None:
    body = json.dumps(CLAIMS)[:-1] + ', "decision": "deny"}'
    parts = [text_of(part.encode()) for part in (json.dumps({"alg": "EdDSA", "typ": TYPE}), body)]
    with pytest.raises(UnfitError):
        read(".".join((*parts, text_of(KEY.sign(".".join(parts).encode())))))


@given(place=st.integers(min_value=0), char=st.sampled_from("AZaz09-_.= \n"))
def test_a_text_that_was_changed_anywhere_is_refused(place: int, char: str) -> None:
    text = made(KEY.sign, CLAIMS)
    at = place % len(text)
    changed = text[:at] + char + text[at + 1 :]
    if changed != text:
        with pytest.raises(UnfitError):
            read(changed)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{2,40}\.[A-Za-z0-9_-]{2,40}\.[A-Za-z0-9_-]{2,90}", fullmatch=True))
def test_any_text_is_refused_without_a_fault(text: str) -> None:
    with pytest.raises(UnfitError):
        read(text)
