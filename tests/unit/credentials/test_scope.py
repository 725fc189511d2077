"""A scope holds what the profile's template says, with the call's arguments in it, and never more than the operator allows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.credentials.scope import fits_pattern, scope_of
from fumehood.faults import Refused
from fumehood.reasons import Reason

MAXIMUM: dict[str, Any] = {
    "repositories": ["acme/*"],
    "permissions": {"contents": ["read", "write"], "issues": ["read"]},
    "resources": ["arn:aws:s3:::data/**"],
    "count": 5,
    "force": True,
    "role": "reader",
}


def scoped(template: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return scope_of(template, arguments, MAXIMUM, "credentials.x.scope")


def refusal(template: dict[str, Any], **arguments: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        scoped(template, **arguments)
    assert refused.value.reason is Reason.SCOPE_REFUSED
    return refused.value


def test_arguments_go_into_strings_of_the_template() -> None:
    template = {"repositories": ["acme/{args.repo}"], "permissions": {"contents": "read"}, "count": 3, "force": False}
    assert scoped(template, repo="site") == {
        "repositories": ["acme/site"], "permissions": {"contents": "read"}, "count": 3, "force": False,
    }
    assert scoped({"resources": "arn:aws:s3:::data/{args.id}/{args.part}"}, id=7, part="a/b") == {
        "resources": "arn:aws:s3:::data/7/a/b"
    }


@pytest.mark.parametrize(
    "value",
    [
        "*", "si*e", "?", "", "..", "a..b", "../x", "a/../b", "/a", "a/", "a//b", ".git", "a b", "a\n", "\x00", "a,b", 'a"b', "a'b", "a\\b",
        "a;b", "a%2e", "{args.other}", "$(id)", "acme/site\r\n", "é", "x" * 257, "\u202esite", "a:b", "a=b", "a+b", "a&b", "[a]",
        None, True, 1.5, ["site"], {"a": "b"},
    ],
)  # fmt: skip
def test_an_argument_that_could_mean_more_than_a_name_is_refused_and_not_quoted(value: Any) -> None:
    refused = refusal({"repositories": ["acme/{args.repo}"]}, repo=value)
    if isinstance(value, str) and len(value) > 2:
        assert value not in str(refused)


def test_a_missing_argument_is_refused() -> None:
    assert "no text `repo`" in str(refusal({"repositories": ["acme/{args.repo}"]}))


@pytest.mark.parametrize(
    "template",
    [
        {"repositories": ["{args.repo}"]},
        {"repositories": "{args.repo}"},
        {"role": "{args.repo}"},
        {"permissions": {"contents": "{args.repo}"}},
        {"permissions": {"administration": "read"}},
        {"permissions": {"issues": "write"}},
        {"permissions": ["contents"]},
        {"permissions": "contents"},
        {"repositories": []},
        {"repositories": None},
        {"repositories": {}},
        {"repositories": [["acme/site"]]},
        {"repositories": ["acme/site", "other/site"]},
        {"unknown": "x"},
        {"count": 6},
        {"count": True},
        {"count": "5"},
        {"force": 1},
        {"resources": ["arn:aws:s3:::other/x"]},
        {"repositories": ["acme/si*"]},
        {"repositories": ["acme/a/b"]},
    ],
)
def test_what_is_over_the_maximum_is_refused(template: dict[str, Any]) -> None:
    refusal(template, repo="evil/site")


def test_an_argument_makes_no_key_and_no_second_value() -> None:
    refusal({"repositories": ["acme/{args.repo}"]}, repo='site", "acme/other')
    # A key is nobody's template.
    refusal({"{args.repo}": "x"}, repo="role")


def test_a_wildcard_of_the_template_is_wider_than_a_text() -> None:
    assert fits_pattern("acme/*", "acme/*")
    assert fits_pattern("data/a/*", "data/**")
    assert not fits_pattern("acme/a*", "acme/*")
    assert not fits_pattern("acme/a?", "acme/*")
    assert not fits_pattern("**", "acme/*")
    assert not fits_pattern("acme/a\nb/c", "acme/*")


@given(st.text(max_size=40))
def test_no_argument_leaves_what_the_operator_allows(value: str) -> None:
    try:
        scope = scoped({"repositories": ["acme/{args.repo}"], "resources": "arn:aws:s3:::data/{args.repo}"}, repo=value)
    except Refused:
        return
    (repository,) = scope["repositories"]
    assert repository.startswith("acme/")
    assert repository.count("/") == 1
    assert not set(repository) & set("*?\\ \"'{}\n,")
    assert ".." not in scope["resources"]
