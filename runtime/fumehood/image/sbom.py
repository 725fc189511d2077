"""The bill of materials of an image, from its locks: CycloneDX 1.6 as JSON. Pure; equal images get equal bytes."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fumehood.image.lockfile import Lock

# Any fixed namespace will do; this is RFC 9562's for names that are URLs.
_SERIALS = uuid.NAMESPACE_URL


def packages(locks: Sequence[Lock]) -> list[dict[str, str]]:
    """Every package of an image: kind, name, version, package URL and hash."""
    rows = [row for lock in locks for row in _rows(lock)]
    return sorted(rows, key=lambda row: (row["type"], row["name"], row["version"]))


def sbom(name: str, digest: str, epoch: int, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The document for one image."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(_SERIALS, f"fumehood:{digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container",
                "bom-ref": digest,
                "name": name,
                "version": digest,
                "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
            },
        },
        "components": [
            {
                "type": "library",
                "bom-ref": f"{row['purl']}#{number}",
                "name": row["name"],
                "version": row["version"],
                "purl": row["purl"],
                "hashes": [{"alg": row["algorithm"], "content": row["hash"]}],
            }
            for number, row in enumerate(rows)
        ],
    }


def _rows(lock: Lock) -> Iterator[dict[str, str]]:
    for deb in lock.debian:
        purl = f"pkg:deb/debian/{quote(deb.name, safe='')}@{quote(deb.version, safe='')}?arch={lock.architecture}"
        yield _row("debian", deb.name, deb.version, purl) | {"algorithm": "SHA-256", "hash": deb.sha256}
    for wheel in lock.wheels:
        purl = f"pkg:pypi/{quote(wheel.name, safe='')}@{quote(wheel.version, safe='')}"
        yield _row("pypi", wheel.name, wheel.version, purl) | {"algorithm": "SHA-256", "hash": wheel.sha256}
    for name, version, integrity in lock.npm_packages():
        purl = f"pkg:npm/{quote(name, safe='/')}@{quote(version, safe='')}"
        algorithm, _, digest = integrity.split()[0].partition("-")
        hashed = {"algorithm": _ALGORITHMS[algorithm], "hash": base64.b64decode(digest).hex()}
        yield _row("npm", name, version, purl) | hashed


_ALGORITHMS = {"sha512": "SHA-512", "sha384": "SHA-384", "sha256": "SHA-256", "sha1": "SHA-1"}


def _row(kind: str, name: str, version: str, purl: str) -> dict[str, str]:
    return {"type": kind, "name": name, "version": version, "purl": purl}
