"""What the `egress:` and `credentials:` sections of fumehood.yaml say, as frozen values. Standard library only.

`OutwardConfig` says where the operator's secrets are and never what they are: it may be compared, sent and printed. `Given` has
them. It is made with the caller's rights after the other processes were forked, belongs to the worker alone, and shows none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where one secret is: `file` with its path, `env` with a variable's name, or `command` with an argv."""

    kind: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialConfig:
    """One credential: its name, the kind of its provider, that kind's options as written, and where its secrets are."""

    name: str
    provider: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    secrets: tuple[tuple[str, SecretSource], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """Where approvers are told of what waits: a URL that takes a POST, and where the secret is that signs it."""

    url: str
    secret: SecretSource


@dataclass(frozen=True, slots=True, kw_only=True)
class OutwardConfig:
    """Both sections, and the webhook of `approvals:`. `authorities` is the path of a PEM file; the rest is as in `ports.Outward`."""

    resolvers: tuple[str, ...] = ()
    authorities: str | None = None
    proxy: str | None = None
    memory_bytes: int = MEMORY_BYTES
    credentials: tuple[CredentialConfig, ...] = ()
    webhook: WebhookConfig | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Everything on disk that decides something here; what a box could write of it, it could make its own (rule 6)."""
        all_of_them = [source for each in self.credentials for _, source in each.secrets]
        all_of_them += [] if self.webhook is None else [self.webhook.secret]
        sources = [source for source in all_of_them if source.kind != "env"]
        own = () if self.authorities is None else (self.authorities,)
        return (*own, *(source.words[0] for source in sources))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was read for the worker: `authorities` as PEM text, each credential's secrets by name and option, the webhook's."""

    config: OutwardConfig = field(default_factory=OutwardConfig)
    authorities: str | None = None
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)
