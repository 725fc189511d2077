"""SCRAM-SHA-256, by the example of RFC 7677 and by what a wrong server does."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood.egress.scram import MOST_BYTES, PLAIN, PLUS, Client, ScramError, prepared

# RFC 7677, section 3.
NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
PROOF = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def rfc() -> Client:
    return Client("pencil", NONCE, user="user")


def test_the_example_of_rfc_7677() -> None:
    client = rfc()
    assert client.mechanism([PLAIN]) == PLAIN
    assert client.first() == b"n,,n=user,r=" + NONCE.encode()
    assert client.final(client.challenged(SERVER_FIRST)) == PROOF
    client.finish(SERVER_FINAL)


@pytest.mark.parametrize(
    "last",
    [b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", b"v=", b"v=####", b"e=invalid-proof", b"", b"x=1", b"v=\xff", b"v=AA=="],
)
def test_a_server_that_does_not_know_the_verifier_is_found_out(last: bytes) -> None:
    client = rfc()
    client.final(client.challenged(SERVER_FIRST))
    with pytest.raises(ScramError):
        client.finish(last)


def test_a_server_that_skips_the_challenge_proves_nothing() -> None:
    with pytest.raises(ScramError):
        rfc().finish(SERVER_FINAL)


@pytest.mark.parametrize(
    "challenge",
    [
        SERVER_FIRST.replace(b"r=r", b"r=x"),
        b"r=" + NONCE.encode() + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        SERVER_FIRST.replace(b"%hv", b"\x7fhv"),
        SERVER_FIRST.replace(b"4096", b"4095"),
        SERVER_FIRST.replace(b"4096", b"1"),
        SERVER_FIRST.replace(b"4096", b"04096"),
        SERVER_FIRST.replace(b"4096", b"+4096"),
        SERVER_FIRST.replace(b"4096", b"4096 "),
        SERVER_FIRST.replace(b"4096", b"99999999999999999999"),
        SERVER_FIRST.replace(b"4096", b"1000001"),
        SERVER_FIRST.replace(b"s=W22ZaJ0SNY7soEsUEjb6gQ==", b"s="),
        SERVER_FIRST.replace(b"s=W22Z", b"s=@@@@"),
        b"m=ext," + SERVER_FIRST,
        b"r=x",
        b"",
        b"\xff" * 10,
        SERVER_FIRST + b"," + b"x" * MOST_BYTES,
    ],
)
def test_a_malformed_challenge_is_refused(challenge: bytes) -> None:
    with pytest.raises(ScramError):
        rfc().challenged(challenge)


@given(st.binary(max_size=200))
def test_no_bytes_of_a_server_raise_anything_else(data: bytes) -> None:
    for message in (data, SERVER_FIRST[: len(data)] + data):
        with contextlib.suppress(ScramError):
            assert rfc().challenged(message).nonce.startswith(NONCE)
    with pytest.raises(ScramError):
        rfc().finish(data)


def test_a_bound_channel_is_in_what_is_proved() -> None:
    client = Client("pencil", NONCE, binding=b"hash", encrypted=True)
    assert client.mechanism([PLAIN, PLUS]) == PLUS
    assert client.first().startswith(b"p=tls-server-end-point,,")
    final = client.final(client.challenged(SERVER_FIRST))
    assert base64.b64decode(final.split(b",")[0][2:]) == b"p=tls-server-end-point,,hash"


@pytest.mark.parametrize(
    ("binding", "encrypted", "flag"),
    [(b"hash", True, b"y,,"), (None, True, b"n,,"), (None, False, b"n,,")],
)
def test_an_offer_that_somebody_removed_would_be_noticed_by_the_server(
    binding: bytes | None, encrypted: bool, flag: bytes
) -> None:
    client = Client("pencil", NONCE, binding=binding, encrypted=encrypted)
    assert client.mechanism([PLAIN]) == PLAIN
    assert client.first().startswith(flag)
    final = client.final(client.challenged(SERVER_FIRST))
    assert base64.b64decode(final.split(b",")[0][2:]) == flag


@pytest.mark.parametrize("offered", [[], ["SCRAM-SHA-1"], ["OAUTHBEARER"], [PLUS], ["scram-sha-256"]])
def test_a_server_without_the_mechanism_is_refused(offered: list[str]) -> None:
    with pytest.raises(ScramError):
        Client("pencil", NONCE).mechanism(offered)


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("pencil", b"pencil"),
        ("I\u00adX", b"IX"),  # RFC 4013: mapped to nothing
        ("\u00aa", b"a"),
        ("\u2168", b"IX"),
        ("a\u00a0b", b"a b"),
        ("\u0007", b"\x07"),  # ASCII is used as it is, as PostgreSQL does
        ("\u0627\u0031", "\u0627\u0031".encode()),  # mixed directions are prohibited, so used as they are
        ("\u00e9\u0007", "\u00e9\u0007".encode()),
        ("\u00ad", "\u00ad".encode()),
        ("\ue000x", "\ue000x".encode()),
    ],
)
def test_passwords_are_prepared_as_postgresql_does(password: str, expected: bytes) -> None:
    assert prepared(password) == expected


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=20), st.binary(min_size=1, max_size=20))
def test_any_password_proves_itself_to_who_has_its_verifier(password: str, salt: bytes) -> None:
    salted = hashlib.pbkdf2_hmac("sha256", prepared(password), salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    client = Client(password, NONCE)
    challenge = f"r={NONCE}server,s={base64.b64encode(salt).decode()},i=4096"
    final = client.final(client.challenged(challenge.encode())).decode()
    without, _, proof = final.partition(",p=")
    signed = f"n=,r={NONCE},{challenge},{without}".encode()
    signature = hmac.digest(stored, signed, "sha256")
    key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
    assert hashlib.sha256(key).digest() == stored
    server = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
    client.finish(b"v=" + base64.b64encode(server))


def test_the_password_is_not_in_what_is_printed() -> None:
    client = Client("pencil", NONCE)
    client.final(client.challenged(SERVER_FIRST))
    assert "pencil" not in repr(client)
