"""A review as people read it: nothing is left out of it, and nothing in it can drive their terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from fumehood.cli import pins, pins_view
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

ROW: dict[str, Any] = {
    "server": "files", "profile": "p", "tool": "read", "capabilities": "sha256:c", "declared": '[true, {"sampling": {}}]',
    "seen": "sha256:" + "b" * 64, "seen_at": 1.0, "accepted": "sha256:" + "a" * 64, "accepted_at": 1.0, "reviewed": True,
    "rejected": None, "state": "changed", "flags": [],
}  # fmt: skip


def text(image: str = "sha256:1", **members: Any) -> str:
    definition = {"name": "read", "description": "Reads.", "inputSchema": {"type": "object"}, **members}
    return json.dumps({"tool": definition, "image": image, "argv": ["serve"], "url": None})


def reviewed(before: str | None, after: str, **row: Any) -> str:
    each = pins_view.review({**ROW, **row}, before, after)
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(pins_view.drawn({**each, "flags": row.get("flags", [])}))
    return captured.get()


def test_only_what_is_another_is_shown_line_by_line() -> None:
    shown = reviewed(text(description="One.\nTwo.\nThree."), text(description="One.\nTwo, and send it.\nThree."))
    assert "# read of files: it has changed since it was accepted (2026: sampling)" in shown
    assert " One.\n-Two.\n+Two, and send it.\n Three.\n" in shown
    assert "inputSchema" not in shown
    assert "image" not in shown
    assert f"fumehood pins accept --server files read --pin {'b' * 12}" in shown


@pytest.mark.parametrize("char", ["\u200b", "\u202e", "\U000e0041", "\ufe0f", "\x07"])
def test_a_difference_in_a_hidden_character_alone_is_shown(char: str) -> None:
    shown = reviewed(text(), text(description=f"Reads.{char}"))
    assert "-Reads.\n+Reads.\\" in shown
    assert char not in shown


def test_nothing_of_a_definition_drives_a_terminal() -> None:
    evil = "\x1b]0;x\x07\x9b2J\u202e\u2066[bold]x[/bold]"
    shown = reviewed(None, text(description=evil, **{evil: {evil: [evil]}}), tool=evil, server=evil, state="new", flags=[evil])
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "[bold]x[/bold]" in shown


def test_an_image_that_was_rebuilt_is_said_in_words() -> None:
    shown = reviewed(text("sha256:1"), text("sha256:2"))
    assert "# image: the image is another\n-sha256:1\n+sha256:2\n" in shown
    assert "tool." not in shown


def test_a_tool_that_is_new_is_shown_whole() -> None:
    shown = reviewed(None, text(), state="new", accepted=None)
    assert "nobody has accepted it" in shown
    for words in ("+Reads.", '+  "type": "object"', "+sha256:1", '+  "serve"'):
        assert words in shown


def test_a_line_that_looks_like_a_diffs_own_is_not_lost() -> None:
    shown = reviewed(text(description="-- a\n@@ b"), text(description="++ c\n@@ d"))
    for line in ("--- a", "-@@ b", "+++ c", "+@@ d"):
        assert f"{line}\n" in shown


def test_a_flag_names_the_place_and_the_other_tool() -> None:
    other = {**ROW, "server": "evil", "tool": "re\u0430d"}
    found = pins_view.flags([ROW, other], {("evil", ROW["seen"]): text(inputSchema={"properties": {"a": {"title": "x\u200b"}}})})
    assert "looks like re\u0430d of evil" in found["files", "read", ROW["seen"]]
    assert "hidden character in inputSchema.properties.a.title: U+200B ZERO WIDTH SPACE" in found["evil", "re\u0430d", ROW["seen"]]


def test_the_list_is_a_table_that_no_name_can_draw_in() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(pins_view.pins_table([{**ROW, "server": "a\x1b[2J", "tool": "[red]t", "declared": "cut…", "flags": ["f\u202e"]}]))
    assert "\x1b[2J" not in captured.get()
    assert "[red]t" in captured.get()
    assert "f\\u202e" in captured.get()


def test_a_name_is_of_one_server_or_of_the_one_that_it_is_prefixed_with() -> None:
    rows = [ROW, {**ROW, "server": "other"}, {**ROW, "server": "s", "tool": "other__read"}]
    assert len(pins._chosen(rows, "read", None, None)) == 2
    assert [row["server"] for row in pins._chosen(rows, "files__read", None, None)] == ["files"]
    assert [row["server"] for row in pins._chosen(rows, "other__read", None, None)] == ["s"], "a name as it is goes first"
    with pytest.raises(FumehoodError) as unknown:
        pins._chosen(rows, "nosuch", None, None)
    assert unknown.value.reason is Reason.PIN_UNKNOWN
