"""Seccomp files into `SeccompPolicy`: names, numbers and reasons that people can review. Pure except `syscalls`' table.

A file has a `default` (an errno, or `allow` for filters of our own processes), optionally `extends`, and `rules`. Every
rule has a `reason`. A rule holds when all its `when` tests hold; a test with several `values` is several rules. Names
that Linux does not have are errors: a misspelt entry of a denylist would be a hole, and nobody would notice.

A name has one action in a file. In a file that `extends` another, rules with the parent's action for a name are added
to the parent's, and rules with another action replace them: so `socket: errno` closes what the parent allowed.
What must never be allowed is not judged here but by the broker (`broker.filters.check_floor`), for every caller alike.
"""

from __future__ import annotations

import errno
import itertools
from typing import Literal

from pydantic import Field

from fumehood.model import ArgumentTest, SeccompPolicy, SeccompRule
from fumehood.profile.fields import Name, Strict, Text
from fumehood.profile.problems import Problem, Problems, nearest
from fumehood.profile.source import Source
from fumehood.profile.syscalls import SYSCALLS
from fumehood.profile.validation import validate


class WhenDocument(Strict):
    """One test on one argument. Arguments are compared as 64 bits unless `mask` says which of them count."""

    argument: int = Field(ge=0, le=5, description="Which argument, from 0.")
    op: Literal["eq", "ne", "lt", "le", "gt", "ge"] = Field(default="eq", description="How it is compared.")
    mask: int | None = Field(default=None, ge=0, lt=2**64, description="Compare only these bits; with `eq` alone.")
    values: tuple[int, ...] = Field(
        min_length=1, max_length=128, strict=False, description="Any of these; `ne` and the order tests take one."
    )


class RuleDocument(Strict):
    """System calls that share an action and the reason for it."""

    reason: Text = Field(min_length=8, description="Why, for the next person who wonders.")
    action: Literal["allow", "errno", "kill"] = Field(default="allow", description="What happens to the call.")
    errno: str = Field(default="EPERM", description="The error of `action: errno`, by name.")
    names: tuple[str, ...] = Field(min_length=1, strict=False, description="System calls by name.")
    when: tuple[WhenDocument, ...] = Field(
        default=(), max_length=6, strict=False, description="Tests that must all hold."
    )


class SeccompDocument(Strict):
    """A seccomp file."""

    extends: Name | None = Field(default=None, description="Another seccomp file; one level.")
    description: Text = Field(default="", description="One line for people.")
    default: str | None = Field(default=None, description="An errno by name, or `allow` (never for a box).")
    rules: tuple[RuleDocument, ...] = Field(default=(), strict=False, description="What is not the default.")


def read(source: Source) -> SeccompDocument:
    """A seccomp file as a document. Raises Problems."""
    document = validate(source, SeccompDocument)
    problems = [problem for number, rule in enumerate(document.rules) for problem in _judge_rule(source, number, rule)]
    problems += _judge_actions(source, document)
    if document.default is None and document.extends is None:
        problems.append(source.problem((), "expected `default`, an errno such as EPERM"))
    if document.default not in (None, "allow") and not _errno(document.default):
        message = f"expected an errno's name or `allow`, found {document.default!r}"
        problems.append(source.problem(("default",), message))
    if problems:
        raise Problems(problems)
    return document


def policy(name: str, document: SeccompDocument, parent: SeccompDocument | None = None) -> SeccompPolicy:
    """The policy a file and the one it extends describe together."""
    own = tuple(rule for document_rule in document.rules for rule in _rules(document_rule))
    default = document.default
    inherited: list[SeccompRule] = []
    if parent is not None:
        default = default or parent.default
        actions = {call: rule.action for rule in own for call in rule.names}
        for rule in (rule for document_rule in parent.rules for rule in _rules(document_rule)):
            names = tuple(call for call in rule.names if actions.get(call, rule.action) == rule.action)
            if names:
                inherited.append(SeccompRule(names=names, action=rule.action, errno=rule.errno, tests=rule.tests))
    return SeccompPolicy(
        name=name,
        default_errno=None if default == "allow" else _errno(default),
        rules=(*inherited, *own),
    )


def _rules(rule: RuleDocument) -> list[SeccompRule]:
    """A rule for every way to choose one value of each test."""
    choices = [[_test(test, value) for value in test.values] for test in rule.when]
    return [
        SeccompRule(
            names=rule.names, action=rule.action, errno=_errno(rule.errno) if rule.action == "errno" else 0, tests=tests
        )
        for tests in itertools.product(*choices)
    ]


def _test(test: WhenDocument, value: int) -> ArgumentTest:
    if test.mask is None:
        return ArgumentTest(index=test.argument, op=test.op, value=value)
    return ArgumentTest(index=test.argument, op="masked_eq", value=value, mask=test.mask)


def _errno(name: str | None) -> int:
    number = getattr(errno, name, 0) if name and name.startswith("E") and name.isupper() else 0
    return number if isinstance(number, int) else 0


def _judge_rule(source: Source, number: int, rule: RuleDocument) -> list[Problem]:
    at = ("rules", number)
    problems = [
        source.problem((*at, "names", position), f"expected a system call, found {name!r}{nearest(name, SYSCALLS)}")
        for position, name in enumerate(rule.names)
        if name not in SYSCALLS
    ]
    if not _errno(rule.errno):
        problems.append(source.problem((*at, "errno"), f"expected an errno's name such as EPERM, found {rule.errno!r}"))
    if "errno" in rule.model_fields_set and rule.action != "errno":
        problems.append(source.problem((*at, "errno"), "expected no errno: the action is not `errno`", key=True))
    arguments = [test.argument for test in rule.when]
    for position, test in enumerate(rule.when):
        where = (*at, "when", position)
        if arguments.index(test.argument) != position:
            # libseccomp takes one comparison an argument in a rule.
            problems.append(source.problem(where, f"expected each argument once, found {test.argument} again"))
        if test.mask is not None and test.op != "eq":
            problems.append(source.problem((*where, "mask"), "expected a mask with `eq` only"))
        if test.op != "eq" and len(test.values) > 1:
            problems.append(source.problem((*where, "values"), f"expected one value with `{test.op}`"))
        for value in test.values:
            if not 0 <= value < 2**64:
                problems.append(source.problem((*where, "values"), f"expected 64-bit numbers from 0, found {value}"))
            elif test.mask is not None and value & ~test.mask:
                message = f"expected values within the mask, found {value:#x}"
                problems.append(source.problem((*where, "values"), message))
    return problems


def _judge_actions(source: Source, document: SeccompDocument) -> list[Problem]:
    """A name that is allowed and refused in one file means whatever the library's order makes of it."""
    seen: dict[str, str] = {}
    problems = []
    for number, rule in enumerate(document.rules):
        for position, name in enumerate(rule.names):
            if seen.setdefault(name, rule.action) != rule.action:
                message = f"expected one action for {name}; an earlier rule says {seen[name]}"
                problems.append(source.problem(("rules", number, "names", position), message))
    return problems
