"""What an approver reads is what would happen: nothing hides, nothing is left out without a word, no line is a caller's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.approvals import prompt
from fumehood.approvals.prompt import ARGUMENTS_BYTES, arguments_text, cut, fitting, lines, shown_arguments
from fumehood.disguises import unmistakable
from fumehood.permission import Need

QUESTION: dict[str, Any] = {
    "kind": "tool", "tool": "push", "server": "git", "front_door": "gateway", "session": None, "sender": "root", "tenant": "local",
    "uid": 0, "request": "sha256:r", "profile": "git", "profile_digest": "sha256:p", "engine": None, "image": "sha256:i",
    "pin": "sha256:n", "policy": "owner/1", "rule": "ask.1", "workspace": None, "why": ["it pushes"], "may": ["It cannot reach a network."],
    **shown_arguments("{}"),
}  # fmt: skip
NEED = {"approvers": None, "count": 1, "requester": False}


def shown(most: int = ARGUMENTS_BYTES, **changed: Any) -> list[str]:
    row = {"id": "0" * 26, "binding": "sha256:b", "until": 0.0, "question": {**QUESTION, **changed}, "need": NEED, "votes": []}
    return list(lines(row, most, 10_000))


def with_arguments(arguments: dict[str, Any]) -> list[str]:
    return shown(**shown_arguments(arguments_text(arguments)))


def test_everything_that_matters_is_there() -> None:
    text = "\n".join(shown(workspace={"path": "/w", "mode": "rw", "device": 1, "inode": 2, "contents": "contents not pinned"}, session="s" * 26))
    for word in (
        "approval " + "0" * 26, "tool push of the server git", "root (uid 0, tenant local), by gateway", "because    it pushes", "/w (rw), contents not pinned",
        "in a box that earlier calls used", "git, sha256:p", "It cannot reach a network.", "sha256:i", "sha256:n", "owner/1", "any approver",
        "1970-01-01 00:00:00 UTC", "binding    sha256:b",
    ):  # fmt: skip
        assert word in text, word


@pytest.mark.parametrize(
    ("text", "as_shown"),
    [
        ("\x1b[2J\x1b[Happroved", "\\u001b[2J\\u001b[Happroved"),
        ("safe\u202egnp.exe", "safe\\u202egnp.exe"),
        ("a\u200bb", "a\\u200bb"),
        ("\U000e0061", "\\U000e0061"),
        ("p\u0430y", "p\\u0430y"),  # one letter is Cyrillic
        ("\u0440\u0430\u0443", "\\u0440\\u0430\\u0443"),  # all of them are, and read as ASCII
        ("\uff50ay", "\\uff50ay"),
        ("\u043f\u0440\u0438\u0432\u0435\u0442", "\u043f\u0440\u0438\u0432\u0435\u0442"),
        ("caf\u00e9", "caf\u00e9"),
        ("a\nb", "a\\nb"),
        ("\x9b31m", "\\u009b31m"),
    ],
)
def test_a_disguise_is_shown_as_what_it_is(text: str, as_shown: str) -> None:
    assert unmistakable(text) == as_shown
    for name in ("tool", "server", "sender"):
        assert as_shown in "\n".join(shown(**{name: text}))
    assert as_shown in "\n".join(shown(why=[text]))


def test_arguments_are_a_member_a_line_and_escaped() -> None:
    text = "\n".join(with_arguments({"to": "\x1b[2J", "word": "\u043f\u0440\u0438\u0432\u0435\u0442", "like": "p\u0430y", "flip": "\u202e"}))
    assert '"to": "\\u001b[2J"' in text
    assert "\u043f\u0440\u0438\u0432\u0435\u0442" in text
    assert '"like": "p\\u0430y"' in text
    assert '"flip": "\\u202e"' in text


def test_a_line_that_a_terminal_would_fold_is_folded_and_marked() -> None:
    pretence = "  needs      nobody"
    row = {"id": "0" * 26, "binding": "b", "until": 0.0, "need": NEED, "question": {**QUESTION, "tool": " " * 59 + pretence}}
    found = list(lines(row, ARGUMENTS_BYTES, 80))
    assert all(len(line) <= 80 for line in found)
    assert not any(line.startswith(pretence) for line in found)
    wide = list(prompt.folded("\u4f60" * 100, 80))
    assert [len(piece) for piece in wide[:2]] == [40, len(prompt.FOLDED) + 33]
    assert "".join(piece.removeprefix(prompt.FOLDED) for piece in wide) == "\u4f60" * 100


def test_an_escaped_backslash_is_no_letter() -> None:
    assert '"a": "\\\\u0438"' in "\n".join(with_arguments({"a": "\\u0438"}))


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text(), max_size=3), max_size=4))
def test_no_argument_makes_a_line_of_its_own_or_drives_a_terminal(arguments: dict[str, Any]) -> None:
    for line in with_arguments(arguments):
        assert "\n" not in line
        assert all(char.isprintable() for char in line)
        assert line.startswith(("approval ", "  "))


@given(st.text())
def test_no_text_drives_a_terminal(text: str) -> None:
    assert all(char.isprintable() for char in unmistakable(text))


def test_what_does_not_fit_says_how_much_it_is_and_where_all_of_it_is() -> None:
    text = arguments_text({"a": "x" * 2**20, "b": "rm -rf /"})
    found = "\n".join(shown(**shown_arguments(text)))
    assert f"{len(text) - ARGUMENTS_BYTES} bytes are left out: `fumehood approvals show {'0' * 26} --arguments`" in found
    assert shown_arguments(text)["arguments_sha256"] in found
    brief = "\n".join(shown(100, **shown_arguments(text)))
    assert f"{len(text) - 100} bytes are left out" in brief


def test_arguments_that_are_no_longer_kept_are_named_by_their_digest() -> None:
    decided = {name: value for name, value in QUESTION.items() if name != "arguments"}
    row = {"id": "0" * 26, "binding": "b", "until": 0.0, "question": decided, "need": NEED}
    assert f"no longer kept: sha256 {QUESTION['arguments_sha256']}" in "\n".join(lines(row))


def test_a_long_text_and_a_long_profile_say_what_is_left_out() -> None:
    assert cut("x" * 1024) == "x" * 1024
    assert cut("x" * 1030).endswith("… (6 bytes left out)")
    kept = fitting(["s" * 1000] * 100, "fumehood profile explain git")
    assert kept[-1] == f"{100 - len(kept) + 1} more sentences are left out here: `fumehood profile explain git`."
    assert fitting(["a"], "git") == ["a"]


def test_who_must_agree_is_said_in_words() -> None:
    assert prompt.needed(Need()) == "any approver"
    assert prompt.needed(Need(approvers=frozenset({"bob", "alice"}), count=2)) == "2 of: alice or bob"
    assert "the requester's own confirmation" in prompt.needed(Need(requester=True))
