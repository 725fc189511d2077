"""What profiles tell policies: read, kept, shown and explained, and a child that says less is named as one that widens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ruamel.yaml import YAML

import fakes
from fumehood.model import Kind
from fumehood.policies.labels import labels_of
from fumehood.profile.explain import sentences, shown
from fumehood.profile.kept import decoded, encoded
from fumehood.profile.lint import findings

LABELS = """
image: python
tools: {allow: '*'}
labels: {fetch: {returns: untrusted, effect: external}, '*': {reads: private}, 'prompt:p': {returns: untrusted}, nothing: {}}
cost: {fetch: 5, '*': 1}
"""
RULE = "network: {egress: [{http: api.example.com, labels: {effect: external}}]}\n"


@pytest.mark.parametrize(
    ("tool", "kind", "rule", "labels"),
    [
        ("fetch", Kind.TOOL, "", {"untrusted", "external", "private"}),
        ("other", Kind.TOOL, "", {"private"}),
        ("p", Kind.PROMPT, "", {"private", "untrusted"}),
        ("p", Kind.TOOL, "", {"private"}),
        ("other", Kind.TOOL, RULE, {"private", "external"}),
    ],
)
def test_a_call_has_the_labels_of_its_tool_of_all_and_of_what_its_box_may_reach(
    shelf: Any, tool: str, kind: Kind, rule: str, labels: set[str]
) -> None:
    shelf.put("p", LABELS + rule)
    assert labels_of(replace(fakes.call(tool=tool), kind=kind, profile=shelf.load("p"))) == labels


def test_labels_and_costs_are_kept_and_shown_as_they_were_read(shelf: Any) -> None:
    shelf.put("p", LABELS + RULE)
    loaded = shelf.load("p")
    assert decoded(json.loads(json.dumps(encoded(loaded)))) == loaded
    with (shelf.folder / "q.yaml").open("w") as file:
        YAML(typ="safe").dump(shown(loaded), file)
    (shelf.folder / "q.yaml").chmod(0o644)
    assert shelf.load("q").digest == loaded.digest
    said = "\n".join(sentences(loaded))
    assert "every call may return what is private" in said
    assert "`fetch` may have an effect outside and may return what strangers wrote" in said
    assert "Since it can reach api.example.com, policies are told that every call may have an effect outside." in said
    assert "a call counts 1 for others, 5 for `fetch`" in said


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("labels: {fetch: {returns: untrusted}}", "policies are no longer told that fetch is external"),
        ("cost: {fetch: 4}", "counts 4 instead of 5"),
        ("network: {egress: [{http: api.example.com}]}", "network.egress"),
    ],
)
def test_a_child_that_says_less_widens(shelf: Any, child: str, said: str) -> None:
    shelf.put("base-one", LABELS + RULE)
    shelf.put("p", f"extends: base-one\n{child}\n")
    assert any(said in str(problem) for problem in findings(shelf.fully("p")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels: {a: {returns: trusted}}", "labels.a.returns"),
        ("labels: {a: {reads: untrusted}}", "labels.a.reads"),
        ("labels: {a: {more: 1}}", "labels.a.more"),
        ("labels: {'': {}}", "labels"),
        ("cost: {a: -1}", "cost.a"),
        ("cost: {a: 1.5}", "cost.a"),
    ],
)
def test_labels_that_are_none_are_refused(shelf: Any, text: str, said: str) -> None:
    assert any(said in problem for problem in shelf.problems(f"image: python\n{text}\n"))
