"""What comes out of a box is held against the profile while it still comes: a long line in its memory, streams on a terminal."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import anyio
import pytest

import fakes
from fumehood.execution.screening import KEPT, OVERLAP_BYTES, WINDOW_BYTES, Told, cleaned
from fumehood.memory import Memory
from fumehood.model import Finding, OnSecret, Outcome, Result, Secrets
from fumehood.screening.judging import Screen
from fumehood.screening.known import KnownSecrets

pytestmark = pytest.mark.anyio
GITHUB = "ghp" + "_" + "Ab3dEf6hIj9k" * 3
MARK = "[secret removed: github-token]"
OURS = "canary-of-a-lease"


def screen(secrets: Secrets = Secrets()) -> Screen:  # noqa: B008 - frozen
    known = KnownSecrets()
    known.enter_texts("lease", [OURS])
    one = fakes.call()
    return Screen(replace(one, profile=replace(one.profile, secrets=secrets)), known)


async def through(text: str, with_screen: Screen | None = None) -> tuple[str, tuple[Finding, ...]]:
    held = with_screen or screen()
    with anyio.fail_after(10):
        memory = await cleaned(Memory(text.encode()).seal(), held)
    with memory:
        outcome = held.outcome(Outcome(task="t", result=Result.OK), from_server=True)
        return os.pread(memory.fd, memory.size, 0).decode(), outcome.found


@pytest.mark.parametrize("at", [0, 5, WINDOW_BYTES - 50, WINDOW_BYTES - 20, WINDOW_BYTES - 1, WINDOW_BYTES - OVERLAP_BYTES - 10, WINDOW_BYTES + 3])
async def test_a_secret_in_a_long_line_is_found_wherever_windows_end(at: int) -> None:
    text = json.dumps({"a": "x" * at + " " + GITHUB + " " + "y" * WINDOW_BYTES})
    made, found = await through(text)
    assert made == text.replace(GITHUB, MARK)
    assert found == (Finding(rule="github-token", place=KEPT),)


async def test_a_long_line_without_one_is_the_same_memory() -> None:
    memory = Memory(json.dumps({"a": "x" * 2 * WINDOW_BYTES}).encode()).seal()
    assert await cleaned(memory, screen()) is memory
    memory.close()


async def test_a_private_key_without_an_end_takes_no_more_than_its_text() -> None:
    text = json.dumps({"a": "-----BEGIN " + "PRIVATE KEY-----\n" + "Ab3dEf6h" * 100, "b": [1, {"c": "after"}]})
    made, _ = await through(text)
    assert json.loads(made) == {"a": "[secret removed: private-key]", "b": [1, {"c": "after"}]}


async def test_a_secret_behind_an_escape_leaves_json() -> None:
    text = '{"a":"\\rk_live_' + "Ab3dEf6hIj9k" * 2 + '","b":"\\\\' + GITHUB + '"}'
    json.loads(text)
    made, found = await through(text)
    assert len(json.loads(made)) == 2
    assert len(found) == 2


async def test_of_a_long_line_too_issued_credentials_are_removed_whatever_is_allowed() -> None:
    made, _ = await through(json.dumps({"a": [GITHUB, OURS]}), screen(Secrets(outputs=OnSecret.ALLOW)))
    assert json.loads(made)["a"] == [GITHUB, "[secret removed: issued-credential]"]


async def test_streams_are_told_apart_and_nothing_is_left_behind() -> None:
    heard: list[tuple[str, bytes]] = []
    told = Told(lambda name, data: heard.append((name, data)), screen())
    told.hear("stdout", f"a {GITHUB[:30]}".encode())
    told.hear("stderr", f"b {GITHUB}\n".encode())
    told.hear("stdout", f"{GITHUB[30:]}".encode())
    told.end()
    by_name = {name: b"".join(data for each, data in heard if each == name) for name in ("stdout", "stderr")}
    assert by_name == {"stdout": f"a {MARK}".encode(), "stderr": f"b {MARK}\n".encode()}


@pytest.mark.parametrize("result", [Result.OK, Result.KILLED])
async def test_blocked_nothing_of_it_is_given_and_why_it_was_ended_stays(result: Result) -> None:
    ended = Outcome(task="t", result=result, stdout=b"fine", stderr=GITHUB.encode(), value={"a": 1})
    made = screen(Secrets(outputs=OnSecret.BLOCK)).outcome(ended, from_server=False)
    assert (made.stdout, made.stderr, made.value) == (b"", b"", None)
    assert made.result is (Result.FAILED if result is Result.OK else result)
    assert "github-token at stderr" in made.detail or result is not Result.OK
