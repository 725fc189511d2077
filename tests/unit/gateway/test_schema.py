from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import time
from typing import Any

import jsonschema
import pytest

from fumehood.gateway.closing import closed, places
from fumehood.gateway.schema import Schema, SchemaError, _TooSlowError, limited, python_pattern

STRING = {"type": "string"}
NAMED = {"type": "object", "properties": {"name": STRING}}
COUNTS = {"type": "object", "additionalProperties": {"type": "integer"}}


def passes(schema: dict[str, Any], arguments: dict[str, Any], *opened: str) -> bool:
    return Schema(schema, opens=places(opened, "t")).fault(arguments) is None


CASES: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("top level", NAMED, {"name": "x", "admin": 1}, False),
    ("no properties named at the top", {"type": "object"}, {"a": 1}, False),
    ("opened by itself at the top", {"type": "object", "additionalProperties": True}, {"a": 1}, False),
    ("opened by itself, with remarks", {"properties": {"a": {**NAMED, "additionalProperties": {"title": "x"}}}}, {"a": {"b": 1}}, False),
    ("opened by itself later", {"properties": {"a": {**NAMED, "unevaluatedProperties": True}}}, {"a": {"b": 1}}, False),
    ("opened in a part", {"properties": {"a": {"allOf": [{"additionalProperties": True}, NAMED]}}}, {"a": {"b": 1}}, False),
    ("anything", {"properties": {"a": {}, "b": True}}, {"a": [1, "x", [None]], "b": {}}, True),
    ("anything, an object", {"properties": {"a": {}}}, {"a": {"b": 1}}, False),
    ("anything, an object in a list", {"properties": {"a": True}}, {"a": [[{"b": 1}]]}, False),
    ("any list", {"properties": {"a": {"type": "array"}}}, {"a": [1, {"b": 1}]}, False),
    ("any list of values", {"properties": {"a": {"type": "array"}}}, {"a": [1, [2]]}, True),
    ("behind a tuple", {"properties": {"a": {"prefixItems": [STRING]}}}, {"a": ["x", {"b": 1}]}, False),
    ("items: anything", {"properties": {"a": {"items": {}}}}, {"a": [{"b": 1}]}, False),
    ("an exact object", {"properties": {"a": {"const": {"b": {"c": 1}}}}}, {"a": {"b": {"c": 1}}}, True),
    ("a described map", {"properties": {"a": {"type": "object", "additionalProperties": STRING}}}, {"a": {"b": "x"}}, True),
    ("a described map, unfit", {"properties": {"a": {"type": "object", "additionalProperties": STRING}}}, {"a": {"b": 1}}, False),
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
    ("a free-form map", {"properties": {"a": {"type": "object"}}}, {"a": {"anything": {"b": 1}}}, False),
    ("a free-form map, empty", {"properties": {"a": {"type": "object"}}}, {"a": {}}, True),
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
        {"properties": {"a": {"oneOf": [{"properties": {"n": NAMED}}, {"properties": {"n": COUNTS}}]}}},
        {"a": {"n": {"other": 1}}},
        False,
    ),
    (
        "not keeps its meaning behind a reference",
        {"properties": {"a": {"not": {"$ref": "#/$defs/x"}, "properties": {"n": COUNTS}}}, "$defs": {"x": {"properties": {"n": NAMED}}}},
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
def test_every_object_is_closed_to_what_the_schema_does_not_describe(
    schema: dict[str, Any],
    arguments: dict[str, Any],
    fits: bool,
) -> None:
    assert passes(schema, arguments) is fits


FREE: dict[str, Any] = {"type": "object"}
TREE: dict[str, Any] = {
    "properties": {"top": {"$ref": "#/$defs/node"}, "side": FREE},
    "$defs": {"node": {"properties": {"meta": FREE, "child": {"$ref": "#/$defs/node"}, "many": {"items": {"$ref": "#/$defs/node"}}}}},
}
OPENED: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...], bool]] = [
    ("the tool", {"properties": {"a": FREE}}, {"a": {"b": {"c": 1}}}, ("t",), True),
    ("every tool", {"properties": {"a": FREE}}, {"a": {"b": {"c": 1}}}, ("*",), True),
    ("another tool", {"properties": {"a": FREE}}, {"a": {"b": 1}}, ("t2", "t2/a"), False),
    ("the place", {"properties": {"a": FREE, "b": FREE}}, {"a": {"x": {"y": 1}}}, ("t/a",), True),
    ("another place", {"properties": {"a": FREE, "b": FREE}}, {"b": {"x": 1}}, ("t/a",), False),
    ("a place below", {"properties": {"a": {"properties": {"b": FREE}}}}, {"a": {"b": {"x": 1}}}, ("t/a/b",), True),
    ("beside a place below", {"properties": {"a": {"properties": {"b": FREE, "c": FREE}}}}, {"a": {"c": {"x": 1}}}, ("t/a/b",), False),
    ("in a list", {"properties": {"a": {"items": {"properties": {"b": FREE}}}}}, {"a": [{"b": {"x": 1}}]}, ("t/a/b",), True),
    ("a part", {"properties": {"a": {"anyOf": [{"properties": {"b": FREE}}, {"type": "null"}]}}}, {"a": {"b": {"x": 1}}}, ("t/a/b",), True),
    ("by reference", TREE, {"top": {"meta": {"x": 1}}}, ("t/top/meta",), True),
    ("by reference, deeper", TREE, {"top": {"child": {"meta": {"x": {"y": 1}}}}}, ("t/top/child/meta",), True),
    ("by reference, elsewhere", TREE, {"top": {"child": {"meta": {"x": 1}}}}, ("t/top/meta",), False),
    ("by reference, all below", TREE, {"top": {"child": {"many": [{"meta": {"x": 1}}]}}}, ("t/top",), True),
    ("by reference, all below and no more", TREE, {"side": {"x": 1}}, ("t/top",), False),
    ("an opened place keeps what it names closed", TREE, {"top": {"other": 1}}, ("t/top",), False),
    ("at the top, which says that it is open", {"additionalProperties": True}, {"x": {"y": 1}}, ("t",), True),
    ("at the top, which does not", NAMED, {"x": 1}, ("t",), False),
    ("a name with a slash", {"properties": {"a/b": FREE, "a": FREE}}, {"a/b": {"x": 1}}, ("t/a~1b",), True),
]


@pytest.mark.parametrize(("schema", "arguments", "opened", "fits"), [case[1:] for case in OPENED], ids=[case[0] for case in OPENED])
def test_the_profile_opens_places_and_no_others(
    schema: dict[str, Any], arguments: dict[str, Any], opened: tuple[str, ...], fits: bool
) -> None:
    assert passes(schema, arguments, *opened) is fits
    if fits:
        assert not passes(schema, arguments)


@pytest.mark.parametrize("ref", ["#/$defs/a", "#", "#/properties/x"])
def test_references_in_circles_do_not_keep_the_closing_busy(ref: str) -> None:
    schema = {
        "properties": {"x": {"$ref": ref}, "y": FREE},
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}], "items": {"$ref": "#/$defs/a"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, FREE]}},
    }
    assert passes(schema, {"y": {"z": 1}}, "t/y", "t/x/y/z", "t/x/x/x")


def test_what_no_schema_describes_is_told_apart_from_what_it_forbids() -> None:
    judge = Schema({"properties": {"a": {"type": "object", "properties": {"n": {"type": "integer"}}}}})
    undescribed, forbidden = judge.fault({"a": {"x": 1}}), judge.fault({"a": {"n": "1"}})
    assert undescribed is not None
    assert forbidden is not None
    assert (undescribed.undescribed, forbidden.undescribed) == (True, False)
    assert "'x'" in undescribed.detail


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
        ({"properties": {"a": {"items": {"enum": [{"k": n} for n in range(20_000)]}}}}, {"a": [{"k": 19_999}] * 1000}),
        ({"properties": {"a": {"items": {"not": {"pattern": "(a|aa)+$"}}}}}, {"a": ["a" * 50 + "!"] * 100}),
        ({"propertyNames": {"pattern": "^(a|a)*$"}, "additionalProperties": {"type": "null"}}, {"a" * 50 + "!": None}),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}}, {"a": [[0] * 900] * 900}),
    ],
    ids=["pattern", "property pattern", "branches", "unique", "enum", "not", "names", "recursion"],
)
def test_a_judgement_made_to_be_slow_is_ended(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    judge = Schema(schema)
    began_s = time.thread_time()
    fault = judge.fault(arguments)
    assert fault is not None
    assert "took more than" in fault.detail
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
    assert closed(schema)["properties"]["a"]["additionalProperties"] is False
    assert schema == {"properties": {"a": {"properties": {}}}}


def test_what_is_wrong_is_one_printable_line() -> None:
    fault = Schema(NAMED).fault({"name": 1, "x\n\u202e": 2})
    assert fault is not None
    assert fault.detail.isprintable()


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


def test_members_that_are_judged_without_the_library_are_judged_as_it_would() -> None:
    types = ({"type": one} for one in ("string", "integer", "number", "boolean", "null", "object", ["string", "null"]))
    more: tuple[Any, ...] = ({}, {"maxLength": 1}, {"minimum": 1}, {"maxLength": 0, "title": "t"}, {"enum": ["a", 1]})
    members = [{**one, **other} for one, other in itertools.product([{}, *types], more)]
    values = ("", "a", "ab", "\N{GRINNING FACE}", 0, 1, 1.0, 1.5, True, None, {}, [])
    for member, value in itertools.product([True, False, *members], values):
        schema = {"type": "object", "properties": {"a": member}}
        fault = Schema(schema, opens=None).fault({"a": value})
        assert (fault is None) == jsonschema.Draft202012Validator(schema).is_valid({"a": value}), (member, value)
