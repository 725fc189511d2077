"""Seccomp files: mistakes with their place, extending, and what a test with several values means."""

import os
from typing import Any

import pytest

from fumehood.model import ArgumentTest, SeccompPolicy
from fumehood.profile import loader
from fumehood.profile.problems import Problems

HEAD = "default: EPERM\nrules:\n"


def load(shelf: Any, text: str, name: str = "s") -> SeccompPolicy:
    shelf.put(f"seccomp/{name}", text)
    return loader.load_seccomp(name, shelf.folders, os.getuid())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "1:1: expected `default`, an errno such as EPERM"),
        ("default: NOPE", "1:10: default: expected an errno's name or `allow`, found 'NOPE'"),
        (HEAD + "- names: [read]", "3:3: rules[0].reason: expected this field, which has no default"),
        (HEAD + "- {names: [], reason: to read files}", "3:11: rules[0].names: expected at least 1 entries"),
        (HEAD + "- {names: [read], reason: why}", "3:27: rules[0].reason: expected at least 8 characters"),
        (
            HEAD + "- {names: [raed], reason: to read files}",
            "3:12: rules[0].names[0]: expected a system call, found 'raed'",
        ),
        (HEAD + "- {names: [raed], reason: to read files}", "nearest valid name: read"),
        (
            HEAD + "- {names: [165], reason: a number is no name}",
            "3:12: rules[0].names[0]: expected a string, found 165",
        ),
        (HEAD + "- {names: [read], action: log, reason: to read files}", "expected allow, errno or kill, found 'log'"),
        (
            HEAD + "- {names: [read], errno: EPERM, reason: to read files}",
            "expected no errno: the action is not `errno`",
        ),
        (HEAD + "- {names: [read], action: errno, errno: EFOO, reason: to read files}", "expected an errno's name"),
        (HEAD + "- {names: [read], reason: files, when: [{argument: 6, values: [1]}]}", "expected at most 5, found 6"),
        (
            HEAD + "- {names: [read], reason: to read files, when: [{argument: 0, values: [-1]}]}",
            "expected 64-bit numbers",
        ),
        (
            HEAD + "- {names: [read], reason: to read files, when: [{argument: 0, mask: 1, values: [2]}]}",
            "expected values within the mask, found 0x2",
        ),
        (
            HEAD + "- {names: [read], reason: to read files, when: [{argument: 0, op: ne, values: [1, 2]}]}",
            "expected one value with `ne`",
        ),
        (
            HEAD
            + "- {names: [read], reason: of files, when: [{argument: 0, values: [1]}, {argument: 0, values: [2]}]}",
            "expected each argument once, found 0 again",
        ),
        (
            HEAD + "- {names: [read], reason: to read files}\n- {names: [read], action: kill, reason: or rather not}",
            "4:12: rules[1].names[0]: expected one action for read; an earlier rule says allow",
        ),
        ("extends: nosuch\nrules: []", "extends: there is no seccomp file 'nosuch'"),
        ("extends: unix-sockets\nrules: []", "extends: expected one level; unix-sockets itself extends default"),
    ],
)
def test_a_mistake_is_told_with_its_place(shelf: Any, text: str, said: str) -> None:
    with pytest.raises(Problems) as caught:
        load(shelf, text)
    told = [str(problem) for problem in caught.value.problems]
    assert any(said in line for line in told), told


def test_several_values_are_several_rules(shelf: Any) -> None:
    policy = load(
        shelf,
        HEAD + "- names: [socket]\n  reason: both families\n"
        "  when: [{argument: 0, values: [2, 10]}, {argument: 2, mask: 3, values: [1]}]",
    )
    assert [rule.tests for rule in policy.rules] == [
        (ArgumentTest(index=0, op="eq", value=2), ArgumentTest(index=2, op="masked_eq", value=1, mask=3)),
        (ArgumentTest(index=0, op="eq", value=10), ArgumentTest(index=2, op="masked_eq", value=1, mask=3)),
    ]


def test_extending_adds_to_the_same_action_and_replaces_another(shelf: Any) -> None:
    load(shelf, HEAD + "- {names: [read, write, close], reason: the parent's rule}", "parent")
    policy = load(
        shelf,
        "extends: parent\nrules:\n- {names: [dup], reason: one more call}\n"
        "- {names: [write], action: errno, reason: not this one}",
        "child",
    )
    assert [(rule.names, rule.action) for rule in policy.rules] == [
        (("read", "close"), "allow"),
        (("dup",), "allow"),
        (("write",), "errno"),
    ]
    assert policy.default_errno == 1


def test_every_shipped_entry_has_a_reason() -> None:
    for name in ("browser", "default", "unix-sockets", "worker"):
        text = (loader.shipped_folder() / "seccomp" / f"{name}.yaml").read_text()
        assert text.count("reason:") == text.count("names:") > 0
