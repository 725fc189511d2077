"""What the `gateway:` section of fumehood.yaml says, as frozen values, and the rule about addresses. Pure; standard library only.

A gateway that listens beyond this host sends bearer tokens over a network, so it needs TLS (security rule 7); and one
that listens on every address cannot guess by which names browsers may call it, so it needs to be told. The same rule
judges the file (`gateway_document`) and the `--http` option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fumehood.oauth_config import OAuthConfig

MAX_SERVERS = 64
MAX_UNIX_USERS = 16
AUDIENCE = "fumehood"
AUDIENCE_PATTERN = r"[!-~]{1,256}"
SOCKET_PATH_BYTES = 107  # what fits into a sockaddr_un

_HOST_NAME = re.compile(r"(?!.*\.\.)[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_URL = re.compile(
    r"https://(?P<name>(?!.*\.\.)[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)(:(?P<port>[0-9]{1,5}))?(?P<path>/[!-\"$-~]*)?"
)
_ORIGIN = re.compile(r"https?://([^/?#@\s]+)")


class PinMode(StrEnum):
    """Whether a tool may be called when its definition is seen for the first time, or only when the operator has accepted it."""

    TRUST_FIRST = "trust-first"
    REVIEW = "review"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """A remote server: its URL, and whom the gateway is to it.

    `credential` is a name of the configuration's, `resource` what its token is asked for (RFC 8707); `addresses` are the networks
    (CIDR) that its name may resolve to beside public ones.
    """

    url: str
    credential: str | None = None
    resource: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One server: its name (the prefix of its tools), its profile, and what the profile leaves open."""

    name: str
    profile: str
    workspace: str | None = None
    command: tuple[str, ...] = ()
    engine: str | None = None
    upstream: UpstreamConfig | None = None
    pins: PinMode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """PEM files of the certificate chain and its key."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on. `host` is a literal address, IPv6 without brackets; port 0 lets the kernel choose."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this host can connect."""
        import ipaddress

        return ipaddress.ip_address(self.host).is_loopback

    @property
    def wildcard(self) -> bool:
        """Whether every address of this host is meant."""
        import ipaddress

        return ipaddress.ip_address(self.host).is_unspecified

    def __str__(self) -> str:
        """As it is written: `127.0.0.1:8080`, `[::1]:8080`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class EnvelopeMode(StrEnum):
    """Whether requests carry a signature of their sender's: they must, they may and then it is verified, they must not."""

    REQUIRED = "required"
    ACCEPTED = "accepted"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeConfig:
    """What one front door asks of envelopes. `audience` is what they are made out to; `skew_s` what a sender's clock is forgiven."""

    mode: EnvelopeMode = EnvelopeMode.ACCEPTED
    audience: str = AUDIENCE
    skew_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """The HTTP front. Without `listen` it is there for `--http` alone; without `allowed_hosts` its own address is meant.

    There is a `tokens_file`, or `oauth`, or both.
    """

    tokens_file: str | None = None
    listen: Listen | None = None
    tls: TlsConfig | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)
    oauth: OAuthConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The whole section; servers in the order of the file. `unix_users` (name, uid) are served on the unix socket beside its owner."""

    servers: tuple[ServerConfig, ...] = ()
    http: HttpConfig | None = None
    unix: str | None = None
    unix_envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)
    unix_users: tuple[tuple[str, int], ...] = ()
    pins: PinMode = PinMode.TRUST_FIRST

    @property
    def pinned_otherwise(self) -> tuple[str, ...]:
        """The servers whose mode is not the gateway's."""
        return tuple(each.name for each in self.servers if each.pins not in (None, self.pins))


def is_audience(text: str) -> bool:
    """Whether envelopes can be made out to this."""
    return re.fullmatch(AUDIENCE_PATTERN, text) is not None


def listen_of(text: str) -> Listen:
    """`HOST:PORT` as an address. Raises ValueError with what was expected.

    Only literal addresses and `localhost`: what another name resolves to is decided elsewhere, and by others.
    """
    import ipaddress

    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:8080, found {text!r}")
    if host == "localhost":
        return Listen("127.0.0.1", int(port))
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    if address is None or bracketed != (address.version == 6) or "%" in host:
        raise ValueError(
            f"expected a literal address or localhost before the port, such as 127.0.0.1 or [::1], found {host!r}"
        )
    return Listen(str(address), int(port))


def url_of(text: str) -> str:
    """A remote server's URL, as it is asked for: `https://name[:port]/path[?query]`. Raises ValueError with what was expected.

    A name and no address in any spelling (a last label that begins with a digit could be one); no user and no fragment, because
    neither is ever sent.
    """
    found = _URL.fullmatch(text)
    named = found is not None and re.match(r"[a-z]", found["name"].rpartition(".")[2])
    if found is None or not named or not 0 < int(found["port"] or 443) < 65536:
        raise ValueError(f"expected https://name[:port]/path with a lower-case name that is no address, found {text!r}")
    return text


def resource_of(text: str) -> str:
    """A resource indicator (RFC 8707): an absolute URI without a fragment. Raises ValueError."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-\"$-~]+", text):
        raise ValueError(f"expected an absolute URI without a fragment, found {text!r}")
    return text


def network_of(text: str) -> str:
    """A network as CIDR. Raises ValueError."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f"expected a network such as 10.20.0.0/16 or fd00:1::/64, found {text!r}") from None


def exposed(listen: Listen, *, tls: bool, allowed_hosts: bool) -> str | None:
    """Why this address may not be listened on with what else is configured, or None."""
    if not listen.loopback and not tls:
        return f"expected a loopback address, or `tls`: on {listen} bearer tokens would cross a network in clear"
    if listen.wildcard and not allowed_hosts:
        return f"expected `allowed_hosts`: {listen} does not tell by which names clients may call it"
    return None


def host_of(text: str) -> str:
    """An entry of `allowed_hosts`, as the Host header is compared with it. Raises ValueError."""
    import ipaddress

    host = text.lower()
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(f"expected a host's name or address without a port, found {text!r}") from None
        return host
    return f"[{address}]" if address.version == 6 else str(address)


def origin_of(text: str) -> str:
    """An entry of `allowed_origins`, as browsers write it. Raises ValueError."""
    if not _ORIGIN.fullmatch(text) or text != text.lower():
        raise ValueError(f"expected scheme://host[:port] in lower case and nothing behind it, found {text!r}")
    return text


def default_hosts(listen: Listen) -> tuple[str, ...]:
    """By which names a client may call a server on this address when none are configured."""
    own = f"[{listen.host}]" if ":" in listen.host else listen.host
    return ("localhost", "127.0.0.1", "[::1]") if listen.loopback else (own,)
