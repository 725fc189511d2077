"""What a profile lets out, for people: `network` and `credentials` as a file says them, and as sentences. Pure.

A reviewer asks where a tool can reach, what is checked of what it sends, and what it could give away. So what the gate cannot check
is said beside what it can: a passed-through connection shows its server name and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fumehood.model import Profile
from fumehood.profile.explain_labels import shown_names
from fumehood.profile.units import size_text
from fumehood.reach import CredentialUse, Delivery, EgressKind, EgressRule, Scheme

SNI_ONLY = "SNI only: fronting behind a shared CDN is possible"
_USUAL = {EgressKind.HTTP: 443, EgressKind.TLS: 443, EgressKind.POSTGRES: 5432}


def shown_network(value: Profile) -> dict[str, Any]:
    """The section with every default that has an effect."""
    limits = value.network.limits
    return {
        "egress": [_shown_rule(rule) for rule in value.network.rules],
        "limits": {
            "connections": limits.connections,
            "bytes_out": size_text(limits.bytes_out),
            "bytes_in": size_text(limits.bytes_in),
            "bytes_per_second": None if limits.bytes_per_second is None else size_text(limits.bytes_per_second),
            "dns_per_second": limits.dns_per_second,
        },
    }


def _shown_rule(rule: EgressRule) -> dict[str, Any]:
    return {
        rule.kind.value: rule.name,
        "ports": list(rule.ports),
        **({} if rule.allow is None else {"allow": list(rule.allow)}),
        "addresses": list(rule.addresses),
        **({} if rule.credential is None else {"credential": rule.credential}),
        **({"insecure": True} if rule.insecure else {}),
        **({"labels": shown_names(rule.labels)} if rule.labels else {}),
    }


def shown_credentials(value: Profile) -> dict[str, Any]:
    """The section, with what is only implied by a rule."""
    logins = {rule.credential for rule in value.network.rules if rule.kind is EgressKind.POSTGRES}
    return {use.name: _shown_use(use, written=use.name not in logins) for use in value.credentials}


def _shown_use(use: CredentialUse, *, written: bool) -> dict[str, Any]:
    placed: dict[str, Any] = {}
    if use.deliver is Delivery.GATE and written:
        placed = {"header": use.header, "query": use.query, "scheme": use.scheme.value, "username": use.username}
    return {
        "use": use.source,
        "deliver": use.deliver.value,
        **{name: each for name, each in placed.items() if each is not None},
        "scope": dict(use.scope),
        **({} if use.variable is None else {"variable": use.variable}),
        **({} if use.file is None else {"file": use.file}),
    }


def said_of_network(value: Profile) -> list[str]:
    """What the box may reach, with which credentials, and what can be seen of them."""
    rules, uses = value.network.rules, {use.name: use for use in value.credentials}
    if not rules and not uses:
        return ["It has no network but its own loopback, no credentials and no devices."]
    lines = [line for rule in rules for line in _said_of_rule(rule, uses)]
    lines += [line for use in uses.values() for line in _said_of_delivery(use)]
    if not rules:
        return ["It has no network but its own loopback.", *lines, "It has no devices."]
    limits = value.network.limits
    rate = "" if limits.bytes_per_second is None else f", at most {size_text(limits.bytes_per_second)} a second"
    return [
        *lines,
        "It can reach nothing else: other names do not resolve, other ports are refused, and it has no link to any address.",
        (
            f"It can have {limits.connections} connections at once, send {size_text(limits.bytes_out)} and receive"
            f" {size_text(limits.bytes_in)} in all{rate}, and ask for {limits.dns_per_second} names a second."
        ),
        "It has no devices.",
    ]


def _said_of_rule(rule: EgressRule, uses: dict[str, CredentialUse]) -> Iterator[str]:
    many = "s" if len(rule.ports) > 1 else ""
    ports = "" if rule.ports == (_USUAL.get(rule.kind),) else f" on port{many} {', '.join(map(str, rule.ports))}"
    where = "any one label below " + rule.name[2:] if rule.name.startswith("*.") else rule.name
    if rule.kind is EgressKind.HTTP:
        how = "by plain HTTP, which everybody on the way can read" if rule.insecure else "by HTTPS, which the gate ends and reads"
        asked = "every request" if rule.allow is None else f"only {', '.join(rule.allow)}"
        yield f"It can reach {where}{ports} {how}, with {asked}."
    elif rule.kind is EgressKind.TLS:
        yield f"It can reach {where}{ports} by TLS that is passed through ({SNI_ONLY})."
    elif rule.kind is EgressKind.POSTGRES:
        clear = "; without TLS, so that everybody on the way can read what is asked and answered" if rule.insecure else ""
        yield f"It can reach the PostgreSQL server {where}{ports}, where the gate logs in for it{clear}."
    else:
        yield f"It can reach {where}{ports} by TCP that nobody looks into."
    if rule.addresses:
        yield f"{rule.name} may be at a private address, in {', '.join(rule.addresses)}, beside public ones."
    if rule.credential is not None:
        use = uses[rule.credential]
        yield f"The gate uses the credential {use.source} towards {rule.name}{_written(rule, use)}; the tool never sees it."


def _written(rule: EgressRule, use: CredentialUse) -> str:
    if rule.kind is EgressKind.POSTGRES:
        return " to log in"
    if use.scheme is Scheme.SIGV4:
        return " to sign each request (SigV4)"
    if use.query is not None:
        return f" as the query parameter {use.query}"
    how = "" if use.scheme is Scheme.RAW else f" ({use.scheme.value.capitalize()})"
    return f" in the header {use.header}{how}"


def _said_of_delivery(use: CredentialUse) -> Iterator[str]:
    anywhere = "visible to the tool, which can send it wherever it can reach"
    if use.deliver is Delivery.ENV:
        yield f"It has the credential {use.source} in its environment as {use.variable}: {anywhere}."
    elif use.deliver is Delivery.FILE:
        named = "" if use.variable is None else f", which {use.variable} names"
        yield f"It has the credential {use.source} in the file /run/secrets/{use.file}{named}: {anywhere}."
    elif use.variable is not None:
        yield f"It has a placeholder in its environment as {use.variable}, which is worth nothing outside this box."
    if use.scope:
        yield f"The credential {use.source} is asked for with a scope, {_scope_text(use)}."


def _scope_text(use: CredentialUse) -> str:
    import json

    narrowed = ", narrowed by the call's arguments" if "{args." in json.dumps(dict(use.scope)) else ""
    return f"{', '.join(sorted(use.scope))}{narrowed}"
