from __future__ import annotations

import contextlib
import gc
import signal
import time
from typing import Any

import pytest

from fumehood.gateway.schema import Schema, SchemaError, _TooSlowError, closed, limited, python_pattern

STRING = {"type": "string"}
NAMED = {"type": "object", "properties": {"name": STRING}}


def passes(schema: dict[str, Any], arguments: dict[str, Any]) -> bool:
    return Schema(schema).fault(arguments) is None


CASES: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("top level", NAMED, {"name": "x", "admin": 1}, False),
    ("no properties named at the top", {"type": "object"}, {"a": 1}, False),
    ("opened at the top", {"type": "object", "additionalProperties": True}, {"a": 1}, True),
    ("nested", {"type": "object", "properties": {"a": NAMED}}, {"a": {"name": "x", "b": 1}}, False),
    ("nested in a list", {"properties": {"a": {"items": NAMED}}}, {"a": [{"name": "x", "b": 1}]}, False),
    ("nested in a tuple", {"properties": {"a": {"prefixItems": [NAMED]}}}, {"a": [{"b": 1}]}, False),
    ("nested in a map", {"properties": {"a": {"additionalProperties": NAMED}}}, {"a": {"k": {"b": 1}}}, False),
    (
        "nested by reference",
        {"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": NAMED}},
        {"a": {"b": 1}},
        False,
    ),
    (
        "by reference, fits",
        {"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": NAMED}},
        {"a": {"name": ""}},
        True,
    ),
    (
        "below a reference",
        {"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"properties": {"deep": NAMED}}}},
        {"a": {"deep": {"b": 1}}},
        False,
    ),
    ("nested, opened", {"properties": {"a": {**NAMED, "additionalProperties": STRING}}}, {"a": {"b": "x"}}, True),
    (
        "nested, opened by pattern",
        {"properties": {"a": {**NAMED, "patternProperties": {"^x": {}}}}},
        {"a": {"xb": 1}},
        True,
    ),
    ("a free-form map", {"properties": {"a": {"type": "object"}}}, {"a": {"anything": {"b": 1}}}, True),
    (
        "parts of one object",
        {"properties": {"a": {"allOf": [NAMED, {"properties": {"b": {}}}]}}},
        {"a": {"name": "", "b": 1}},
        True,
    ),
    (
        "parts, and one more",
        {"properties": {"a": {"allOf": [NAMED, {"properties": {"b": {}}}]}}},
        {"a": {"c": 1}},
        False,
    ),
    (
        "optional, as pydantic says it",
        {"properties": {"a": {"anyOf": [NAMED, {"type": "null"}]}}},
        {"a": {"b": 1}},
        False,
    ),
    ("optional and null", {"properties": {"a": {"anyOf": [NAMED, {"type": "null"}]}}}, {"a": None}, True),
    (
        "oneOf must not be made to pass by closing",
        {"properties": {"a": {"oneOf": [{"properties": {"n": NAMED}}, {"properties": {"n": {}}}]}}},
        {"a": {"n": {"other": 1}}},
        False,
    ),
    (
        "not keeps its meaning",
        {"properties": {"a": {"not": {"required": ["n"], "properties": {"n": NAMED}}}}},
        {"a": {"n": {"x": 1}}},
        False,
    ),
    ("draft-07 tuple", {"properties": {"a": {"items": [STRING], "additionalItems": False}}}, {"a": ["x", 1]}, False),
    ("draft-07 dependencies", {"properties": {"a": {}, "b": {}}, "dependencies": {"a": ["b"]}}, {"a": 1}, False),
    ("draft-07 by name", {"$schema": "http://json-schema.org/draft-07/schema#", **NAMED}, {"name": "x"}, True),
    ("required", {**NAMED, "required": ["name"]}, {}, False),
    ("$ before a newline", {"properties": {"a": {"pattern": "^a$"}}}, {"a": "a\n"}, False),
    ("digits of other scripts", {"properties": {"a": {"pattern": r"^\d$"}}}, {"a": "\u0663"}, False),
    ("a property that is called pattern", {"properties": {"pattern": STRING}}, {"pattern": "(["}, True),
    ("a property that is called $ref", {"properties": {"$ref": STRING}}, {"$ref": "x"}, True),
]


@pytest.mark.parametrize(("schema", "arguments", "fits"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_every_object_is_closed_unless_the_schema_opens_it(
    schema: dict[str, Any],
    arguments: dict[str, Any],
    fits: bool,
) -> None:
    assert passes(schema, arguments) is fits


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        {"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}},
        {"properties": {"a": {"$ref": "other.json"}}},
        {"allOf": [{"$dynamicRef": "https://json-schema.org/draft/2020-12/schema#meta"}]},
        {"properties": {"a": {"pattern": "(["}}},
        {"properties": {"a": {"pattern": r"\p{L}"}}},
        {"patternProperties": {"([": {}}},
        {"type": "nothing"},
        {"properties": []},
    ],
)
def test_a_schema_that_cannot_be_judged_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError):
        Schema(schema)


def test_a_reference_that_changes_its_base_is_not_followed_out() -> None:
    # With `$id` kept, "#/x" would be looked up at the server's URL.
    schema = {"$id": "http://127.0.0.1:9/", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": STRING}}
    assert passes(schema, {"a": "x"})
    assert not passes(schema, {"a": 1})


def test_a_reference_to_nothing_is_not_passed() -> None:
    assert not passes({"properties": {"a": {"$ref": "#/$defs/missing"}}}, {"a": 1})


def test_an_endless_reference_is_not_passed() -> None:
    assert not passes({"properties": {"a": {"$ref": "#/properties/a"}}}, {"a": 1})


BRANCHING = {"properties": {"a": {"$ref": "#/$defs/d0"}}} | {
    "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(30)} | {"d30": {"const": 0}}
}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 60 + "!"}),
        ({"patternProperties": {"^(a+)+$": {}}}, {"a" * 60 + "!": 1}),
        (BRANCHING, {"a": 1}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"k": n} for n in range(20_000)]}),
    ],
    ids=["pattern", "property pattern", "branches", "unique"],
)
def test_a_judgement_made_to_be_slow_is_ended(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    judge = Schema(schema)
    began_s = time.thread_time()
    assert "took more than" in (judge.fault(arguments) or "")
    assert time.thread_time() - began_s < 0.5
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_limit_that_was_swallowed_once_still_ends_the_work() -> None:
    def work() -> None:
        for _ in range(3):
            try:
                while True:
                    pass
            except BaseException:  # noqa: BLE001, S110 - as the interpreter does in a finaliser
                pass
        while True:
            pass

    began_s = time.thread_time()
    with pytest.raises(_TooSlowError):
        limited(0.05, work)
    assert time.thread_time() - began_s < 1


def test_a_limit_never_interrupts_a_finaliser_of_somebody_else() -> None:
    swallowed: list[object] = []

    class Bystander:
        def __init__(self) -> None:
            self.myself = self

        def __del__(self) -> None:
            try:
                sum(range(20_000))
            except BaseException as error:  # noqa: BLE001 - what the interpreter would swallow
                swallowed.append(error)

    def work() -> None:
        garbage: list[Any] = []
        while True:
            garbage.append([garbage])

    for _ in range(20):
        for _ in range(200):
            Bystander()
        with pytest.raises(_TooSlowError):
            limited(0.005, work)
        assert gc.isenabled()
    assert swallowed == []


def test_a_limit_never_ends_anything_else() -> None:
    for _ in range(2000):
        with contextlib.suppress(_TooSlowError):
            limited(0.0001, lambda: None)
    deadline_s = time.thread_time() + 0.2
    while time.thread_time() < deadline_s:
        pass


def test_a_schema_made_to_be_slow_to_check_is_refused() -> None:
    wide = {"$defs": {"n": {"allOf": [{}] * 2000}}, "properties": {str(n): {"$ref": "#/$defs/n"} for n in range(2000)}}
    began_s = time.thread_time()
    with pytest.raises(SchemaError, match="too long"):
        Schema(wide)
    assert time.thread_time() - began_s < 1.5


def test_the_schema_of_the_server_is_left_as_it_is() -> None:
    schema = {"properties": {"a": {"properties": {}}}}
    assert closed(schema)["properties"]["a"]["unevaluatedProperties"] is False
    assert schema == {"properties": {"a": {"properties": {}}}}


def test_what_is_wrong_is_one_printable_line() -> None:
    fault = Schema(NAMED).fault({"name": 1, "x\n\u202e": 2})
    assert fault is not None
    assert fault.isprintable()


@pytest.mark.parametrize(
    ("pattern", "made"),
    [
        ("^a$", r"(?a:^a\Z)"),
        (r"\$[$]", r"(?a:\$[$])"),
        ("(?<year>x)(?<!y)(?<=z)", "(?a:(?P<year>x)(?<!y)(?<=z))"),
        (r"[\]$]$", r"(?a:[\]$]\Z)"),
    ],
)
def test_patterns_are_read_as_ecma_262_reads_them(pattern: str, made: str) -> None:
    assert python_pattern(pattern) == made
