"""Profiles for remote servers: no image, and not a word of a box."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fumehood.model import Limits
from fumehood.profile.explain import sentences, shown
from fumehood.profile.kept import decoded, encoded
from fumehood.profile.resolve import profile_digest


def test_a_profile_for_a_remote_server_needs_no_image_and_comes_back_whole(shelf: Any) -> None:
    shelf.put("far", "remote: true\ntools: {allow: [a]}\nlimits: {wall: 5s, idle: 1s, result: 2MiB}\nnetwork: {limits: {bytes_in: 1MiB}}\n")
    found = shelf.load("far")
    assert (found.image, found.tools) == ("", frozenset({"a"}))
    assert found.limits == Limits(wall_s=5.0, idle_s=1.0, result_bytes=2 * 2**20)
    assert found.network.limits.bytes_in == 2**20
    assert decoded(json.loads(json.dumps(encoded(found)))) == found


@pytest.mark.parametrize(
    "field",
    [
        "image: python", "command: [a]", "scope: session", "engine: oci", "runtime: crun", "filesystem: {workspace: rw}",
        "seccomp: default", "environment: {A: b}", "user_namespace: always", "accept_risk: [cve-1]",
        "limits: {memory: 1GiB}", "limits: {cpu: 1.0}", "limits: {pids: 9}", "limits: {output: 1MiB}", "limits: {disk: 1MiB}",
        "network: {egress: [{http: a.example}]}",
    ],
)  # fmt: skip
def test_what_speaks_of_a_box_is_refused_by_name(shelf: Any, field: str) -> None:
    problems = shelf.problems(f"remote: true\n{field}\n")
    assert any("remote: true" in problem for problem in problems), problems


def test_what_it_extends_may_speak_of_no_box_either(shelf: Any) -> None:
    assert any("image" in problem for problem in shelf.problems("extends: python\nremote: true\n"))


def test_without_the_word_an_image_is_needed_as_ever(shelf: Any) -> None:
    assert any("expected an image's name" in problem for problem in shelf.problems("tools: {allow: [a]}\n"))


def test_what_is_told_of_it_is_all_that_holds(shelf: Any) -> None:
    shelf.put("far", "remote: true\ntools: {allow: [a]}\nnetwork: {limits: {bytes_in: 1MiB}}\n")
    found = shelf.load("far")
    told = " ".join(sentences(found))
    assert "out of our hands" in told
    assert not any(word in told for word in ("image", "/workspace", "system calls", "loopback"))
    shelf.put("again", json.dumps(shown(found)))
    assert profile_digest(shelf.load("again")) == profile_digest(found)
