from __future__ import annotations

from typing import Any

from fumehood.cli.workspace import SHOWN_BYTES, coloured, difference, drawn, told, visible, whole_set


def change(**fields: Any) -> dict[str, Any]:
    return {"op": "file", "path": "f", "kind": "modified", "mode": 0o644, "size_bytes": 1, "sha256": "00", **fields}


def test_text_is_shown_as_a_unified_diff() -> None:
    assert list(difference(change(), b"a\nb\n", b"a\nc\n")) == [
        "modified f (mode 644)",
        "--- a/f",
        "+++ b/f",
        "@@ -1,2 +1,2 @@",
        " a",
        "-b",
        "+c",
    ]


def test_what_is_added_or_removed_has_one_side() -> None:
    assert "--- /dev/null" in list(difference(change(kind="added"), None, b"x\n"))
    assert list(difference(change(op="remove", kind="deleted"), b"x\n", None))[1:3] == ["--- a/f", "+++ /dev/null"]
    assert list(difference(change(op="remove", kind="deleted"), None, None)) == ["removed f"]


def test_binary_and_large_files_are_a_line() -> None:
    for content in (b"a\0b", b"\xff", b"x" * (SHOWN_BYTES + 1)):
        (line,) = difference(change(), b"", content)
        assert line == "binary or large file f: 1 bytes, sha256 00"


def test_a_missing_last_newline_is_told_apart() -> None:
    assert list(difference(change(), b"a", b"a\n"))[-2:] == ["-a\\ (no newline at the end)", "+a"]


def test_a_box_cannot_drive_the_terminal_or_hide_from_the_reader() -> None:
    evil = "\x1b[2K\x1b[1A\x07\x9b31m\u202e\u2066\u200b\r\x0c\u2028+fake\udcff"
    lines = list(difference(change(path=evil), b"", evil.encode("utf-8", "replace").replace(b"?", b"") + b"\n\ttab\n"))
    lines += [told(change(op=op, path=evil, target=evil)) for op in ("symlink", "directory", "mode", "remove")]
    lines += list(
        drawn(
            {"task": "t", "workspace": evil, "why": evil, "refused": [(evil, evil)], "changes": []},
            lambda _: (None, None),
        )
    )
    for line in lines:
        assert all(char.isprintable() or char == "\t" for char in line), repr(line)
    assert "+\ttab" in lines
    assert visible("plain é 日本") == "plain é 日本"


def test_colour_is_ours_alone() -> None:
    assert coloured("+x") == "\x1b[32m+x\x1b[0m"
    assert coloured(" x") == " x"


def test_a_set_of_many_pages_is_one() -> None:
    pages = {0: ([1, 2], 2), 2: ([3], 3), 3: ([4], None)}

    def ask(verb: str, args: Any) -> tuple[Any, list[int]]:
        assert verb == "pending_list"
        changes, following = pages[args["offset"]]
        return {"task": args["task"], "changes": list(changes), "next": following}, []

    assert whole_set(ask, "t") == {"task": "t", "changes": [1, 2, 3, 4]}
