"""The strict model of the `evidence:` section of fumehood.yaml: who outside is told how far the ledger's chain has come."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.profile.fields import AbsolutePath, Strict, expected
from fumehood.profile.problems import Problem, Problems
from fumehood.profile.source import Source

MAX_WITNESSES = 8
_URL = re.compile(r"https?://[^\s@#?]{1,255}(\?[^\s#]{0,512})?")


def _url(value: object) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) and _URL.fullmatch(value) else None
        if parts is not None and parts.hostname and (parts.port is None or parts.port > 0):
            return str(value)
    except ValueError:
        pass
    if isinstance(value, str) and "@" in value:
        raise expected("expected http(s)://HOST[:PORT]/PATH without a name and password: this file is no place for a secret")
    raise expected(f"expected http(s)://HOST[:PORT]/PATH that takes a POST, found {value!r}")


class WitnessSection(Strict):
    """One witness: a file that is appended to, or a URL that signed checkpoints are posted to."""

    file: AbsolutePath | None = Field(default=None, description="A file, best on another host's disk, that is only appended to.")
    http: Annotated[str, BeforeValidator(_url), WithJsonSchema({"type": "string", "pattern": "^https?://"})] | None = Field(
        default=None, description="A URL that takes each checkpoint by POST."
    )
    required: bool = Field(default=False, description="Whether calls are refused while it could not be told.")


class EvidenceSection(Strict):
    """What else becomes of the evidence."""

    witness: tuple[WitnessSection, ...] = Field(
        default=(), max_length=MAX_WITNESSES, strict=False, description="Who outside keeps signed checkpoints."
    )


def plain(section: EvidenceSection, source: Source) -> tuple[tuple[str, str, bool], ...]:
    """The witnesses as the rest of fumehood uses them: (kind, where, required). Raises Problems."""
    problems: list[Problem] = []
    found: list[tuple[str, str, bool]] = []
    for number, each in enumerate(section.witness):
        named = [(kind, where) for kind, where in (("file", each.file), ("http", each.http)) if where is not None]
        if len(named) != 1:
            problems.append(source.problem(("evidence", "witness", number), "expected exactly one of file, http"))
            continue
        found.append((*named[0], each.required))
        if [where for _, where, _ in found].count(named[0][1]) > 1:
            problems.append(source.problem(("evidence", "witness", number), f"{named[0][1]} is named twice"))
    if problems:
        raise Problems(problems)
    return tuple(found)
