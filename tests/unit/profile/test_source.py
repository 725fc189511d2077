"""The YAML that operators may write, and the YAML that attackers would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.profile.problems import Problems
from fumehood.profile.source import MAX_DEPTH, MAX_NODES, parse


def refusal(text: str) -> str:
    with pytest.raises(Problems) as caught:
        parse(text, "f.yaml")
    return str(caught.value.problems[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: [x, 'y', \"z\"]", {"a": ["x", "y", "z"]}),
        ("a: {b: 0x10, c: 0o17, d: -3}", {"a": {"b": 16, "c": 15, "d": -3}}),
        ("a: 1.5", {"a": 1.5}),
        ("a: true\nb: False\nc: null\nd: ~\ne:", {"a": True, "b": False, "c": None, "d": None, "e": None}),
        ("a: yes\nb: 'true'\nc: 010\nd: 1_000", {"a": "yes", "b": "true", "c": "010", "d": "1_000"}),
        ("a: 12:30\nb: 2026-01-01", {"a": "12:30", "b": "2026-01-01"}),
        ("- {a: 1}\n- [[2]]", [{"a": 1}, [[2]]]),
        ("", None),
        ("# nothing\n", None),
        ("a: |\n  text\n", {"a": "text\n"}),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    assert parse(text, "f.yaml").value == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1: a: expected each key once; `a` is already on line 1"),
        ("x:\n  a: 1\n  'a': 3", "f.yaml:3:3: x.a: expected each key once; `a` is already on line 2"),
        ("a: .nan", "f.yaml:1:4: a: expected a plain finite number, found .nan"),
        ("a: [1, -.INF]", "f.yaml:1:8: a[1]: expected a plain finite number, found -.INF"),
        ("a: 1e400", "f.yaml:1:4: a: expected a plain finite number, found 1e400"),
        (
            "a: !!python/object:os.system x",
            "f.yaml:1:4: a: expected no tags, found tag:yaml.org,2002:python/object:os.system",
        ),
        ("a: !x {}", "f.yaml:1:4: a: expected no tags, found !x"),
        ("a: &x 1\nb: *x", "f.yaml:1:4: a: expected no anchors or aliases"),
        ("a: {b: &x {}}", "f.yaml:1:8: a.b: expected no anchors or aliases"),
        ("<<: *x", "f.yaml:1:5: <<: expected no anchors or aliases"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1: expected one document"),
        ("%YAML 1.1\n---\na: on", "f.yaml:2:1: expected no `%` directives"),
        ("? [k]\n: v", "f.yaml:1:3: expected a plain name as key"),
        ("a: [", "f.yaml:1:5: not YAML"),
        ("a:\n\t- b", "f.yaml:2:1: not YAML"),
        ("a: \x01", "not YAML"),
    ],
)
def test_what_is_refused_is_refused_with_its_place(text: str, said: str) -> None:
    assert said in refusal(text)


def test_alias_bomb_is_refused_before_it_expands() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    assert "no anchors or aliases" in refusal("\n".join(lines))


def test_depth_and_size_are_bounded() -> None:
    assert f"at most {MAX_DEPTH} levels" in refusal("[" * 5000 + "]" * 5000)
    assert f"at most {MAX_NODES} values" in refusal("[" + "x, " * (MAX_NODES + 1) + "]")


def test_marks_name_keys_and_values() -> None:
    source = parse("limits:\n  memory: 5\nlist:\n- x\n- y: z\n", "f.yaml")
    assert source.mark(("limits", "memory")) == (2, 11)
    assert source.mark(("limits", "memory"), key=True) == (2, 3)
    assert source.mark(("list", 1, "y")) == (5, 6)
    assert source.mark(("limits", "absent", "deeper")) == (2, 3)


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parse(text, "f.yaml")
    except Problems as problems:
        line = problems.problems[0].line
    else:
        line = 1
    assert line >= 1
