"""The tokens file: what it may say, who may have written or read it, and which token is whose."""

import os
from pathlib import Path

import pytest

from fumehood.faults import FumehoodError
from fumehood.gateway import senders
from fumehood.model import Sender
from fumehood.reasons import Reason

ALICE, BOB = "a" * 43, "b" * 43
UID = os.getuid()


def line(name: str, token: str) -> str:
    return f"{name}:{senders.digest_of(token)}\n"


def test_a_token_is_its_senders_and_no_other_token_is_anybodys() -> None:
    known = senders.parse_senders(line("alice", ALICE) + line("bob", BOB), "f", 7)
    assert known.of(ALICE) == Sender(uid=7, name="http:alice")
    assert known.of(BOB) == Sender(uid=7, name="http:bob")
    refused = [
        "",
        "alice",
        ALICE[:-1],
        ALICE + "a",
        ALICE.upper(),
        senders.digest_of(ALICE),
        "ü\udcff\ud800",
        "a" * 10**6,
    ]
    assert [known.of(token) for token in refused] == [None] * len(refused)
    assert known.names() == ("alice", "bob")


def test_a_token_can_be_replaced_without_a_moment_in_which_none_works() -> None:
    known = senders.parse_senders(line("alice", ALICE) + line("alice", BOB), "f", 0)
    assert known.of(ALICE) == known.of(BOB)


def test_every_digest_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = senders.hmac.compare_digest

    def watched(known: str, asked: str) -> bool:
        compared.append(known)
        return real(known, asked)

    monkeypatch.setattr(senders.hmac, "compare_digest", watched)
    known = senders.parse_senders(line("alice", ALICE) + line("bob", BOB), "f", 0)
    for token in (ALICE, BOB, "neither"):
        known.of(token)
    assert len(compared) == 6


def test_comments_and_blank_lines_are_nothing() -> None:
    text = f"# who\n\n  {line('alice', ALICE).strip()}  # laptop\n"
    assert senders.parse_senders(text, "f", 0).names() == ("alice",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f:1: expected at least one line"),
        ("# nobody\n", "f:1: expected at least one line"),
        (f"{ALICE}\n", "f:1: expected after"),
        (line("alice", ALICE) + "bob:secret\n", "f:2: expected after `NAME:`"),
        ("Alice:" + "0" * 64, "f:1: expected NAME:SHA256"),
        (":" + "0" * 64, "f:1: expected NAME:SHA256"),
        ("alice:" + "0" * 63 + "G", "f:1: expected after"),
        ("alice:" + "A" * 64, "f:1: expected after"),
        (line("alice", ALICE) + line("bob", ALICE), "f:2: this token is another sender's too"),
    ],
)
def test_a_malformed_line_is_told_by_its_number(text: str, said: str) -> None:
    with pytest.raises(FumehoodError) as caught:
        senders.parse_senders(text, "f", 0)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert said in caught.value.detail
    assert not any(word in str(caught.value) for word in ("secret", ALICE))


def test_a_token_of_ours_is_long_and_new() -> None:
    made = {senders.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(len(token) == 46 and token.startswith("fh_") for token in made)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_tokens_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens"
    path.write_text(line("alice", ALICE))
    path.chmod(mode)
    with pytest.raises(FumehoodError) as caught:
        senders.read_senders(path, UID)
    assert caught.value.reason is Reason.CONFIG_UNSAFE
    path.chmod(0o600)
    assert senders.read_senders(path, UID).names() == ("alice",)


def test_a_missing_tokens_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FumehoodError) as caught:
        senders.read_senders(tmp_path / "none", UID)
    assert "fumehood gateway token" in str(caught.value)
