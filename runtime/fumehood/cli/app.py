"""The tree of commands."""

from __future__ import annotations

import typer

from fumehood.cli import doctor, gateway, image, leases, profile, run, sessions, tasks, workspace

app = typer.Typer(
    name="fumehood",
    help="Run every MCP tool call in its own container, used once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for module in (run, gateway, image, profile, tasks, sessions, leases, workspace, doctor):
    module.register(app)
