"""What an operator says of tools, and of what a box reaches, for policies and budgets to go by; no annotation of a server's counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fumehood.profile.fields import Strict, expected

MAX_LABELS = 1024
_NAME_CHARACTERS = 2048


def _called(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARACTERS or not value.isprintable():
        raise expected(f'expected a tool\'s name, prompt:NAME, resource:URI, or "*" for all, found {value!r:.100}')
    return value


Called = Annotated[str, BeforeValidator(_called)]
Cost = Annotated[int, Field(ge=0, le=10**9)]


class LabelsDocument(Strict):
    """What an operator says of a tool, for policies to go by."""

    returns: Literal["untrusted"] | None = Field(default=None, description="untrusted: what it returns, strangers may have written.")
    reads: Literal["private"] | None = Field(default=None, description="private: what it returns is not for everybody.")
    effect: Literal["external"] | None = Field(default=None, description="external: it changes or tells something outside.")

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that are set."""
        return tuple(sorted(filter(None, (self.returns, self.reads, self.effect))))


def labels(said: dict[str, LabelsDocument]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The labels by name, without those that say nothing."""
    return tuple((name, each.names) for name, each in sorted(said.items()) if each.names)
