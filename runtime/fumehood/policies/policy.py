"""The policies in force: one value that one call is decided by, and the place where a reload puts the next."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fumehood.model import digest_of
from fumehood.policies import cedar
from fumehood.policies.cedar import PolicySet, Source
from fumehood.policies.config import DEFAULT, Budget, PolicyConfig
from fumehood.policies.known import Unit
from fumehood.shipping import shipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """All that a policy is made from, as it crosses to a worker that can read no file."""

    config: PolicyConfig
    schema: str
    sources: tuple[Source, ...]

    def written(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> Texts:
        """What `written` wrote. Raises ValueError, KeyError, TypeError."""
        has = json.loads(text)
        config = _tuples(has["config"])
        budgets = tuple(Budget(**{**each, "unit": Unit(each["unit"])}) for each in map(_tuples, config["budgets"]))
        sources = tuple(Source(**each) for each in has["sources"])
        return Texts(config=PolicyConfig(**{**config, "budgets": budgets}), schema=has["schema"], sources=sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What decides: checked policies with the files that they came from. `digest` names it in records (rule 24)."""

    texts: Texts
    rules: PolicySet
    digest: str

    @property
    def config(self) -> PolicyConfig:
        """What the operator asked for."""
        return self.texts.config

    @property
    def is_shipped(self) -> bool:
        """Whether the operator has written none."""
        return all(source.shipped for source in self.texts.sources)


def made(config: PolicyConfig, sources: Sequence[Source]) -> Policy:
    """The policy that these files make with the sets of ours that are wanted. Raises PolicyError."""
    own = (Source(name=f"{name}.cedar", text=_read_shipped(f"{name}.cedar"), shipped=True) for name in config.shipped)
    return checked(Texts(config=config, schema=_read_shipped("fumehood.cedarschema"), sources=(*own, *sources)))


def checked(texts: Texts) -> Policy:
    """The policy that these texts make. Raises PolicyError."""
    rules = cedar.parsed(texts.sources, texts.schema)
    how = {name: value for name, value in asdict(texts.config).items() if name not in ("files", "shipped")}
    told = {"schema": texts.schema, "policies": [rule.text for rule in rules.rules], **how}
    return Policy(texts=texts, rules=rules, digest=digest_of(told))


@functools.cache
def default() -> Policy:
    """What holds where the operator decides nothing."""
    return made(PolicyConfig(shipped=DEFAULT), ())


class Policies:
    """Where the policy in force is: each call takes it once, and a reload puts another there."""

    def __init__(self, policy: Policy | None = None) -> None:
        """Begin with this one; without, with what ships."""
        self._policy = policy

    @property
    def current(self) -> Policy:
        """The policy in force now."""
        if self._policy is None:
            self._policy = default()
        return self._policy

    def adopt(self, policy: Policy | None) -> None:
        """Have calls from now on decided by another, if there is one."""
        self._policy = policy or self._policy


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _read_shipped(name: str) -> str:
    return (shipped("profiles") / "policies" / name).read_text(encoding="utf-8")
