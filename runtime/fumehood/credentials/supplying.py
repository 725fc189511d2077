"""What of a call's credentials goes into its box: only those whose profile says `deliver: env` or `deliver: file`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fumehood.reach import (
    CredentialUse,
    Delivery,
    Secret,
    SecretForm,
    SuppliedFile,
    Supplies,
)

FOLDER = "secrets"


def supplies_of(issued: Iterable[tuple[CredentialUse, Secret]]) -> Supplies:
    """Variables and files for the tool to read."""
    environment: dict[str, str] = {}
    files: list[SuppliedFile] = []
    for use, secret in issued:
        if use.deliver is Delivery.ENV and use.variable is not None:
            environment[use.variable] = _text(secret)
        elif use.deliver is Delivery.FILE and use.file is not None:
            files += _files(use.file, secret)
            if use.variable is not None:
                environment[use.variable] = f"/run/{FOLDER}/{use.file}"
    return Supplies(environment=environment, files=tuple(files))


def _text(secret: Secret) -> str:
    parts = secret.parts
    match secret.form:
        case SecretForm.TOKEN:
            return parts["token"]
        case SecretForm.PASSWORD:
            return parts["password"]
        case _:
            return json.dumps(dict(parts))


def _files(name: str, secret: Secret) -> list[SuppliedFile]:
    parts = secret.parts
    match secret.form:
        case SecretForm.SSH:  # where ssh(1) looks for the certificate of a key
            key, certificate = parts["key"].encode(), parts["certificate"].encode()
            return [
                SuppliedFile(name=f"{FOLDER}/{name}", content=key),
                SuppliedFile(name=f"{FOLDER}/{name}-cert.pub", content=certificate),
            ]
        case SecretForm.AWS:  # what AWS_SHARED_CREDENTIALS_FILE names
            names = {"key_id": "aws_access_key_id", "key": "aws_secret_access_key", "session": "aws_session_token"}
            lines = [f"{names[part]} = {value}\n" for part, value in parts.items() if part in names]
            return [SuppliedFile(name=f"{FOLDER}/{name}", content="".join(["[default]\n", *lines]).encode())]
        case _:
            return [SuppliedFile(name=f"{FOLDER}/{name}", content=_text(secret).encode())]
