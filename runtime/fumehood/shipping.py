"""Where the data that ships beside the code is: inside an installed package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path


def shipped(kind: str) -> Path:
    """The folder of shipped `profiles` or `images`."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / kind
    return installed if installed.is_dir() else package.parents[1] / kind
