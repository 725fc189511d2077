"""Text that shows its reader something else than it says, and text that only looks so."""

from __future__ import annotations

import pytest

from fumehood.disguises import hidden, look_alikes, revealed


@pytest.mark.parametrize(
    "char",
    ["\x00", "\x1b", "\x85", "\u00ad", "\u061c", "\u200b", "\u200e", "\u202e", "\u2028", "\u2060", "\u2066", "\u3164", "\ufeff",
     "\ufe00", "\U000e0041", "\U000e0100", "\U000e01ef"],
)  # fmt: skip
def test_a_character_that_nobody_sees_is_found_and_named_wherever_it_is(char: str) -> None:
    definition = {"name": "t", "inputSchema": {"properties": {"a": {"enum": ["x", f"b{char}c"]}}}}
    assert [place.split(":")[0] for place in hidden(definition)] == ["inputSchema.properties.a.enum[1]"]
    assert list(hidden({f"a{char}": 1})), "in a name too"
    assert revealed(f"b{char}c").isascii()


@pytest.mark.parametrize("text", ["a\ufe0fb", "a\u200db", "\u200c", "x\u200d", "\u200dy", "\ufe0f\ufe0f"])
def test_joiners_and_selectors_that_join_and_select_nothing_are_hidden_characters(text: str) -> None:
    assert list(hidden(text))


@pytest.mark.parametrize("text", ["line\nline\ttab", "⚠️ careful", "1️⃣", "👨\u200d👩\u200d👧", "می\u200cخواهم", "क्\u200dष", "naïve", "日本語"])  # noqa: RUF001 - Persian
def test_honest_text_is_not_accused(text: str) -> None:
    assert list(hidden(text)) == []


def test_what_is_revealed_cannot_drive_a_terminal_and_two_texts_that_differ_are_shown_differently() -> None:
    assert revealed("a\x1b[2Jb\u202ec\U000e0041d\ne") == "a\\u001b[2Jb\\u202ec\\U000e0041d\ne"
    assert revealed("⚠️") != revealed("⚠")


@pytest.mark.parametrize(
    "other",
    ["readFile", "read-file", "READ_FILE", "read__file", "r\u0435ad_file", "read_fi1e", "\uff52ead_file", "read_f\u0131le", "rea\u0501_file"],
)
def test_look_alike_tools_are_told_of_each_other(other: str) -> None:
    assert look_alikes({"a": "read_file", "b": other, "c": "write"}) == {"a": ["b"], "b": ["a"]}


def test_equal_names_of_two_servers_are_no_look_alikes() -> None:
    assert look_alikes({"a": "search", "b": "search", "c": "list", "d": "lists"}) == {}
