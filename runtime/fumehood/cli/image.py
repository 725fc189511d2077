"""`fumehood image`: sandbox images, made from recipes and locks or imported. Progress on stderr, results on stdout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fumehood.image.recipe import Recipes
    from fumehood.image.workshop import Workshop

image = typer.Typer(name="image", help="Build, lock, list, import and remove sandbox images.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Folder = Annotated[Path | None, typer.Option("--recipes", help="A folder of recipes of your own.", file_okay=False)]


def register(app: typer.Typer) -> None:
    """Add `fumehood image`."""
    app.add_typer(image, name="image")


@image.command("build")
def build_images(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all.")] = None,
    *,
    recipes: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Build images and what they extend; those that are up to date are only checked."""
    from fumehood.image.build import build

    with _workshop() as shop:
        built = build(shop, _recipes(recipes), names or [], os.environ)
    if as_json:
        rows = [{"name": b.name, "digest": b.digest, "docker_id": b.docker_id, "built": b.fresh} for b in built]
        _print_json(rows)
        return
    for one in built:
        engine = "" if one.docker_id else "  (not in a Docker engine: none answers)"
        typer.echo(f"{one.name:<16} {one.digest}  {'built' if one.fresh else 'up to date'}{engine}")


@image.command("lock")
def lock_image(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Take today's versions of everything.")] = False,
    recipes: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Write NAME's lock: exact versions and hashes of all its recipe wants."""
    from fumehood.image.resolve import resolve

    folder = _recipes(recipes)
    with _workshop(engine=False) as shop:
        lock = resolve(shop, folder, name, os.environ, upgrade=upgrade)
    path = folder.lock_path(name)
    lock.write(path)
    counts = {"debian": len(lock.debian), "wheels": len(lock.wheels), "npm": len(lock.npm)}
    if as_json:
        _print_json({"name": name, "lock": str(path), **counts})
    else:
        typer.echo(f"{path}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))


@image.command("list")
def list_images(*, as_json: AsJson = False) -> None:
    """List the images in the store."""
    from fumehood.image.store import ImageStore

    images = ImageStore(_store_folder()).list()
    if as_json:
        rows = [
            {
                "names": list(one.names),
                "digest": one.digest,
                "docker_id": one.docker_id,
                "created": one.created,
                "extends": one.about.get("chain", [])[:-1],
                "packages": len(one.about.get("packages", [])),
            }
            for one in images
        ]
        _print_json(rows)
        return
    typer.echo(f"{'NAME':<16} {'DIGEST':<20} {'CREATED':<21} {'PACKAGES':>8}  DOCKER")
    for one in images:
        docker = (one.docker_id or "-").removeprefix("sha256:")[:12]
        packages = len(one.about.get("packages", []))
        typer.echo(f"{','.join(one.names) or '-':<16} {one.digest[:19]:<20} {one.created:<21} {packages:>8}  {docker}")


@image.command("import")
def import_image(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A root tar, an OCI layout, or a `docker save` archive.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Import a root file system; an image's own configuration is dropped."""
    from fumehood.image.take_in import take_in

    with _workshop() as shop:
        digest = take_in(shop, name, path)
        about = shop.store.about(digest) or {}
    if as_json:
        _print_json({"name": name, "digest": digest, "docker_id": about.get("docker_id")})
    else:
        typer.echo(f"{name:<16} {digest}")


@image.command("rm")
def remove_image(name: Annotated[str, typer.Argument(metavar="NAME|DIGEST")], *, as_json: AsJson = False) -> None:
    """Remove an image that no box uses."""
    with _workshop() as shop:
        removed = shop.remove(name)
    if as_json:
        _print_json({"name": name, "digest": removed})
    else:
        typer.echo(f"{name}: removed" + ("" if removed else " (its image has another name)"))


@contextmanager
def _workshop(*, engine: bool = True) -> Iterator[Workshop]:
    from fumehood.broker.docker_image import docker_images
    from fumehood.image.workshop import refuse_without_root, workshop

    refuse_without_root()
    docker = docker_images() if engine else None
    if engine and docker is None:
        _say("no Docker engine answers: images are for the daemonless engine only")
    with workshop(_store_folder(), docker, _say) as shop:
        yield shop


def _store_folder() -> Path:
    from fumehood import accounts, config

    uid = os.geteuid()
    return accounts.image_folder(os.environ, config.load(None, os.environ, uid), uid)


def _recipes(folder: Path | None) -> Recipes:
    from fumehood.image.recipe import Recipes, shipped_recipes

    if folder is None:
        # Whoever can write our code need not bother with our recipes: they are as trusted as it is.
        return Recipes(shipped_recipes(), Path(__file__).stat().st_uid)
    return Recipes(folder, os.geteuid())


def _say(text: str) -> None:
    typer.echo(f"image: {text}", err=True)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))
