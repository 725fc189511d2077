"""Cedar, in one module: policies become a checked set, and a set decides.

The trap: Cedar skips a policy that fails while it is evaluated, so a `forbid` that errs forbids nothing. Three things hold against it:
strict validation refuses at load what could err (but arithmetic, which may overflow), any error denies, and whatever is neither a
plain yes nor a plain no denies as well.

Importing cedarpy takes 38 ms, of which its compiled part takes 5; nothing else of it is used here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood.faults import FumehoodError
from fumehood.permission import Need
from fumehood.policies import sayings
from fumehood.reasons import Reason

CALL, WITH_APPROVAL = "call", "call_with_approval"
MOST_POLICIES = 10_000
# What begins or ends a policy, a text, or a comment: all that telling policies apart takes.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|;', re.DOTALL)
_NUMBERED = re.compile(r"policy(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of policies. `shipped`: it is one of ours, by its name alone."""

    name: str
    text: str
    shipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One policy. `places` are those of the arguments that it asks for; None when only running it tells."""

    id: str
    file: str
    line: int
    permits: bool
    text: str
    need: Need
    why: str | None
    shipped: bool
    places: frozenset[str] | None
    conditions: Any = None
    scope: Any = None

    @property
    def where(self) -> str:
        """For people: its file and line."""
        return self.file if self.shipped else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the set says of one action: whether it is permitted, by or against which rules, and what failed."""

    permitted: bool
    rules: tuple[Rule, ...]
    errors: tuple[str, ...]


class PolicyError(FumehoodError):
    """Policies that cannot be used; `problems` are one line each, with file and line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        remedy = "Correct it; `fumehood policy check` names all that is wrong."
        super().__init__(Reason.POLICY_INVALID, f"{problems[0]}{more}", remedy=remedy)


class PolicySet:
    """Policies that were checked, parsed once. Made by `parsed`."""

    def __init__(self, rules: tuple[Rule, ...], handle: Any, schema: Any) -> None:
        self.rules = rules
        self._handle = handle
        self._schema = schema
        places = [rule.places for rule in rules]
        self.places: frozenset[str] | None = None if None in places else frozenset().union(*(each or () for each in places))

    def answer(self, action: str, request: Mapping[str, Any], entities: str) -> Answer:
        """What it says of one action; `entities` are JSON."""
        asked = {**request, "action": {"type": "Action", "id": action}}
        try:
            (said,) = _native().is_authorized_batch([asked], self._handle, entities, self._schema, False)
            return self._answer(json.loads(said))
        except Exception as error:  # noqa: BLE001 - whatever an engine in another language raises, it has permitted nothing
            return Answer(permitted=False, rules=(), errors=(str(error) or type(error).__name__,))

    def _answer(self, said: Mapping[str, Any]) -> Answer:
        found = said["diagnostics"]
        rules = sorted(int(match[1]) for each in found["reason"] if (match := _NUMBERED.fullmatch(each)))
        errors = tuple(_named(each, self.rules) for each in found["errors"])
        if said["decision"] not in ("Allow", "Deny"):
            errors = errors or (f"no decision but {said['decision']}",)
        return Answer(
            permitted=said["decision"] == "Allow" and not errors, rules=tuple(self.rules[number] for number in rules), errors=errors,
        )  # fmt: skip


def parsed(sources: Sequence[Source], schema: str) -> PolicySet:
    """The set that all of these files make. Raises PolicyError, with everything that is wrong."""
    cedar = _native()
    against = cedar.Schema.from_str(schema)
    rules: list[Rule] = []
    problems: list[str] = []
    for source in sources:
        try:
            rules += _rules(source)
        except PolicyError as error:
            problems += error.problems
    seen: dict[str, Rule] = {}
    for rule in rules:
        if (other := seen.setdefault(rule.id, rule)) is not rule:
            problems.append(f"{rule.where}: expected an @id of its own, {rule.id} is the policy at {other.where}")
    if len(rules) > MOST_POLICIES:
        problems.append(f"{len(rules)} policies: expected at most {MOST_POLICIES}")
    if problems:
        raise PolicyError(problems)
    text = "\n".join(rule.text for rule in rules)
    checked = json.loads(cedar.validate_policies(text, against))
    for each in checked["errors"]:
        number = _NUMBERED.fullmatch(each["policy_id"])
        said = _named(each["error"], rules)
        problems.append(f"{rules[int(number[1])].where}: {said}" if number else said)
    if problems or not checked["validation_passed"]:
        raise PolicyError(problems or ["the policies do not fit the schema"])
    return PolicySet(tuple(rules), cedar.PolicySet.from_str(text), against)


def _named(text: str, rules: Sequence[Rule]) -> str:
    """An error with the rules' names in place of their numbers."""
    return _NUMBERED.sub(lambda found: rules[int(found[1])].id if int(found[1]) < len(rules) else found[0], text)


def _rules(source: Source) -> list[Rule]:
    """The policies of one file, each parsed by itself, so that what is wrong has a line."""
    rules: list[Rule] = []
    problems: list[str] = []
    for line, text in _pieces(source.text):
        where = f"{source.name}:{line}"
        try:
            rules += _rule(source, line, text)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise PolicyError(problems)
    return rules


def _rule(source: Source, line: int, text: str) -> Iterator[Rule]:
    found = json.loads(_native().policies_to_json_str(text))
    if found["templates"]:
        raise ValueError("expected a policy without `?principal` and `?resource`: nothing here fills them in")
    if len(found["staticPolicies"]) > 1:
        raise ValueError("expected `;` behind each policy")
    for policy in found["staticPolicies"].values():
        said = sayings.read(policy.get("annotations", {}))
        yield Rule(
            id=said.id or f"{Path(source.name).stem}.{line}", file=source.name, line=line, permits=policy["effect"] == "permit",
            text=text.strip(), need=said.need, why=said.why, shipped=source.shipped, places=_places(policy["conditions"]),
            conditions=policy["conditions"], scope={name: policy[name] for name in ("principal", "action", "resource")},
        )  # fmt: skip


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The policies of a file as text, with the lines that they begin at. What follows the last `;` is one too."""
    begin = 0
    ends = [*(found.end() for found in _TOKENS.finditer(text) if found[0] == ";"), len(text)]
    for end in ends:
        piece = text[begin:end]
        bare = re.sub(r"\A(?:\s|//[^\n]*(?:\n|\Z))+", "", piece)
        if bare:
            yield text.count("\n", 0, end - len(bare)) + 1, bare
        begin = end


def _places(conditions: Any) -> frozenset[str] | None:
    """The arguments that conditions ask for by literal names; None when a name is computed."""
    found: set[str] = set()
    todo = [conditions]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo.extend(node)
        elif isinstance(node, dict):
            for name, inner in node.items():
                if name in ("hasTag", "getTag"):
                    literal = inner["right"].get("Value") if isinstance(inner["right"], dict) else None
                    if not isinstance(literal, str):
                        return None
                    found.add(literal)
                todo.append(inner)
    return frozenset(found)


@functools.cache
def _native() -> Any:
    """The compiled part of cedarpy, without the 30 ms of Python around it, and under its own name, so that nobody loads it twice."""
    name = "cedarpy._internal"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("cedarpy")
    folders = [] if package is None else package.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("_internal*.so"))]
    spec = importlib.util.spec_from_file_location(name, files[0]) if files else None
    if spec is None or spec.loader is None:
        raise FumehoodError(Reason.INTERNAL, "cedarpy is not installed as it should be", remedy="Install fumehood again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

