"""The strict models of `network` and `credentials` in a profile: each field by itself. Together they are judged in `network`.

A name here is what DNS answers, what a ClientHello and a Host header are compared with and what is resolved and dialled, so it has one
spelling: lower-case letters, digits and hyphens in labels. Whatever another program could read as something else (a literal address
in any of its spellings, a URL, a trailing dot, an internationalised name) is refused with the reason.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fumehood.profile.fields import Name, Strict, Text, Variable, expected, matching, size
from fumehood.profile.labels import LabelsDocument

MAX_RULES = 32
MAX_PAIRS = 60  # (name, port): each is a listener in the box's network
MAX_PORTS = 16
MAX_ADDRESSES = 16
MAX_PATTERNS = 64
MAX_CREDENTIALS = 8

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What inet_aton and browsers take for an address: the last label is a number.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_METHOD = re.compile(r"\*|[A-Z][A-Z0-9-]{0,31}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()+,=:@-]*")
_UNUSABLE_METHODS = {"CONNECT": "it asks for a tunnel", "TRACE": "it echoes the credential"}
_PATTERN_CHARACTERS = 512
_HEADER = r"^[A-Za-z][A-Za-z0-9-]{0,63}$"
_QUERY = r"^[A-Za-z0-9._~-]{1,64}$"
# What frames, routes or encodes a message is the gate's own to write.
_NOT_A_PLACE = frozenset(
    """
    accept-encoding connection content-encoding content-length content-type expect forwarded host keep-alive origin
    proxy-connection range te trailer transfer-encoding upgrade x-http-method x-http-method-override x-method-override
    x-original-url x-rewrite-url
    """.split()  # noqa: SIM905 - 19 quoted lines would hide what is there
)
_ARGUMENT = re.compile(r"\{args\.[A-Za-z_][A-Za-z0-9_]{0,63}\}")


def target_of(text: str) -> tuple[str, int | None]:
    """`HOST[:PORT]` as a name and a port. Raises ValueError with what was expected."""
    if "://" in text or "/" in text:
        raise ValueError(f"expected a host's name: the scheme is the kind of rule, and paths belong into `allow`, found {text!r}")
    if text.startswith("[") or text.count(":") > 1:
        raise ValueError(_literal(text))
    name, colon, port = text.partition(":")
    _check_name(name)
    if not colon:
        return name, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"expected a port from 1 to 65535 after the name, found {port!r}")
    return name, int(port)


def _check_name(name: str) -> None:
    if not name.isascii():
        raise ValueError(f"expected a name as DNS has it (`xn--...` for an internationalised one), found {name!r}")
    if name != name.lower():
        raise ValueError(f"expected a name in lower case, found {name!r}; did you mean {name.lower()}?")
    labels = name.removeprefix("*.").split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        raise ValueError(_literal(name))
    if name.endswith("."):
        raise ValueError(f"expected a name without a dot at its end, found {name!r}")
    if "*" in "".join(labels):
        raise ValueError(f"expected at most one `*`, as the whole first label, found {name!r}")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"expected a host's name: labels of a-z, 0-9 and `-` with dots between them, found {name!r}")
    if labels[-1] == "localhost":
        raise ValueError("expected another name: a box's localhost is its own loopback and never leaves it")
    if name.startswith("*.") and len(labels) < 2:
        raise ValueError(f"expected at least two labels after `*.`: {name} is a whole top-level domain")


def _literal(text: str) -> str:
    return (
        f"expected a name, found the address {text!r}: a box reaches names alone, so that what was judged is what is dialled;"
        " give the server's name here, and its network in `addresses` if it is private"
    )


def _target(value: object) -> str:
    if not isinstance(value, str):
        raise expected(f"expected HOST or HOST:PORT, found {value!r}")
    try:
        target_of(value)
    except ValueError as error:
        raise expected(str(error)) from None
    return value


def _network(value: object) -> str:
    if not isinstance(value, str) or "/" not in value:
        hint = f"; did you mean {value}/{128 if ':' in value else 32}?" if isinstance(value, str) else ""
        raise expected(f"expected a network such as 10.20.0.0/16, found {value!r}{hint}")
    try:
        found = ipaddress.ip_network(value)
    except ValueError:
        raise expected(_network_hint(value)) from None
    if str(found) != value:
        raise expected(f"expected the network as it is usually written, {found}, found {value!r}")
    if found.is_multicast:
        raise expected(f"expected a network of single hosts: {value} is multicast, which the gate cannot dial")
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen and found.network_address.ipv4_mapped is not None:
        raise expected(f"expected an IPv4 network as one: {value} maps IPv4 into IPv6, which the gate never dials")
    return value


def _network_hint(value: str) -> str:
    try:
        loose = ipaddress.ip_network(value, strict=False)
    except ValueError:
        return f"expected a network such as 10.20.0.0/16, found {value!r}"
    return f"expected a network without host bits, found {value!r}; did you mean {loose}?"


def _pattern(value: object) -> str:
    if not isinstance(value, str):
        raise expected(f'expected "METHOD /path", found {value!r}')
    method, _, path = value.partition(" ")
    if not path.startswith("/") or not _METHOD.fullmatch(method):
        raise expected(f'expected "METHOD /path" with a method in capitals or `*`, such as "GET /repos/**", found {value!r}')
    if why := _UNUSABLE_METHODS.get(method):
        raise expected(f"expected another method: {method} is never let through, for {why}")
    if len(path) > _PATTERN_CHARACTERS:
        raise expected(f"expected at most {_PATTERN_CHARACTERS} characters of a path")
    segments = path[1:].split("/")
    for number, segment in enumerate(segments):
        if segment in {".", ".."} or (not segment and number < len(segments) - 1):
            raise expected(f"expected a path without `.`, `..` and `//`, which servers read in different ways, found {path!r}")
        if "%" in segment or "?" in segment or "#" in segment or ";" in segment:
            raise expected(f"expected the path alone, as it is after decoding: no `%`, `?`, `#`, `;`, found {path!r}")
        if segment not in {"*", "**"} and not _SEGMENT.fullmatch(segment):
            hint = "; `*` and `**` stand for whole segments" if "*" in segment else ""
            raise expected(f"expected segments of letters, digits and -._~!$&'()+,=:@{hint}, found {path!r}")
    return value


def _header(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_HEADER.strip("^$"), value):
        raise expected(f"expected a header's name of letters, digits and `-`, found {value!r}")
    if value.lower() in _NOT_A_PLACE:
        raise expected(f"expected another header: {value} frames or routes the message, and is the gate's own to write")
    return value


def _scope(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise expected(f"expected a map, found {value!r}")
    for text in _strings(value):
        # Anything else that starts like an argument would be taken literally, and nobody would notice.
        if "{args" in _ARGUMENT.sub("", text):
            raise expected(f"expected arguments as {{args.NAME}}, found {text!r}")
    if any("{args" in key for key in _keys(value)):
        raise expected("expected arguments in values alone: an argument must not choose which key it narrows")
    return value


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _strings(each)]


def _keys(value: object) -> list[str]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [*(value if isinstance(value, dict) else ()), *(key for each in inner for key in _keys(each))]


Target = Annotated[str, BeforeValidator(_target), WithJsonSchema({"type": "string", "examples": ["api.github.com"]})]
NetworkAddress = Annotated[str, BeforeValidator(_network), WithJsonSchema({"type": "string", "examples": ["10.20.0.0/16"]})]
Pattern = Annotated[str, BeforeValidator(_pattern), WithJsonSchema({"type": "string", "examples": ["GET /repos/acme/**"]})]
Header = Annotated[str, BeforeValidator(_header), WithJsonSchema({"type": "string", "pattern": _HEADER})]
Query = Annotated[str, *matching(_QUERY, "a query parameter's name of letters, digits and -._~")]
Scope = Annotated[dict[str, Any], BeforeValidator(_scope)]


class EgressDocument(Strict):
    """One name that a box may reach, with exactly one of `http`, `tls`, `postgres`, `tcp`."""

    http: Target | None = Field(default=None, description="HOST[:PORT]: TLS ends at the gate, which reads each request. Port 443.")
    tls: Target | None = Field(default=None, description="HOST or *.SUFFIX: passed through, the server name checked. Port 443.")
    postgres: Target | None = Field(default=None, description="HOST[:PORT]: the gate logs in for the box. Port 5432.")
    tcp: Target | None = Field(default=None, description="HOST:PORT: relayed, not looked at.")
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        default=(), max_length=MAX_PORTS, strict=False, description="Ports, where the name gives none."
    )
    allow: tuple[Pattern, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PATTERNS,
        strict=False,
        description='For http: "METHOD /path" patterns; `*` any method, or one segment, `**` any number. Default: every request.',
    )
    addresses: tuple[NetworkAddress, ...] = Field(
        default=(), max_length=MAX_ADDRESSES, strict=False, description="Private networks that the name may resolve to."
    )
    credential: Name | None = Field(default=None, description="For http and postgres: the credential that the gate uses here.")
    labels: LabelsDocument | None = Field(default=None, description="Labels of every call whose box may use this rule.")
    insecure: bool = Field(default=False, description="No TLS upstream, for http (never with a credential) and postgres.")


class NetworkLimitsDocument(Strict):
    """What one box may use of its gate."""

    connections: int = Field(default=64, ge=1, le=256, description="Connections at once.")
    bytes_out: Annotated[int, *size(1024)] = Field(default=10 * 2**20, description="Bytes sent, in all.")
    bytes_in: Annotated[int, *size(1024)] = Field(default=200 * 2**20, description="Bytes received, in all.")
    bytes_per_second: Annotated[int, *size(1024)] | None = Field(
        default=None, description="Both directions together; null for no limit."
    )
    dns_per_second: int = Field(default=20, ge=1, le=1000, description="DNS questions.")


class NetworkDocument(Strict):
    """What a box may reach: nothing but its own loopback, unless named."""

    egress: tuple[EgressDocument, ...] = Field(
        default=(), max_length=MAX_RULES, strict=False, description="Names that the box may reach. Default: none."
    )
    limits: NetworkLimitsDocument = Field(default=NetworkLimitsDocument())


class CredentialDocument(Strict):
    """How one credential of fumehood.yaml is used."""

    use: Name | None = Field(default=None, description="Its name in fumehood.yaml. Default: the same.")
    deliver: Literal["gate", "file", "env"] = Field(
        default="gate", description="gate: the box never has it. file, env: the tool can read it."
    )
    header: Header | None = Field(default=None, description="Where the gate writes it. Default: Authorization.")
    query: Query | None = Field(default=None, description="A query parameter instead of a header.")
    scheme: Literal["bearer", "basic", "raw", "sigv4"] | None = Field(
        default=None, description="How it is written. Default: bearer in Authorization, raw elsewhere."
    )
    username: Text | None = Field(default=None, description="For basic, with a token as the password.")
    scope: Scope = Field(default_factory=dict, description="What is asked of the provider; strings may hold {args.NAME}.")
    variable: Variable | None = Field(
        default=None, description="The variable that has the secret (env), its path (file), or a placeholder for it (gate)."
    )
    file: Name | None = Field(default=None, description="file: its name below /run/secrets. Default: the credential's.")
