"""`fumehood senders`: keys come in by an operator's command alone, go for good at once, and say nothing that they should not."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from fumehood.faults import Refused
from fumehood.gateway.sender_keys import read_private_key
from fumehood.thumbprint import thumbprint
from lab import FUMEHOOD, Lab, close_lab, open_lab
from ledgers import SERVE, client, running
from signed import Signer

pytestmark = pytest.mark.root

SERVE_OPERATOR = SERVE.replace("sys.argv[2])", "sys.argv[2], takes_senders=True)")
ALICE = Signer("alice")


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = open_lab("k")
    yield made
    close_lab(made)


def fields(signer: Signer, **more: object) -> dict[str, object]:
    return {"name": signer.name, "key": signer.x, "tenant": "local", "groups": [], "audiences": [], **more}


def test_a_worker_that_was_taken_over_cannot_make_itself_a_sender_nor_revoke_one(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    with running(folder, program=SERVE_OPERATOR) as operators:
        assert operators.ask("sender_add", **fields(ALICE)) == ALICE.kid == thumbprint(ALICE.x)
    with running(folder) as gateways:
        for sock in (gateways.worker, gateways.broker):
            with pytest.raises(Refused, match="is not told who sends"):
                gateways.ask("sender_add", sock, **fields(Signer("mallory")))
            with pytest.raises(Refused, match="is not told who sends"):
                gateways.ask("sender_revoke", sock, named="alice")
        assert [row["kid"] for row in gateways.ask("senders", after=None)["senders"]] == [ALICE.kid]


def test_a_key_is_one_senders_for_good_and_a_revoked_one_does_not_come_back(tmp_path: Path) -> None:
    other = Signer("alice")
    with running(tmp_path / "ledger", program=SERVE_OPERATOR) as ledger:
        for each in (ALICE, other):
            assert ledger.ask("sender_add", **fields(each)) == each.kid
        with pytest.raises(Refused, match="known already"):
            ledger.ask("sender_add", **fields(ALICE, name="bob"))
        assert ledger.ask("sender_revoke", named=ALICE.kid) == [ALICE.kid]
        with pytest.raises(Refused, match="known already"):
            ledger.ask("sender_add", **fields(ALICE))
        assert ledger.ask("sender_revoke", named="alice") == [other.kid]
        assert ledger.ask("sender_revoke", named="alice") == []
        assert ledger.ask("sender", kid="nobody's") is None
        with pytest.raises(Refused, match="43 characters"):
            ledger.ask("sender_add", **fields(ALICE, key="short"))
        with pytest.raises(Refused, match="one way only"):
            ledger.ask("sender_add", **fields(ALICE, key=ALICE.x[:-1] + chr(ord(ALICE.x[-1]) + 1)))

        async def main() -> None:
            async with client(ledger) as real:
                found = await real.sender(ALICE.kid)
                assert found is not None
                assert (found.name, found.key, found.revoked) == ("alice", ALICE.x, True)
                assert await real.sender("x") is None

        anyio.run(main)


def test_a_key_that_was_made_here_is_private_and_its_public_half_is_accepted(lab: Lab) -> None:
    path = lab.folder / "alice.key"
    made = lab.fumehood("senders", "keygen", str(path), "--json")
    assert made.status == 0, made.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "there already" in lab.fumehood("senders", "keygen", str(path)).one_clear_line()
    public = lab.folder / "alice.pub"
    public.write_text(str(made.said["public"]).replace("'", '"'))
    added = lab.fumehood("senders", "add", "alice", "--key", str(public), "--audience", "a", "--group", "dev", "--json")
    assert added.said == {"sender": "alice", "kid": made.said["kid"]}
    assert read_private_key(path, os.getuid()).kid == made.said["kid"]
    (row,) = lab.fumehood("senders", "list", "--json").said
    assert (row["name"], row["audiences"], row["groups"], row["revoked_at"]) == ("alice", ["a"], ["dev"], None)
    shown = lab.fumehood("senders", "list").stdout
    assert made.said["kid"] in shown
    assert "accepted" in shown
    gone = lab.fumehood("senders", "revoke", made.said["kid"], "--json")
    assert gone.said == {"revoked": [made.said["kid"]]}
    assert "revoked" in lab.fumehood("senders", "list").stdout
    assert "sender_unknown" in lab.fumehood("senders", "revoke", "alice").one_clear_line()


def test_a_kid_that_looks_like_an_option_is_revoked_too(lab: Lab) -> None:
    while not (one := Signer()).kid.startswith("-"):
        pass
    done = subprocess.run(
        [FUMEHOOD, "senders", "add", "odd", "--key", "-"], input=_pem(one), env=lab.env, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == one.kid
    assert lab.fumehood("senders", "revoke", one.kid, "--json").said == {"revoked": [one.kid]}


def _pem(one: Signer) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return one.private.public_key().public_bytes(encoding, form).decode()


def test_keys_are_read_in_every_usual_form_and_everything_else_is_one_clear_line(lab: Lab) -> None:
    encoding, form = serialization.Encoding, serialization.PublicFormat
    one, two, three = Signer(), Signer(), Signer()
    other = generate_private_key(SECP256R1())
    secret = one.private.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    texts = {
        "pem": (_pem(one), one.kid),
        "ssh": (two.private.public_key().public_bytes(encoding.OpenSSH, form.OpenSSH).decode() + " me@host\n", two.kid),
        "jwk": (f'{{"kty": "OKP", "crv": "Ed25519", "x": "{three.x}", "use": "sig"}}', three.kid),
        "private": (secret, "private key, which is its sender's alone"),
        "d": (f'{{"kty": "OKP", "crv": "Ed25519", "x": "{one.x}", "d": "x"}}', "private key, which is its sender's alone"),
        "p256": (other.public_key().public_bytes(encoding.PEM, form.SubjectPublicKeyInfo).decode(), "another kind of key"),
        "kid": (f'{{"kty": "OKP", "crv": "Ed25519", "x": "{one.x}", "kid": "mine"}}', "expected an Ed25519 public key"),
        "twice": (f'{{"kty": "OKP", "crv": "Ed25519", "x": "{one.x}", "x": "{two.x}"}}', "expected an Ed25519 public key"),
        "rubbish": ("hello", "expected an Ed25519 public key"),
    }
    for name, (text, expected) in texts.items():
        file = lab.folder / f"{name}.pub"
        file.write_text(text)
        done = lab.fumehood("senders", "add", name, "--key", str(file))
        if done.status == 0:
            assert done.stdout.strip() == expected, name
        else:
            assert expected in done.one_clear_line(), name
            assert text.strip() not in done.stderr
    assert {row["name"] for row in lab.fumehood("senders", "list", "--json").said} == {"pem", "ssh", "jwk"}
    planted = lab.folder / "planted.pub"
    planted.write_text(_pem(Signer()))
    planted.chmod(0o666)
    assert "config_unsafe" in lab.fumehood("senders", "add", "planted", "--key", str(planted)).one_clear_line()
    assert "no sender's" in lab.fumehood("senders", "add", "Bad Name", "--key", str(planted)).one_clear_line()
    assert "no key file" in lab.fumehood("senders", "add", "x", "--key", str(lab.folder / "none")).one_clear_line()


def test_what_a_gateway_cannot_ask_of_envelopes_is_one_clear_line(lab: Lab) -> None:
    for words, expected in (
        (("--profile", "python", "--envelope", "maybe"), "expected required, accepted or off"),
        (("--profile", "python", "--audience", "a b"), "expected a name or URL without spaces"),
        (("--envelope", "required"), "--envelope and the options of HTTP"),
    ):
        done = lab.fumehood("gateway", *words)
        assert done.status == 125
        assert expected in done.one_clear_line()


def test_what_a_proxy_cannot_sign_with_is_one_clear_line(lab: Lab) -> None:
    key, open_key, token = (lab.folder / name for name in ("a.key", "b.key", "token"))
    for path in (key, open_key):
        assert lab.fumehood("senders", "keygen", str(path)).status == 0
    open_key.chmod(0o644)
    token.write_text("fh_x\n")
    token.chmod(0o644)
    url = ("--url", "http://127.0.0.1:9/mcp")
    for words, expected in (
        (("--key", str(open_key), *url), "open to others"),
        (("--key", str(lab.folder / "none"), *url), "no key file"),
        (("--key", str(token), *url), "open to others"),
        (("--key", str(key)), "--url URL, or --unix PATH"),
        (("--key", str(key), *url, "--unix", "/x"), "--url URL, or --unix PATH"),
        (("--key", str(key), "--url", "http://gateway.example/mcp"), "expected https://"),
        (("--key", str(key), "--url", "ftp://127.0.0.1/mcp"), "expected https://"),
        (("--key", str(key), *url, "--token-file", str(token)), "open to others"),
        (("--key", str(key), "--unix", str(lab.folder / "none")), "No such file"),
    ):
        done = lab.fumehood("sign-proxy", *words)
        assert done.status == 125
        assert expected in done.one_clear_line()
