"""The frozen values of what a box may reach and which credentials it uses: what operators write, and what goes into the box.

The same rules as in `model`: no I/O, nothing of ours imported, sizes in bytes, times in seconds, standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# Where Java keeps the authorities that it trusts: Debian's, Red Hat's, and Eclipse Temurin's images.
JAVA_STORES = (
    "/etc/ssl/certs/java/cacerts", "/etc/pki/ca-trust/extracted/java/cacerts", "/opt/java/openjdk/lib/security/cacerts",
)  # fmt: skip


class EgressKind(StrEnum):
    """What the gate does with a connection that a rule allows.

    `HTTP`: TLS ends at the gate (or is absent, with `insecure`), and methods and paths are judged. `TLS`: passed through, its
    server name checked. `POSTGRES`: authenticated by the gate, then relayed. `TCP`: relayed.
    """

    HTTP = "http"
    TLS = "tls"
    POSTGRES = "postgres"
    TCP = "tcp"


class Delivery(StrEnum):
    """Where a credential is while its call runs: at the gate alone, or in a file or a variable that the tool can read."""

    GATE = "gate"
    FILE = "file"
    ENV = "env"


class Scheme(StrEnum):
    """How the gate writes a credential into a request."""

    BEARER = "bearer"
    BASIC = "basic"
    RAW = "raw"
    SIGV4 = "sigv4"


class SecretForm(StrEnum):
    """Which parts a secret has: `token`; `user` and `password`; `key_id`, `key` and `session`; `key` and `certificate`."""

    TOKEN = "token"  # noqa: S105 - a name
    PASSWORD = "password"  # noqa: S105 - a name
    AWS = "aws"
    SSH = "ssh"


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """One name that a box may reach. `name` is lower-case, or `*.` and a suffix, which stands for one label more.

    `addresses` are the networks (CIDR) that the name may resolve to beside public ones; `allow` holds `METHOD /path` patterns
    of an HTTP rule (`*` one segment, `**` any number, `*` for every method), None for all of them. `labels`: as `Profile.labels`.
    """

    kind: EgressKind
    name: str
    ports: tuple[int, ...]
    addresses: tuple[str, ...] = ()
    allow: tuple[str, ...] | None = None
    credential: str | None = None
    insecure: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLimits:
    """What one task may use of the gate. `bytes_per_second` holds for both directions together; None for no limit."""

    connections: int = 64
    bytes_out: int = 10 * 2**20
    bytes_in: int = 200 * 2**20
    bytes_per_second: int | None = None
    dns_per_second: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a box may reach. Without a rule it has its own loopback alone, and no gate."""

    rules: tuple[EgressRule, ...] = ()
    limits: NetworkLimits = field(default_factory=NetworkLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialUse:
    """How a profile uses one credential of the configuration's.

    `source` is its name in `fumehood.yaml`. `header` or `query` is the one place of an HTTP request that it is written to
    (rule 20). `scope` is a JSON template whose strings may hold `{args.NAME}`. `variable` is the environment variable that holds
    the placeholder (`gate`) or the secret (`env`); `file` the name below /run/secrets.
    """

    name: str
    source: str
    deliver: Delivery = Delivery.GATE
    header: str | None = None
    query: str | None = None
    scheme: Scheme = Scheme.BEARER
    username: str | None = None
    scope: Mapping[str, Any] = field(default_factory=dict, hash=False)
    variable: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A live credential. Never printed: its `repr` has no value of it."""

    form: SecretForm
    parts: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedFile:
    """A file that a box gets beside its image, at `/run/<name>`, mode 0400 of the tool's own uid; and mounted over `over`, if set."""

    name: str
    content: bytes = field(repr=False)
    over: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """What leases and gate put into a box: variables and files, on a tmpfs of its own that is never swapped out."""

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: tuple[SuppliedFile, ...] = ()
