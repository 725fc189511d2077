"""The strict models of the `egress:` and `credentials:` sections of fumehood.yaml. Apart from `outward_config` for its imports.

A credential's options belong to the kind of its provider, which brings a model of them. Secrets are never options: where one belongs,
the file says where it is kept, because a configuration is copied, backed up and shown around.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.faults import FumehoodError
from fumehood.outward_config import MEMORY_BYTES, CredentialConfig, OutwardConfig, SecretSource
from fumehood.profile.fields import VARIABLE_PATTERN, AbsolutePath, Strict, expected, size
from fumehood.profile.problems import Problem, Problems
from fumehood.profile.source import Path, Source
from fumehood.profile.validation import validate_part

if TYPE_CHECKING:
    from fumehood.credentials.kinds import Kind

MAX_RESOLVERS = 8
MAX_CREDENTIALS = 64
_DNS = 53
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PROXY = re.compile(r"http://(\[[0-9a-f:.]+\]|[a-z0-9][a-z0-9.-]{0,252}):([1-9][0-9]{0,4})/?")
_SOURCES = ("file", "env", "command")


def resolver_of(text: str) -> str:
    """`ADDRESS[:PORT]` as `address:port`, IPv6 in brackets. Raises ValueError."""
    host, port = text, str(_DNS)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or "%" in host or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"expected a DNS server's address and port, such as 10.0.0.53:53 or [fd00::53]:53, found {text!r}")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _resolver(value: object) -> str:
    try:
        return resolver_of(value if isinstance(value, str) else "")
    except ValueError as error:
        raise expected(str(error)) from None


def _proxy(value: object) -> str:
    found = _PROXY.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[2]) > 65535:
        if isinstance(value, str) and "@" in value:
            raise expected("expected http://HOST:PORT without a name and password: this file is no place for a secret")
        raise expected(f"expected http://HOST:PORT of an HTTP proxy, found {value!r}")
    return found[0].removesuffix("/")


class EgressSection(Strict):
    """How the gates of this host reach what profiles allow."""

    resolvers: tuple[Annotated[str, BeforeValidator(_resolver)], ...] = Field(
        default=(), max_length=MAX_RESOLVERS, strict=False, description="DNS servers, ADDRESS:PORT. Default: the system's."
    )
    authorities: AbsolutePath | None = Field(
        default=None, description="A PEM file of certificates to trust upstream beside the system's."
    )
    proxy: Annotated[str, BeforeValidator(_proxy), WithJsonSchema({"type": "string", "pattern": "^http://"})] | None = Field(
        default=None, description="http://HOST:PORT that every connection goes through, by CONNECT to an address."
    )
    memory: Annotated[int, *size(2**24)] = Field(default=MEMORY_BYTES, description="What all gates may hold at once.")


CredentialSection = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"provider": {"type": "string", "description": "The kind of its provider."}},
            "required": ["provider"],
            "description": "The provider's options; a secret as {file: PATH}, {env: NAME} or {command: [ARGV]}.",
        }
    ),
]


def plain(egress: EgressSection | None, credentials: Mapping[str, Mapping[str, Any]], source: Source) -> OutwardConfig:
    """Both sections as the values that the rest of fumehood uses. Raises Problems."""
    problems: list[Problem] = []
    found: list[CredentialConfig] = []
    for name, section in credentials.items():
        try:
            found.append(_credential(name, section, source))
        except Problems as wrong:
            problems += wrong.problems
    if problems:
        raise Problems(problems)
    has = egress or EgressSection()
    return OutwardConfig(
        resolvers=has.resolvers, authorities=has.authorities, proxy=has.proxy, memory_bytes=has.memory,
        credentials=tuple(found),
    )  # fmt: skip


def _credential(name: str, section: Mapping[str, Any], source: Source) -> CredentialConfig:
    from fumehood.credentials import kinds

    at: Path = ("credentials", name)
    provider = section.get("provider")
    if not isinstance(provider, str):
        raise Problems([source.problem(at, f"expected `provider`, one of {', '.join(kinds.NAMES)}")])
    try:
        kind = kinds.find(provider)
    except FumehoodError as error:
        raise Problems([source.problem((*at, "provider"), error.detail)]) from None
    secrets = {option: value for option, value in section.items() if option in kind.SECRETS}
    options = {option: value for option, value in section.items() if option not in (*kind.SECRETS, "provider")}
    wrong = list(_judge_secrets(at, kind, secrets, source))
    try:
        validate_part(source, kind.OPTIONS, at, options)
    except Problems as others:
        wrong += others.problems
    if wrong:
        raise Problems(wrong)
    sources = tuple((option, source_of(value)) for option, value in sorted(secrets.items()))
    return CredentialConfig(name=name, provider=provider, options=options, secrets=sources)


def _judge_secrets(at: Path, kind: Kind, secrets: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    for option in kind.REQUIRED:
        if option not in secrets:
            yield source.problem(at, f"expected `{option}`, as {{file: PATH}}, {{env: NAME}} or {{command: [ARGV]}}")
    for option, value in secrets.items():
        if why := wrong_source(value):
            yield source.problem((*at, option), why)


def wrong_source(value: object) -> str | None:
    """What is wrong with where a secret is; its text is never repeated, for it may be the secret."""
    if not isinstance(value, dict):
        return (
            "expected where the secret is, {file: PATH}, {env: NAME} or {command: [ARGV]}: written here it would be in every"
            " copy of this file; replace it if it was"
        )
    if len(value) != 1 or next(iter(value)) not in _SOURCES:
        return "expected exactly one of file, env, command"
    ((way, said),) = value.items()
    if way == "env":
        right = isinstance(said, str) and re.fullmatch(VARIABLE_PATTERN.strip("^$"), said)
        return None if right else "expected a variable's name"
    words = said if way == "command" else [said]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        return "expected a list of strings" if way == "command" else "expected a path"
    if not words[0].startswith("/") or ".." in words[0].split("/"):
        return f"expected an absolute path without `..`, found {words[0]!r}"
    return None


def source_of(value: Mapping[str, Any]) -> SecretSource:
    """Where a secret is, of what `wrong_source` finds nothing wrong with."""
    ((way, said),) = value.items()
    return SecretSource(way, tuple(said) if isinstance(said, list) else (said,))
