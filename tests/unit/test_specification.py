"""The specification promises nothing that no test holds: its numbers, its names and the tests they stand for agree.

Read, not imported: a test that needs root or an engine must be found on a laptop too.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = ROOT / "docs" / "specification.md"
RULES = ROOT / "docs" / "security-rules.md"
# A promise is one paragraph, followed by a list of pytest node ids without their parameters.
PROMISE = re.compile(r"^\*\*P(\d+)\.\*\* (\S[^\n]*)\n\n((?:\* [^\n]*\n)*)", re.MULTILINE)
NODE = re.compile(r"^\* `(tests/[\w/]+\.py)::(test_\w+)`$")


def promises() -> list[tuple[int, str, list[str]]]:
    """Number, sentence and lines of every promise."""
    text = SPECIFICATION.read_text() + "\n"
    return [(int(number), sentence, lines.splitlines()) for number, sentence, lines in PROMISE.findall(text)]


PROMISES = promises()


@functools.cache
def functions_of(path: str) -> frozenset[str]:
    """The names of a file's test functions."""
    file = ROOT / path
    tree = ast.parse(file.read_text()) if file.is_file() else ast.Module(body=[], type_ignores=[])
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def test_every_promise_is_read() -> None:
    text = SPECIFICATION.read_text()
    assert len(PROMISES) == len(re.findall(r"^\W*P\d+\b", text, re.MULTILINE)) > 0
    listed = sum(len(lines) for _, _, lines in PROMISES)
    assert listed == len(re.findall(r"^\s*[*-] ", text, re.MULTILINE)), "a list that belongs to no promise"


def test_numbers_are_unique_and_without_a_gap() -> None:
    assert sorted(number for number, _, _ in PROMISES) == list(range(1, len(PROMISES) + 1))


def test_no_promise_is_made_twice() -> None:
    assert len({sentence for _, sentence, _ in PROMISES}) == len(PROMISES)


@pytest.mark.parametrize(("number", "sentence", "lines"), PROMISES, ids=[f"P{promise[0]}" for promise in PROMISES])
def test_a_promise_is_a_sentence_that_tests_hold(number: int, sentence: str, lines: list[str]) -> None:
    assert sentence.endswith("."), f"P{number} is no sentence"
    assert lines, f"P{number} names no test"
    assert len(set(lines)) == len(lines), f"P{number} names a test twice"
    for line in lines:
        found = NODE.match(line)
        assert found is not None, f"P{number}: `{line}` is no test's id"
        assert found[2] in functions_of(found[1]), f"P{number}: there is no {found[1]}::{found[2]}"


def test_the_rules_name_promises_and_tests_that_there_are() -> None:
    text = RULES.read_text()
    known = {number for number, _, _ in PROMISES}
    assert {int(number) for number in re.findall(r"\bP(\d+)\b", text)} <= known
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert name in functions_of(path), f"there is no {path}::{name}"
    rows = re.findall(r"^\| (\d+) \|.*\|$", text, re.MULTILINE)
    # Rule 26 is about an engine that there is not.
    assert [int(row) for row in rows] == [*range(1, 26), 27]
    assert [row for row in re.findall(r"^\| \d+ \|.*\|$", text, re.MULTILINE) if not re.search(r"\bP\d+\b", row)] == []
