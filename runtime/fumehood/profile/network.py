"""What `network` and `credentials` of a profile mean together: combinations that cannot be, and the values of those that can. Pure.

One (name, port) has one rule: two would leave to their order what becomes of a connection. Each credential goes to one place of one
protocol (rule 20), and one that the tool can read lives exactly as long as its box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fumehood.profile.network_documents import MAX_PAIRS, CredentialDocument, EgressDocument, NetworkDocument, target_of
from fumehood.profile.source import Path
from fumehood.reach import (
    CredentialUse,
    Delivery,
    EgressKind,
    EgressRule,
    Network,
    NetworkLimits,
    Scheme,
)

if TYPE_CHECKING:
    from fumehood.profile.documents import ProfileDocument

_PORTS = {EgressKind.HTTP: 443, EgressKind.TLS: 443, EgressKind.POSTGRES: 5432}
_PLAIN_HTTP = 80
_DNS = 53
_MAX_DIFFERENT_PORTS = 32  # a name below a wildcard is not known before it is asked for: its port listens at every address
_READS_REQUESTS = (EgressKind.HTTP,)
_TAKES_CREDENTIALS = (EgressKind.HTTP, EgressKind.POSTGRES)

Wrong = tuple[Path, str]


def judge(document: ProfileDocument) -> Iterator[Wrong]:
    """What cannot be, each with its place."""
    rules = document.network.egress
    sound = True
    for number, rule in enumerate(rules):
        at: Path = ("network", "egress", number)
        for path, message in _judge_rule(rule, document.credentials):
            sound = False
            yield (*at, *path), message
    if sound:
        yield from _judge_overlaps(network(document.network).rules)
        yield from _judge_kinds(network(document.network).rules)
    yield from _judge_credentials(document)


def _judge_rule(rule: EgressDocument, credentials: Mapping[str, CredentialDocument]) -> Iterator[Wrong]:
    kinds = [kind for kind in EgressKind if getattr(rule, kind.value) is not None]
    if len(kinds) != 1:
        yield (), f"expected exactly one of http, tls, postgres, tcp, found {' and '.join(kinds) or 'none'}"
        return
    kind = kinds[0]
    name, port = target_of(getattr(rule, kind.value))
    at: Path = (kind.value,)
    use = credentials.get(rule.credential or "")
    delivered = "gate" if use is None else use.deliver
    found: list[tuple[bool, Path, str]] = [
        (port is not None and bool(rule.ports), ("ports",), f"expected the port once: {kind.value} names {port} already"),
        (len(set(rule.ports)) != len(rule.ports), ("ports",), "expected each port once"),
        (
            _DNS in (port, *rule.ports),
            at if port == _DNS else ("ports",),
            "expected another port than 53, where the gate itself answers: names are resolved there and nowhere else",
        ),
        (
            kind is EgressKind.TCP and port is None and not rule.ports,
            at,
            f"expected HOST:PORT: tcp has no port of its own, such as {name}:6379",
        ),
        (
            name.startswith("*.") and kind not in (EgressKind.HTTP, EgressKind.TLS),
            at,
            f"expected a name without `*`: only http and tls say in the connection which server is meant, {kind.value} does not",
        ),
        (
            name.startswith("*.") and rule.credential is not None,
            ("credential",),
            "expected a rule for one name: whoever gets a name below a wildcard would get the credential",
        ),
        (
            rule.allow is not None and kind not in _READS_REQUESTS,
            ("allow",),
            f"expected it beside http: the gate does not see methods and paths of {kind.value}",
        ),
        (
            rule.insecure and kind not in _TAKES_CREDENTIALS,
            ("insecure",),
            f"expected it beside http or postgres: {kind.value} is not ours to encrypt",
        ),
        (
            # PostgreSQL's password is proved and never sent (SCRAM); a token would be.
            rule.insecure and rule.credential is not None and kind is EgressKind.HTTP,
            ("credential",),
            "expected no credential beside `insecure`: everybody on the way would read it",
        ),
        (
            rule.credential is not None and kind not in _TAKES_CREDENTIALS,
            ("credential",),
            f"expected it beside http or postgres: the gate can write nothing into {kind.value}; `deliver: file` gives it to the tool",
        ),
        (
            rule.credential is not None and kind in _TAKES_CREDENTIALS and delivered != "gate",
            ("credential",),
            f"expected one that the gate delivers: {rule.credential} goes to the tool ({delivered}), which presents it itself",
        ),
        (
            kind is EgressKind.POSTGRES and rule.credential is None,
            at,
            "expected `credential` beside it: the gate logs in for the box; a server whose password the tool has itself is tcp",
        ),
    ]
    yield from ((path, message) for wrong, path, message in found if wrong)


def _judge_overlaps(rules: tuple[EgressRule, ...]) -> Iterator[Wrong]:
    taken: dict[tuple[str, int], int] = {}
    for number, rule in enumerate(rules):
        at: Path = ("network", "egress", number, rule.kind.value)
        for port in rule.ports:
            for (name, other), first in taken.items():
                if other == port and (name == rule.name or covers(name, rule.name) or covers(rule.name, name)):
                    what = f"{rule.name} on port {port}" if name == rule.name else f"{rule.name} and {name} on port {port}"
                    yield at, f"expected one rule for each name and port: {what} is in rule {first + 1} already"
                    break
            taken.setdefault((rule.name, port), number)
    if len({port for _, port in taken}) > _MAX_DIFFERENT_PORTS:
        yield ("network", "egress"), f"expected at most {_MAX_DIFFERENT_PORTS} different ports"
    if len(taken) > MAX_PAIRS:
        yield ("network", "egress"), f"expected at most {MAX_PAIRS} pairs of a name and a port, found {len(taken)}"


def covers(wildcard: str, name: str) -> bool:
    """Whether `*.example.org` stands for this name: one label more, and no other."""
    return wildcard.startswith("*.") and not name.startswith("*.") and name.partition(".")[2] == wildcard[2:]


def _judge_kinds(rules: tuple[EgressRule, ...]) -> Iterator[Wrong]:
    used: dict[str, EgressKind] = {}
    for number, rule in enumerate(rules):
        if rule.credential is not None and used.setdefault(rule.credential, rule.kind) is not rule.kind:
            where: Path = ("network", "egress", number, "credential")
            yield where, f"expected a credential of its own: {rule.credential} is used for {used[rule.credential].value} already"


def _judge_credentials(document: ProfileDocument) -> Iterator[Wrong]:
    logins = {rule.credential for rule in document.network.egress if rule.postgres is not None}
    outlives = document.scope == "session" or document.ask.elicitation or document.ask.sampling or document.ask.roots
    why = "`scope: session`" if document.scope == "session" else "`ask`"
    for name, use in document.credentials.items():
        at: Path = ("credentials", name)
        yield from (((*at, *path), message) for path, message in _judge_use(use))
        if use.deliver != "gate" and outlives:
            yield (
                (*at, "deliver"),
                f"expected `gate` beside {why}: a lease ends with its call, or when it is parked, and the box would go on without",
            )
        written = [field for field in ("header", "query", "scheme", "username", "variable") if getattr(use, field) is not None]
        if name in logins and written:
            yield (*at, written[0]), f"expected nothing of HTTP: the gate logs in to a database with {name}"
    yield from _judge_places(document)


def _judge_places(document: ProfileDocument) -> Iterator[Wrong]:
    """Variables and files that two things would write."""
    variables = dict.fromkeys(document.environment, "`environment`")
    files: dict[str, str] = {}
    for name, use in document.credentials.items():
        if use.variable is not None and (other := variables.setdefault(use.variable, name)) != name:
            yield ("credentials", name, "variable"), f"expected each variable once: {use.variable} is set by {other}"
        if use.deliver == "file" and (other := files.setdefault(use.file or name, name)) != name:
            yield ("credentials", name, "file"), f"expected each file once: /run/secrets/{use.file or name} is the credential {other}"


def _judge_use(use: CredentialDocument) -> Iterator[Wrong]:
    placed = [field for field in ("header", "query", "scheme", "username") if getattr(use, field) is not None]
    gate = use.deliver == "gate"
    found: list[tuple[bool, Path, str]] = [
        (not gate and bool(placed), (*placed[:1],), "expected it beside `deliver: gate`: the tool writes its own requests"),
        (
            use.header is not None and use.query is not None,
            ("query",),
            "expected one place: a header or a query parameter",
        ),
        (
            use.scheme == "sigv4" and (use.header is not None or use.query is not None),
            ("scheme",),
            "expected neither header nor query beside sigv4, which signs the whole request",
        ),
        (
            use.query is not None and use.scheme not in (None, "raw", "sigv4"),
            ("scheme",),
            f"expected raw beside a query parameter, found {use.scheme}",
        ),
        (use.username is not None and use.scheme != "basic", ("username",), "expected `scheme: basic` beside it"),
        (
            use.username is not None and (":" in use.username or not use.username.isprintable()),
            ("username",),
            "expected a name without `:` and control characters: it ends where the password begins",
        ),
        (use.file is not None and use.deliver != "file", ("file",), "expected `deliver: file` beside it"),
        (use.variable is None and use.deliver == "env", ("deliver",), "expected `variable` beside `env`: which one has the secret"),
    ]
    yield from ((path, message) for wrong, path, message in found if wrong)


def network(document: NetworkDocument) -> Network:
    """The value of a judged section."""
    limits = document.limits
    return Network(
        rules=tuple(map(_rule, document.egress)),
        limits=NetworkLimits(
            connections=limits.connections,
            bytes_out=limits.bytes_out,
            bytes_in=limits.bytes_in,
            bytes_per_second=limits.bytes_per_second,
            dns_per_second=limits.dns_per_second,
        ),
    )


def _rule(document: EgressDocument) -> EgressRule:
    (kind,) = (kind for kind in EgressKind if getattr(document, kind.value) is not None)
    name, port = target_of(getattr(document, kind.value))
    usual = _PLAIN_HTTP if document.insecure and kind is EgressKind.HTTP else _PORTS.get(kind, 0)
    return EgressRule(
        kind=kind,
        name=name,
        ports=(port,) if port is not None else tuple(sorted(document.ports)) or (usual,),
        addresses=document.addresses,
        allow=document.allow,
        credential=document.credential,
        insecure=document.insecure,
        labels=() if document.labels is None else document.labels.names,
    )


def credentials(document: ProfileDocument) -> tuple[CredentialUse, ...]:
    """The uses of a judged document: those it describes, and with every default those that only a rule names."""
    named = {rule.credential: rule.postgres is not None for rule in document.network.egress if rule.credential is not None}
    described = {name: document.credentials.get(name, CredentialDocument()) for name in {*named, *document.credentials}}
    return tuple(_use(name, use, login=named.get(name, False)) for name, use in sorted(described.items()))


def _use(name: str, document: CredentialDocument, *, login: bool) -> CredentialUse:
    placed = document.deliver == "gate" and not login
    header = document.header
    if placed and header is None and document.query is None and document.scheme != "sigv4":
        header = "Authorization"
    usual = Scheme.RAW if document.query or (header or "authorization").lower() != "authorization" else Scheme.BEARER
    return CredentialUse(
        name=name,
        source=document.use or name,
        deliver=Delivery(document.deliver),
        header=header,
        query=document.query,
        scheme=usual if document.scheme is None else Scheme(document.scheme),
        username=document.username,
        scope=document.scope,
        variable=document.variable,
        file=(document.file or name) if document.deliver == "file" else None,
    )
