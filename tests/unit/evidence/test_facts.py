"""What a record is told always fits it and can always be sent."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fakes import call
from fumehood import wire
from fumehood.evidence.client import closing, opening
from fumehood.evidence.facts import FACTS_BYTES, FILES_BYTES, bounded, listed, plain
from fumehood.ledger.requests import checked
from fumehood.model import FileChange, Outcome, Result, Usage

ANY_TEXT = st.text(st.characters(), max_size=40)  # lone surrogates and controls included
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(ANY_TEXT, ANY_JSON, max_size=6))
def test_any_facts_can_be_sent_and_are_accepted(facts: dict[str, Any]) -> None:
    args = {"task": "0" * 26, "state": "made", "at": 1.5, "facts": bounded(facts)}
    assert checked("event", wire.decode(wire.encode(args)))[1] == args


def test_large_facts_lose_the_largest_and_say_which() -> None:
    kept = bounded({"small": 1, "log": ["x" * 4000] * 20, "other": ["y" * 4000] * 6 + ["z" * 3000]})
    assert kept["small"] == 1
    assert kept["left_out"] == ["log", "other"]
    assert len(json.dumps(kept)) <= FACTS_BYTES


def test_facts_of_nothing_but_names_stay_in_bounds() -> None:
    kept = bounded({f"{number:05d}" * 20: "z" * 200 for number in range(2000)})
    assert len(json.dumps(kept).encode()) <= FACTS_BYTES


def test_depth_ends_in_text() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    assert len(json.dumps(plain(deep))) < 5000


def test_a_surrogate_of_a_file_name_is_escaped() -> None:
    (row,) = listed([FileChange(path="caf\udce9", kind="added")])
    assert row["path"] == "caf\\udce9"


def test_ten_thousand_files_are_listed_as_far_as_they_fit_and_all_counted() -> None:
    files = tuple(FileChange(path=f"d/{number}", kind="added", sha256="a" * 64) for number in range(10_000))
    args = closing(Outcome(task="0" * 26, result=Result.OK, files=files))
    assert args["files_total"] == 10_000
    assert 100 < len(args["files"]) < 10_000
    assert len(json.dumps(args["files"])) <= FILES_BYTES + 1
    assert checked("close", wire.decode(wire.encode(args)))[1] == args


def test_what_the_kernel_did_not_say_stays_null() -> None:
    args = closing(Outcome(task="0" * 26, result=Result.OK, usage=Usage(cpu_user_s=0.5, oom_kills=0)))
    assert args["cpu_user_s"] == 0.5
    assert args["oom_kills"] == 0
    assert args["io_read_bytes"] is None


def test_a_record_opens_without_arguments_but_names_an_ad_hoc_command() -> None:
    assert opening(call(tool=None))["command"] == "python3"
    assert "pass" not in json.dumps(opening(call(tool=None)))
    assert opening(call())["command"] is None
    args = opening(call())
    assert checked("open", args)[1] == args
