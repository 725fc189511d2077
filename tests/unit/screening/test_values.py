"""Secrets in JSON values: where they are, and the same values without them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood.model import Finding
from fumehood.reach import Secret, SecretForm
from fumehood.screening.known import ISSUED, KnownSecrets
from fumehood.screening.search import Span, blanked, removed, spans
from fumehood.screening.spellings import forms
from fumehood.screening.values import MOST_PLACES, found, redacted

GITHUB = "ghp" + "_" + "Ab3dEf6hIj9k" * 3
OURS = "canary/+9Zz" + '-of-the-lease"quoted'


def all_heard(rule: str, place: str) -> bool:  # noqa: ARG001 - what `heard` is asked
    return True


@pytest.fixture
def known() -> KnownSecrets:
    made = KnownSecrets()
    made.enter("lease", Secret(form=SecretForm.TOKEN, parts={"token": OURS}))
    return made


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [1, GITHUB]}}, "/a/b/1"),
        ({"a/b~c": f"x {GITHUB} y"}, "/a~1b~0c"),
        ({GITHUB: 1}, "/(name)"),
        ({"x": {GITHUB: {"y": 2}}}, "/x/(name)"),
        ([{"content": [{"type": "text", "text": GITHUB}]}], "/0/content/0/text"),
        (GITHUB, ""),
    ],
)
def test_a_secret_is_found_wherever_it_is_in_a_value(value: Any, place: str, known: KnownSecrets) -> None:
    made, findings = redacted(value, known, all_heard)
    assert findings == (Finding(rule="github-token", place=place),)
    assert GITHUB not in json.dumps(made)
    assert "[secret removed: github-token]" in json.dumps(made)
    assert found(made, known, all_heard) == ()


def test_a_value_without_one_is_itself(known: KnownSecrets) -> None:
    value = {"a": ["b", {"c": None, "d": 1.5}]}
    assert redacted(value, known, all_heard)[0] is value
    excused = {"a": GITHUB}
    assert redacted(excused, known, lambda _, __: False) == (excused, ())
    assert redacted(excused, known, lambda _, __: False)[0] is excused


def test_a_members_name_is_what_stands_before_its_text(known: KnownSecrets) -> None:
    secret = "Ab3dEf6hIj9k" * 3 + "/+ab"
    assert found({"aws_secret_access_key": secret}, known, all_heard) == (Finding(rule="aws-secret-key", place="/aws_secret_access_key"),)
    assert found({"commit": secret}, known, all_heard) == ()


@pytest.mark.parametrize("spelling", sorted(forms(OURS), key=len), ids=lambda each: each[:12].decode("latin-1"))
def test_an_issued_credential_is_found_in_every_spelling(spelling: bytes, known: KnownSecrets) -> None:
    value = {"a": f"before {spelling.decode()} after"}
    made, findings = redacted(value, known, all_heard)
    assert [each.rule for each in findings] == [ISSUED]
    assert spelling.decode() not in made["a"]


def test_a_secret_of_many_lines_is_found_in_json_within_a_text() -> None:
    known = KnownSecrets()
    known.enter_texts("key", ["first line of a key\nsecond line\nthird\u00e9"])
    for text in (json.dumps({"k": "first line of a key\nsecond line\nthird\u00e9"}), json.dumps({"k": "first line of a key\nsecond line\nthird\u00e9"}, ensure_ascii=False)):
        made, findings = redacted(text, known, all_heard)
        assert [each.rule for each in findings] == [ISSUED]
        assert json.loads(made) == {"k": f"[secret removed: {ISSUED}]"}


def test_a_secret_split_over_two_members_is_not_found(known: KnownSecrets) -> None:
    assert found({"a": GITHUB[:20], "b": GITHUB[20:]}, known, all_heard) == (), "as docs/secrets.md says"


def test_two_names_that_become_equal_hide_nothing(known: KnownSecrets) -> None:
    other = "ghp" + "_" + "Zy8xWv5uTs2r" * 3
    made, _ = redacted({GITHUB: 1, other: 2}, known, all_heard)
    assert sorted(made.values()) == [1, 2]


@pytest.mark.parametrize("member", [{"blob": ""}, {"type": "image", "data": ""}, {"type": "audio", "data": ""}])
def test_bytes_in_base64_are_searched_as_what_they_are_and_stay_base64(member: dict[str, str], known: KnownSecrets) -> None:
    name = "blob" if "blob" in member else "data"
    secret = {**member, name: base64.b64encode(b"\x00\xff " + GITHUB.encode()).decode()}
    made, findings = redacted(secret, known, all_heard)
    assert findings == (Finding(rule="github-token", place=f"/{name}"),)
    assert base64.b64decode(made[name]) == b"[secret removed: github-token]"


def test_many_places_are_counted_and_not_all_told(known: KnownSecrets) -> None:
    findings = found([GITHUB] * 1000, known, all_heard)
    assert len(findings) == MOST_PLACES + 1
    assert sum(each.count for each in findings) == 1000


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"\\u0041123456789:' + "Ab3dEf6hIj9" * 3 + 'ab"}', '{"a":"\\rk_live_' + "Ab3dEf6hIj9k" * 2 + '"}',
        '{"a":"x\\\\' + GITHUB + '"}', '{"a":"sq0csp-' + "Ab3dEf6hIj9k" * 3 + 'abcdef\\"b"}', '{"u":"x://a:b\\"c@d"}', '{"u":"x://a:\\u00e9@d"}',
    ],
)  # fmt: skip
def test_json_in_a_text_is_json_without_its_secrets_too(text: str, known: KnownSecrets) -> None:
    json.loads(text)
    made, findings = redacted(text, known, all_heard)
    assert findings, text
    json.loads(made)


@settings(deadline=None)
@given(st.text(alphabet='\\u0041n"/:@_-gh', max_size=12), st.text(alphabet='\\u0041n"/:@', max_size=12), st.integers(0, 3))
def test_what_is_valid_json_stays_so_whatever_is_around_a_secret(before: str, after: str, which: int) -> None:
    secret = [GITHUB, "123456789" + ":" + "Ab3dEf6hIj9" * 3 + "ab", "x://a:b@", "sq0csp" + "-" + "Ab3dEf6hIj9k" * 3 + "abcdefg"][which]
    text = f'{{"a":"{before}{secret}{after}"}}'
    try:
        json.loads(text)
    except ValueError:
        return
    every = spans(text.encode(), KnownSecrets())
    json.loads(removed(text.encode(), every))
    assert len(blanked(text.encode(), every)) == len(text)
    json.loads(blanked(text.encode(), every))


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)), st.text())
def test_any_value_passes_and_keeps_its_shape(value: Any, text: str) -> None:
    known = KnownSecrets()
    if len(text.encode("utf-8", "replace")) >= 8 and text.isprintable():
        known.enter_texts("x", [text])
    made, _ = redacted({"value": value, "more": text}, known, all_heard)
    assert type(made["value"]) is type(value)
    json.dumps(made)


def test_overlapping_secrets_are_one() -> None:
    assert removed(b"0123456789", [Span(2, 6, "a")]) == b"01[secret removed: a]6789"
