"""The kinds of credentials there are: a module below `providers/` each, and those that other distributions bring.

Such a module has `OPTIONS`, a strict pydantic model of its part of fumehood.yaml but for secrets; `SECRETS`, the names of those;
`REQUIRED`, the ones that must be there; and `make`. Others are found by their entry point in the group `fumehood.credentials`, whose
name is the kind. Importing a kind imports no SDK: that is for its first use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Protocol, cast

from pydantic import BaseModel

from fumehood.faults import FumehoodError
from fumehood.ports import CredentialProvider
from fumehood.reasons import Reason

GROUP = "fumehood.credentials"
NAMES = ("aws-sts", "github-app", "oauth-exchange", "postgres", "ssh-cert", "static", "vault")


class Kind(Protocol):
    """How credentials of one kind are configured and made."""

    OPTIONS: type[BaseModel]
    SECRETS: tuple[str, ...]
    REQUIRED: tuple[str, ...]

    def make(self, name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> CredentialProvider:
        """A provider of this kind, without asking anybody yet. Raises FumehoodError(CONFIG_INVALID | EXTRA_MISSING)."""
        ...


def find(kind: str) -> Kind:
    """The kind of this name. Raises FumehoodError(CONFIG_INVALID)."""
    if kind in NAMES:
        return cast("Kind", importlib.import_module(f"fumehood.credentials.providers.{kind.replace('-', '_')}"))
    others = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if kind in others:
        return cast("Kind", others[kind].load())
    known = ", ".join(sorted({*NAMES, *others}))
    raise FumehoodError(Reason.CONFIG_INVALID, f"there is no kind of credential {kind!r}; known kinds: {known}")


def extra_missing(kind: str, extra: str) -> FumehoodError:
    """What to say when the package behind a kind is not installed."""
    remedy = f"Install it: pip install 'fumehood[{extra}]'."
    return FumehoodError(Reason.EXTRA_MISSING, f"the kind {kind} needs the extra {extra}", remedy=remedy)
