"""The tree of commands."""

from __future__ import annotations

import importlib

import typer

_MODULES = (
    "run", "gateway", "image", "profile", "tasks", "sessions", "approvals", "leases", "pins", "policy", "receipt", "audit", "keys",
    "senders", "sign_proxy", "stop", "workspace", "doctor",
)  # fmt: skip
# Commands that a call waits for: whoever types one of these needs no other.
_ALONE = frozenset({"run", "gateway", "sign-proxy"})


def tree(first: str | None) -> typer.Typer:
    """All commands, or of the tree no more than `first` needs, which is the first word after `fumehood`."""
    app = typer.Typer(
        name="fumehood",
        help="Run every MCP tool call in its own container, used once.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    alone = first in _ALONE
    for name in (str(first).replace("-", "_"),) if alone else _MODULES:
        importlib.import_module(f"fumehood.cli.{name}").register(app)
    if alone:
        app.callback()(_nothing)  # or typer takes the only command for the program itself, and its name for an argument
    return app


def _nothing() -> None:
    pass
