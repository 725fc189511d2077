"""What the commands below `fumehood policy` have in common: which policy is meant, and printing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fumehood.policies.cedar import Rule
    from fumehood.policies.config import PolicyConfig
    from fumehood.policies.policy import Policy

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Configured = Annotated[str | None, typer.Option(help="The configuration file.")]
Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE...]", help="Policies (.cedar) instead of those of the configuration.", show_default=False),
]


def chosen_policy(files: Sequence[Path] | None, config: str | None) -> Policy:
    """The policy that was named, or that of the configuration. Raises FumehoodError."""
    from fumehood.config import load
    from fumehood.policies.reading import read

    chosen: PolicyConfig = load(config, os.environ, os.getuid()).policy
    if files:
        chosen = replace(chosen, files=tuple(str(path.absolute()) for path in files))
    return read(chosen, os.getuid())


def rule_facts(rule: Rule) -> dict[str, Any]:
    """A policy in JSON."""
    return {"id": rule.id, "where": rule.where, "permits": rule.permits, "shipped": rule.shipped}


def write(said: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Print for machines, or for people."""
    typer.echo(json.dumps(said, indent=2) if as_json else "\n".join(lines))
