"""The `evidence:` section: what it may say, and that the guide's example is that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fumehood import config
from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"


def test_without_the_section_nobody_is_told() -> None:
    assert config.parse("boxes: 2\n", "f").witnesses == ()


def test_the_guides_example_is_read() -> None:
    (text,) = re.findall(r"```yaml\n# config: fumehood.yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert config.parse(text, "f").witnesses == (
        ("file", "/mnt/elsewhere/fumehood.jsonl", False),
        ("http", "https://witness.example/checkpoints", True),
    )


@pytest.mark.parametrize(
    ("witness", "said"),
    [
        ("[{file: w.jsonl}]", "absolute path"),
        ("[{http: 'https://'}]", "http(s)://HOST"),
        ("[{http: 'http://host:99999/'}]", "http(s)://HOST"),
        ("[{http: 'https://name@host/'}]", "no place for a secret"),
        ("[{required: true}]", "exactly one of file, http"),
        ("[{file: /a}, {file: /a}]", "named twice"),
        ("{file: /a}", "evidence.witness"),
    ],
)
def test_what_it_may_not_say_is_told_with_its_place(witness: str, said: str) -> None:
    with pytest.raises(FumehoodError) as refused:
        config.parse(f"evidence:\n  witness: {witness}\n", "f")
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert said in refused.value.detail
    assert "evidence" in refused.value.detail
