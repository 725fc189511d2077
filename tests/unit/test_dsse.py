"""Envelopes as the DSSE specification has them, and none other is opened."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from fumehood import dsse
from fumehood.keys import KeyFolder, PublicKey, SigningKey


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return KeyFolder(tmp_path).current()


def trusting(key: SigningKey) -> dict[str, PublicKey]:
    return {key.public.kid: key.public}


def test_the_encoding_is_that_of_the_specifications_example() -> None:
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_are_of_bytes_and_not_of_letters() -> None:
    assert dsse.pae("t\u00e9", "\u00e9".encode()) == b"DSSEv1 3 t\xc3\xa9 2 \xc3\xa9"


@pytest.mark.parametrize("payload", [b"", b"{}", "\u00e9\u4e2d".encode(), bytes(range(256))])
def test_an_independent_implementation_encodes_and_verifies_the_same(key: SigningKey, payload: bytes) -> None:
    envelope = dsse.signed(payload, dsse.STATEMENT, key)
    theirs = Envelope.from_dict(copy.deepcopy(envelope))
    assert theirs.pae() == dsse.pae(dsse.STATEMENT, payload)
    known = SSlibKey(key.public.kid, "ed25519", "ed25519", {"public": key.public.raw.hex()})
    assert set(theirs.verify([known], 1)) == {key.public.kid}
    assert dsse.opened(envelope, dsse.STATEMENT, trusting(key)) == (payload, key.public)


def changed(envelope: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {**envelope, **members}


def test_what_is_no_envelope_of_ours_is_not_opened(key: SigningKey) -> None:
    good = dsse.signed(b"said", dsse.STATEMENT, key)
    (signature,) = good["signatures"]
    other = base64.b64encode(b"another").decode()
    for wrong, why in (
        (changed(good, payload=other), "signature is wrong"),
        (changed(good, payloadType=dsse.CHECKPOINT), "no envelope of"),
        (changed(good, signatures=[]), "no signature"),
        (changed(good, signatures=[{**signature, "keyid": "else"}]), "no key of this ledger's"),
        (changed(good, signatures=[{**signature, "sig": "AAAA"}]), "signature is wrong"),
        (changed(good, signatures=[{**signature, "sig": "?"}]), "no DSSE envelope"),
        (changed(good, payload="?"), "no DSSE envelope"),
        (changed(good, payload=None), "no DSSE envelope"),
        (changed(good, signatures=None), "no DSSE envelope"),
        ([], "no envelope of"),
        (None, "no envelope of"),
    ):
        with pytest.raises(ValueError, match=why):
            dsse.opened(wrong, dsse.STATEMENT, trusting(key))


def test_a_signature_of_one_type_is_none_of_another(key: SigningKey) -> None:
    good = dsse.signed(b"said", dsse.CHECKPOINT, key)
    with pytest.raises(ValueError, match="signature is wrong"):
        dsse.opened(changed(good, payloadType=dsse.STATEMENT), dsse.STATEMENT, trusting(key))


def test_one_known_signature_among_others_is_enough(key: SigningKey) -> None:
    good = dsse.signed(b"said", dsse.STATEMENT, key)
    others = [{"keyid": "x", "sig": "AAAA"}, *good["signatures"]]
    assert dsse.opened(changed(good, signatures=others), dsse.STATEMENT, trusting(key))[0] == b"said"
