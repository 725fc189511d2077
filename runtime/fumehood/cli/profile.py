"""`fumehood profile`: what operators ask about profiles. Reads files, starts nothing, needs no privilege.

`lint` judges with the same code that loads, and with the broker's floor, so a profile that passes is one that runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.faults import FumehoodError, Refused

if TYPE_CHECKING:
    from fumehood.config import Config
    from fumehood.profile.loader import Loaded
    from fumehood.profile.problems import Problem

PROBLEMS_EXIT = 125

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A profile's name, or a file's path.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME|PATH]...", help="Default: every profile there is.")]


def register(app: typer.Typer) -> None:
    """Add `profile` and its commands."""
    sub = typer.Typer(no_args_is_help=True, help="Check, show and explain profiles.")
    sub.command("lint")(lint)
    sub.command("show")(show)
    sub.command("explain")(explain)
    sub.command("schema")(schema)
    sub.command("list")(list_profiles)
    app.add_typer(sub, name="profile")


def lint(names: Names = None, *, as_json: AsJson = False) -> None:
    """Check profiles: every error and warning with its file, line and column. Exit 125 when one does not load."""
    from fumehood.profile.loader import names_in, search_folders

    found_config, uid = _config(), os.getuid()
    folders = search_folders(found_config.profile_folders, os.environ)
    credentials = frozenset(each.name for each in found_config.outward.credentials)
    wanted = names or [name for name, _ in names_in(folders, uid)]
    found = {name: _findings(name, folders, uid, credentials) for name in wanted}
    broken = [name for name, problems in found.items() if any(problem["level"] == "error" for problem in problems)]
    if as_json:
        typer.echo(json.dumps([problem for problems in found.values() for problem in problems], indent=2))
    else:
        for problems in found.values():
            for problem in problems:
                typer.echo(problem["text"])
        typer.echo(f"{len(wanted)} checked, {len(broken)} with errors", err=True)
    if broken:
        raise typer.Exit(PROBLEMS_EXIT)


def show(name: Name, *, as_json: AsJson = False) -> None:
    """Print a profile with every default filled in."""
    from fumehood.profile.explain import shown

    loaded = _load(name)
    profile, value = loaded.profile, shown(loaded.profile)
    if as_json:
        typer.echo(json.dumps({"name": profile.name, "digest": profile.digest, "profile": value}, indent=2))
    else:
        typer.echo(f"# {profile.name} ({loaded.source.file})\n# {profile.digest}\n{_yaml(value)}", nl=False)


def explain(name: Name, *, as_json: AsJson = False) -> None:
    """Say in plain sentences what a tool under a profile can and cannot do."""
    from fumehood.profile.explain import sentences

    profile = _load(name).profile
    said = sentences(profile)
    if as_json:
        typer.echo(json.dumps({"name": profile.name, "digest": profile.digest, "sentences": said}, indent=2))
    else:
        typer.echo("\n".join(said))


def schema(
    kind: Annotated[str, typer.Argument(help="profile, seccomp or config.")] = "profile", *, as_json: AsJson = False
) -> None:
    """Print the JSON Schema of a kind of file, for editors (on one line with --json)."""
    from fumehood.config_document import ConfigDocument
    from fumehood.profile.documents import ProfileDocument
    from fumehood.profile.seccomp import SeccompDocument

    models: Mapping[str, Any] = {"profile": ProfileDocument, "seccomp": SeccompDocument, "config": ConfigDocument}
    if kind not in models:
        raise typer.BadParameter("expected profile, seccomp or config")
    described = models[kind].model_json_schema()
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}
    typer.echo(json.dumps(described, indent=None if as_json else 2))


def list_profiles(*, as_json: AsJson = False) -> None:
    """List the profiles that can be named, with the file each comes from."""
    from fumehood.profile.loader import names_in

    entries = [{"name": name, "file": str(file)} for name, file in sorted(names_in(_folders(), os.getuid()))]
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
        return
    width = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        typer.echo(f"{entry['name']:<{width}}  {entry['file']}")


def _config() -> Config:
    from fumehood import config

    return config.load(None, os.environ, os.getuid())


def _folders() -> tuple[Path, ...]:
    from fumehood.profile.loader import search_folders

    return search_folders(_config().profile_folders, os.environ)


def _load(name: str) -> Loaded:
    from fumehood.profile.loader import load_fully
    from fumehood.profile.problems import Problems

    try:
        return load_fully(name, _folders(), os.getuid())
    except Problems as problems:
        raise problems.refused() from None


def _findings(name: str, folders: Sequence[Path], uid: int, credentials: frozenset[str]) -> list[dict[str, Any]]:
    """Everything there is to say about one profile, errors first as the loader gives them."""
    from fumehood.broker.filters import check_floor
    from fumehood.profile.lint import findings
    from fumehood.profile.loader import load_fully
    from fumehood.profile.problems import Problems

    try:
        loaded = load_fully(name, folders, uid)
    except Problems as problems:
        return [_fact(problem) for problem in problems.problems]
    except Refused as refused:
        return [_whole(name, refused)]
    except FumehoodError as error:
        return [_whole(name, error)]
    found = findings(loaded, credentials)
    if deny := check_floor(loaded.profile.seccomp):
        found.insert(0, loaded.source.problem(("seccomp",), deny.detail, reason=deny.reason))
    return [_fact(problem) for problem in found]


def _fact(problem: Problem) -> dict[str, Any]:
    return {**problem.facts(), "text": str(problem)}


def _whole(name: str, error: FumehoodError) -> dict[str, Any]:
    """A finding that is about no line: the file is missing, or not to be trusted."""
    text = f"{name}: {error.detail or error.reason.meaning}"
    place = {"file": name, "line": 0, "column": 0, "field": "", "level": "error"}
    return {**place, "reason": error.reason.value, "message": error.detail, "text": text}


def _yaml(value: Mapping[str, Any]) -> str:
    import io

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # The order of the documentation, not the alphabet's; ruamel's annotation knows only its own default, None.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()
