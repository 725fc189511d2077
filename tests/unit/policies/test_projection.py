"""What policies are told of a call's arguments, and that what could mean two things is told as nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fakes
from fumehood.model import Kind
from fumehood.policies.naming import resource_of
from fumehood.policies.places import host_of, path_of
from fumehood.policies.projection import tags_of


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", "/workspace/a"), ("a/b", "/workspace/a/b"), ("./a//b/", "/workspace/a/b"), ("/workspace/a", "/workspace/a"),
        ("/workspace", "/workspace"), (".", "/workspace"), ("/etc/passwd", "/etc/passwd"), ("/", "/"), ("a b", "/workspace/a b"),
        ("é", "/workspace/é"), (".git/hooks", "/workspace/.git/hooks"),
        ("..", None), ("/workspace/../etc", None), ("a/../b", None), ("src/%2e%2e/x", None), ("src%2f..", None), ("src\\..\\x", None),
        ("a\0b", None), ("a\nb", None), ("~/x", None), ("", None), ("\uff0e\uff0e/etc", None), ("a\uff0fb", None), ("e\u0301", None),
        ("a\u202eb", None), ("/a/.. /b", None), ("/a/.../b", None), ("x" * 5000, None), ("file:///workspace/a", None),
    ],
)  # fmt: skip
def test_a_path_is_what_a_text_can_only_mean(text: str, path: str | None) -> None:
    assert path_of(text) == path


@given(st.text(max_size=40))
def test_a_path_is_absolute_and_steps_nowhere(text: str) -> None:
    found = path_of(text)
    if found is not None:
        assert found.startswith("/")
        assert path_of(found) == found
        assert not {"..", "."} & set(found.split("/"))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("https://Example.com/x?y", "example.com"), ("https://example.com.:8443", "example.com"), ("http://[::0001]/", "::1"),
        ("http://10.0.0.1/", "10.0.0.1"), ("ssh://git.example", "git.example"),
        ("example.com", None), ("https://a@example.com/", None), ("https://example.com\\@evil/", None), ("https://exa mple.com/", None),
        ("https://ex%61mple.com/", None), ("http://0x7f.1/", None), ("http://2130706433/", None), ("http://127.1/", None),
        ("https://examplé.com", None), ("https://", None), ("https://example.com\n", None), (" https://example.com", None),
    ],
)  # fmt: skip
def test_a_host_is_that_of_a_url_that_reads_one_way(text: str, host: str | None) -> None:
    assert host_of(text) == host


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("a", {"text": "a", "path": "/workspace/a"}),
        (1, {"number": 1}), (2**63 - 1, {"number": 2**63 - 1}), (2**63, {"text": str(2**63)}), (-(2**63) - 1, {"text": str(-(2**63) - 1)}),
        (3.0, {"number": 3}), (0.5, {"text": "0.5"}), (True, {"flag": True}), (None, {}), (["b", "a", "b"], {"list": ["a", "b"]}),
    ],
)  # fmt: skip
def test_an_argument_is_told_by_its_type(value: Any, tags: dict[str, Any]) -> None:
    found = tags_of({"x": value}, {"x"})
    assert {name: each["x"] for name, each in found.items() if each} == tags


def test_places_are_pointers_and_only_what_is_asked_for_is_told() -> None:
    arguments = {"rows": [{"a/b": 1}, {"~": "t"}], "z": True}
    assert tags_of(arguments, {"rows/0/a~1b", "rows/1/~0"})["number"] == {"rows/0/a~1b": 1}
    assert tags_of(arguments, frozenset()) == {name: {} for name in ("text", "number", "flag", "list", "path", "host")}
    assert tags_of(arguments, None)["flag"] == {"z": True}


def test_what_is_called_has_its_servers_name_before_its_own() -> None:
    call = replace(fakes.call(), server="git")
    assert resource_of(call) == ("Tool", "git/git_log", "git")
    assert resource_of(replace(call, kind=Kind.RESOURCE, tool="file:///x")) == ("Resource", "git/file:///x", "git")
    assert resource_of(replace(call, kind=Kind.SESSION, tool=None)) == ("Server", "git", None)
    assert resource_of(replace(call, kind=Kind.COMMAND, tool=None, front_door="catalogue")) == ("Server", "git", None)
    assert resource_of(fakes.call(tool=None)) == ("Command", "git", None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a/~10", max_size=3), inner, max_size=3), max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text("a/~10", max_size=3), JSON, max_size=4))
def test_what_one_place_is_told_of_is_what_is_told_of_all_of_them(arguments: dict[str, Any]) -> None:
    everything = tags_of(arguments, None)
    places = {place for each in everything.values() for place in each}
    assert tags_of(arguments, places) == everything
