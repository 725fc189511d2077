"""The strict model of the `policy:` section of fumehood.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.policies.config import KEPT_S, PolicyConfig
from fumehood.profile.fields import AbsolutePath, Retention, Strict, expected
from fumehood.profile.problems import Problem, Problems
from fumehood.profile.source import Source

MAX_FILES = 64
SUFFIX = ".cedar"


def _file(value: object) -> object:
    if not isinstance(value, str) or not value.endswith(SUFFIX) or "*" in value.rpartition("/")[0]:
        raise expected(f"expected /FOLDER/NAME.cedar, with `*` in the name perhaps, found {value!r}")
    return value


PolicyFile = Annotated[AbsolutePath, BeforeValidator(_file), WithJsonSchema({"type": "string", "pattern": "^/.*\\.cedar$"})]


class ConversationSection(Strict):
    """What is remembered of what a sender did."""

    kept: Retention = Field(default=KEPT_S, description="For how long: what a sender did before is forgotten.")


class PolicySection(Strict):
    """Who may call what, in Cedar."""

    files: tuple[PolicyFile, ...] = Field(
        default=(), max_length=MAX_FILES, strict=False, description="Files of policies; `*` in a name stands for any text."
    )
    shipped: tuple[Literal["owner", "senders", "taint"], ...] = Field(
        default=("owner", "taint"), strict=False, description="Which of the policies that ship hold as well."
    )
    conversation: ConversationSection = Field(default_factory=ConversationSection, description="What is remembered of a sender.")


def plain(section: PolicySection, source: Source) -> PolicyConfig:
    """The section as the rest of fumehood uses it. Raises Problems."""
    problems: list[Problem] = []
    for name in ("files", "shipped"):
        given = getattr(section, name)
        if len(set(given)) != len(given):
            problems.append(source.problem(("policy", name), "expected each name once"))
    if problems:
        raise Problems(problems)
    return PolicyConfig(files=section.files, shipped=section.shipped, kept_s=section.conversation.kept)
