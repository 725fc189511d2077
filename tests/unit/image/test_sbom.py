"""The bill of materials."""

from __future__ import annotations

import json

from fumehood.image.lockfile import Deb, Lock, Wheel
from fumehood.image.sbom import packages, sbom

LOCK = Lock(
    recipe="sha256:x",
    architecture="amd64",
    epoch=1_700_000_000,
    debian=(Deb(name="libstdc++6", version="1:12.2.0-14", sha256="0" * 64),),
    wheels=(Wheel(name="idna", version="3.1", file="idna-3.1-py3-none-any.whl", sha256="1" * 64),),
    npm={"node_modules/@a/b": {"version": "1.0.0", "integrity": "sha512-AAAA"}},
)
DIGEST = "sha256:" + "ab" * 32


def test_every_locked_package_is_a_component_with_its_hash() -> None:
    document = sbom("x", DIGEST, LOCK.epoch, packages([LOCK]))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert [(row["purl"], row["hashes"][0]) for row in document["components"]] == [
        ("pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14?arch=amd64", {"alg": "SHA-256", "content": "0" * 64}),
        ("pkg:npm/%40a/b@1.0.0", {"alg": "SHA-512", "content": "000000"}),
        ("pkg:pypi/idna@3.1", {"alg": "SHA-256", "content": "1" * 64}),
    ]
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"


def test_equal_images_get_equal_bytes_and_references_are_unique() -> None:
    first, second = (sbom("x", DIGEST, 0, packages([LOCK, LOCK])) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    references = [row["bom-ref"] for row in first["components"]]
    assert len(set(references)) == len(references) == 6
