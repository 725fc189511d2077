"""Patterns of `allow`, and paths that no rule may be asked about."""

from __future__ import annotations

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress.http_rules import Ambiguous, allows, pattern, segments_of
from fumehood.profile import network_documents
from fumehood.reach import EgressKind, EgressRule


def rule(*allow: str) -> EgressRule:
    return EgressRule(kind=EgressKind.HTTP, name="api.example.org", ports=(443,), allow=allow or None)


def fits(text: str, method: str, path: str) -> bool:
    segments = segments_of(path.encode())
    assert not isinstance(segments, Ambiguous), segments.why
    return allows(rule(text), method, segments)


@pytest.mark.parametrize(
    ("text", "method", "path", "expected"),
    [
        ("GET /repos/acme/**", "GET", "/repos/acme/site/issues", True),
        ("GET /repos/acme/**", "GET", "/repos/acme", True),
        ("GET /repos/acme/**", "GET", "/repos/acme/", True),
        ("GET /repos/acme/**", "GET", "/repos/acmeevil", False),
        ("GET /repos/acme/**", "POST", "/repos/acme/site", False),
        ("GET /repos/*/issues", "GET", "/repos/site/issues", True),
        ("GET /repos/*/issues", "GET", "/repos/a/b/issues", False),
        ("GET /a/*", "GET", "/a/", False),
        ("GET /a", "GET", "/a/", False),
        ("GET /", "GET", "/", True),
        ("GET /", "GET", "/a", False),
        ("* /**", "DELETE", "/anything/at/all", True),
        ("* /**/end", "PUT", "/end", True),
        ("* /**/mid/**/end", "PUT", "/a/mid/b/c/end", True),
        ("* /**/mid/**/end", "PUT", "/a/b/c/end", False),
        ("GET /acme", "GET", "/%61cm%65", True),
        ("GET /%61cme", "GET", "/acme", True),
        ("GET /caf%C3%A9", "GET", "/caf%c3%a9", True),
        ("GET /Acme", "GET", "/acme", False),
    ],
)
def test_a_pattern_matches_whole_segments_of_the_decoded_path(text: str, method: str, path: str, expected: bool) -> None:
    assert fits(text, method, path) is expected


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b", "/a/./b", "/..", "/a/..", "/%2e%2e/b", "/a/%2E%2e", "/a/.%2e/b", "/a/%2e", "/a//b", "//a", "/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b",
        "/a;b", "/a/..;/b", "/a%3bb", "/a%00", "/a%0d%0ab", "/%252e%252e/b", "/a%25%32%66b", "/a%c0%afb", "/a%ef%bc%8fb", "/a/%ef%bc%8e%ef%bc%8e/b",
        "/a%", "/a%2", "/a%zz", "/caf\xe9", "/a%ff", "/a%3fb", "/a%23b", "/a b", "/%e2%80%a5/b", "/a/%20../b", '/a"b', "/a<b",
    ],
)  # fmt: skip
def test_a_path_that_servers_read_differently_is_not_judged(path: str) -> None:
    assert isinstance(segments_of(path.encode("latin-1")), Ambiguous)


@pytest.mark.parametrize(
    "text", ["/a", "GET a", "get /a", "GET /a?b=c", "GET /a#b", "GET /a*", "GET /***", "GET /a//b", "GET /../b", "GET /a%2fb", "GET", ""]
)
def test_a_pattern_that_could_not_match_what_it_says_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        pattern(text)


def test_many_double_stars_cost_no_backtracking() -> None:
    segments = segments_of(b"/a" * 400 + b"/b")
    assert not isinstance(segments, Ambiguous)
    assert not allows(rule("GET " + "/**/a" * 200), "GET", segments)


@given(st.binary(max_size=40))
def test_what_is_judged_means_one_path_only(junk: bytes) -> None:
    read = segments_of(b"/" + junk)
    if not isinstance(read, Ambiguous):
        assert not {".", "..", ""}.intersection(read[:-1])
        assert not any(set(segment) & set("/\\;?#\0\r\n") for segment in read)


class _Allowed(pydantic.BaseModel):
    one: network_documents.Pattern


@given(
    st.sampled_from(["GET", "*", "get", "PO ST", "M-SEARCH", "G*"]),
    st.lists(st.sampled_from(["a", "*", "**", "a*", "..", ".", "", "a b", "é", "a;b", "a%20", "~a", "a:b", "@", "\\", "+"]), max_size=4),
)
def test_whatever_a_profile_may_say_the_gate_can_read(method: str, segments: list[str]) -> None:
    text = f"{method} /{'/'.join(segments)}"
    try:
        _Allowed(one=text)
    except pydantic.ValidationError:
        return
    pattern(text)
