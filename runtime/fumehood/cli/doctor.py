"""`fumehood doctor`: what this host can and cannot enforce, and how to mend it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    config: Annotated[str | None, typer.Option(help="The configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this host can and cannot enforce, why, and how to mend it. Exit status 1 when no engine works."""
    from fumehood import launch, wire

    with launch.serving(launch.settings(config)) as processes:
        found, _ = wire.request(processes.privileged, "doctor", {})
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _draw(found)
    raise typer.Exit(0 if any(engine["works"] for engine in found["engines"].values()) else 1)


def _draw(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    engines = Table("engine", "works", "user namespace", "what to know", title="Engines", title_justify="left")
    for name, engine in found["engines"].items():
        words = "; ".join(f"{risk}: {text}" for risk, text in engine.get("risks", {}).items())
        if not engine["works"]:
            words = f"{engine['why']}. {engine['remedy']}"
        elif words:
            words += ". Needs a named `accept_risk`."
        engines.add_row(name, "yes" if engine["works"] else "no", "own" if engine.get("user_namespace") else "none", words)
    console.print(engines)
    host = Table("part", "ok", "found", "to mend it", title="Host", title_justify="left")
    for row in found["findings"]:
        host.add_row(row["what"], "yes" if row["ok"] else "no", row["found"], row.get("remedy", ""))
    console.print(host)
    versions = ", ".join(text for text in found["versions"].values() if text)
    console.print(f"kernel {found['kernel']}, cgroups {found['cgroups']}; {versions}")
