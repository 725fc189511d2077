"""What `lint` says of `secrets`: where less is looked for, and what is taken for no secret. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from fumehood.model import OnHidden, OnSecret, Profile
from fumehood.profile.source import Path

Finding = tuple[Path, str]
_STRICT = [OnSecret.ALLOW, OnSecret.REDACT, OnSecret.ASK, OnSecret.BLOCK]
_HIDING = [OnHidden.ALLOW, OnHidden.MARK, OnHidden.BLOCK]


def widening(parent: Profile, child: Profile, more: str) -> Iterator[Finding]:
    """Where the child takes more for no secret than the profile that it extends."""
    before, now = parent.secrets, child.secrets
    for name in ("arguments", "bodies", "outputs"):
        if _STRICT.index(getattr(now, name)) < _STRICT.index(getattr(before, name)):
            yield ("secrets", name), f"{more}{getattr(now, name).value} instead of {getattr(before, name).value}"
    if _HIDING.index(now.hidden) < _HIDING.index(before.hidden):
        yield ("secrets", "hidden"), f"{more}{now.hidden.value} instead of {before.hidden.value}"
    if added := [each for each in now.allow if each not in before.allow]:
        yield ("secrets", "allow"), f"{more}takes {', '.join(f'{each.rule} at {each.where}' for each in added)} for no secret"


def without_effect(value: Profile) -> Iterator[Finding]:
    """Excuses for what nobody can call."""
    tools = value.tools
    for number, each in enumerate(value.secrets.allow):
        if tools is not None and each.where != "*" and each.where.split("/")[0].replace("~1", "/").replace("~0", "~") not in tools:
            yield ("secrets", "allow", number), f"has no effect: {each.where} is no tool that `tools.allow` names"


def regretted(value: Profile) -> Iterator[Finding]:
    """Every excuse, and whatever is not looked for."""
    for number, each in enumerate(value.secrets.allow):
        place = "any tool's arguments, bodies and results" if each.where == "*" else each.where
        yield ("secrets", "allow", number), f"lets a {each.rule} pass at {place}: a real one, too"
    for name, told in (("arguments", "of calls"), ("bodies", "of requests"), ("outputs", "of results")):
        if getattr(value.secrets, name) is OnSecret.ALLOW:
            yield ("secrets", name), f"looks for no known format of a secret in the {name} {told}"
    if value.secrets.hidden is OnHidden.ALLOW:
        yield ("secrets", "hidden"), "lets a server say to a model what nobody sees"
