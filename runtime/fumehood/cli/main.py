"""The `fumehood` command. Each subcommand lives in its own file and imports what is heavy only when it runs."""

from __future__ import annotations

import logging
import sys

import typer

from fumehood.cli import doctor, image, profile, run, tasks, workspace
from fumehood.faults import FumehoodError

REFUSED = 125

app = typer.Typer(
    name="fumehood",
    help="Run every MCP tool call in its own container, used once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


for module in (run, image, profile, tasks, workspace, doctor):
    module.register(app)


def main() -> None:
    """Run the command line; every refusal is one line and exit status 125."""
    logging.basicConfig(stream=sys.stderr, format="fumehood: %(message)s", level=logging.WARNING)
    try:
        app()
    except FumehoodError as error:
        sys.stderr.write(f"fumehood: {error}\n")
        sys.exit(REFUSED)
