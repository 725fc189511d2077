"""The section `secrets` of a profile: read, kept, laid over, explained and warned about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fumehood.model import Excuse, OnHidden, OnSecret, Secrets
from fumehood.profile import kept
from fumehood.profile.explain import sentences, shown
from fumehood.profile.lint import findings
from fumehood.screening import formats

DOCS = Path(__file__).resolve().parents[3] / "docs"
ALL = """\
image: a
tools: {allow: [read, write]}
secrets:
  arguments: ask
  bodies: redact
  outputs: block
  hidden: block
  allow:
    - {rule: jwt, where: read/examples, reason: the API's own documented example}
"""


def warnings(shelf: Any, text: str, parent: str = "") -> list[str]:
    if parent:
        shelf.put("base-one", parent)
    shelf.put("p", text)
    return [problem.message for problem in findings(shelf.fully("p"))]


def test_by_default_nothing_gets_in_and_nothing_gets_out(shelf: Any) -> None:
    shelf.put("p", "image: a\n")
    assert shelf.load("p").secrets == Secrets(
        arguments=OnSecret.BLOCK, bodies=OnSecret.BLOCK, outputs=OnSecret.REDACT, hidden=OnHidden.MARK, allow=()
    )


def test_everything_is_read_kept_counted_in_the_digest_and_shown_as_it_was(shelf: Any) -> None:
    shelf.put("p", ALL)
    found = shelf.load("p")
    excuse = Excuse(rule="jwt", where="read/examples", reason="the API's own documented example")
    assert found.secrets == Secrets(
        arguments=OnSecret.ASK, bodies=OnSecret.REDACT, outputs=OnSecret.BLOCK, hidden=OnHidden.BLOCK, allow=(excuse,)
    )
    assert kept.decoded(json.loads(json.dumps(kept.encoded(found)))) == found
    shelf.put("again", json.dumps(shown(found)))
    assert shelf.load("again").digest == found.digest
    for before, after in (("ask", "redact"), ("bodies: redact", "bodies: allow"), ("outputs: block", "outputs: allow"), ("hidden: block", "hidden: mark"), ("own documented", "other")):
        shelf.put("p", ALL.replace(before, after))
        assert shelf.load("p").digest != found.digest, after


def test_a_child_changes_what_it_names(shelf: Any) -> None:
    shelf.put("base-one", ALL)
    shelf.put("p", "extends: base-one\nsecrets: {outputs: redact}\n")
    found = shelf.load("p").secrets
    assert (found.outputs, found.arguments, len(found.allow)) == (OnSecret.REDACT, OnSecret.ASK, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{arguments: warn}", "secrets.arguments: expected"), ("{bodies: ask}", "secrets.bodies: expected"), ("{outputs: ask}", "secrets.outputs: expected"),
        ("{allow: [{rule: nothing-known, where: '*', reason: a b c}]}", "expected one of anthropic-key, "),
        ("{allow: [{rule: '*', where: '*', reason: a b c}]}", "expected one of anthropic-key, "),
        ("{allow: [{rule: issued-credential, where: '*', reason: a b c}]}", "nobody excuses a credential that was issued here"),
        ("{allow: [{rule: jwt, where: 'a/*', reason: a b c}]}", 'expected "*", a tool'), ("{allow: [{rule: jwt, where: 'a*', reason: a b c}]}", 'expected "*", a tool'),
        ("{allow: [{rule: jwt, where: a//b, reason: a b c}]}", 'expected "*", a tool'), ("{allow: [{rule: jwt, where: a, reason: because}]}", "in 3 words or more"),
        ("{allow: [{rule: jwt, where: a}]}", "secrets.allow[0].reason: expected this field"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_what_was_expected(shelf: Any, text: str, said: str) -> None:
    (line,) = shelf.problems(f"image: a\nsecrets: {text}\n")
    assert said in line


def test_lint_names_every_excuse_and_whatever_is_not_looked_for(shelf: Any) -> None:
    loose = "secrets: {arguments: allow, bodies: allow, outputs: allow, hidden: allow, allow: [{rule: jwt, where: '*', reason: a b c}, {rule: jwt, where: other, reason: a b c}]}\n"
    said = "\n".join(warnings(shelf, "extends: base-one\n" + loose, parent="image: a\ntools: {allow: [read]}\n"))
    for expected in (
        "widens base-one: allow instead of block", "widens base-one: allow instead of redact", "widens base-one: allow instead of mark",
        "takes jwt at *, jwt at other for no secret", "lets a jwt pass at any tool's arguments, bodies and results: a real one, too",
        "has no effect: other is no tool that `tools.allow` names", "looks for no known format of a secret in the arguments of calls",
        "lets a server say to a model what nobody sees",
    ):
        assert expected in said
    assert warnings(shelf, "image: a\nsecrets: {arguments: block, outputs: block, hidden: block}\n") == []


def test_explain_says_it_in_sentences(shelf: Any) -> None:
    shelf.put("p", ALL + "network: {egress: [{http: api.example.org, credential: k}]}\n")
    said = sentences(shelf.load("p"))
    assert "Calls with a secret in their arguments need an approval; a result with one is not given." in said
    assert "Other secrets are blanked out of requests that a credential is written into." in said
    assert "A result with hidden characters is not given." in said
    assert "A jwt at read/examples is taken for none: the API's own documented example" in said


def test_the_guide_names_every_rule() -> None:
    text = (DOCS / "secrets.md").read_text()
    assert all(f"`{rule}`" in text for rule in formats.rules())
