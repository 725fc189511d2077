"""Warnings about what a profile lets out: what it widens, what has no effect, and what people regret. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any

from fumehood.model import Profile
from fumehood.profile.network import covers
from fumehood.profile.problems import nearest
from fumehood.profile.source import Path
from fumehood.profile.units import size_text
from fumehood.reach import CredentialUse, Delivery, EgressKind, EgressRule

Finding = tuple[Path, str]

# Below these anybody can have a name: an allowlist of all of them is none.
_SHARED = frozenset(
    """
    amazonaws.com appspot.com azureedge.net azurewebsites.net blob.core.windows.net cloudfront.net fastly.net firebaseapp.com fly.dev
    github.io githubusercontent.com gitlab.io googleapis.com herokuapp.com netlify.app ngrok-free.app ngrok.io pages.dev r2.dev run.app
    s3.amazonaws.com storage.googleapis.com supabase.co trycloudflare.com vercel.app web.app workers.dev
    """.split()  # noqa: SIM905 - a table of names
)
_SECOND_LEVEL = frozenset({"ac", "co", "com", "edu", "gov", "net", "org"})
_REGRETTED: tuple[tuple[str, str], ...] = (
    ("169.254.0.0/16", "reaches link-local addresses, where clouds hand the host's own credentials to whoever asks"),
    ("fe80::/10", "reaches link-local addresses: every machine of the host's own network"),
    ("127.0.0.0/8", "reaches this host's own loopback, whose services often ask for no password"),
    ("::1/128", "reaches this host's own loopback, whose services often ask for no password"),
)
_LIMITS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("connections", str), ("bytes_out", size_text), ("bytes_in", size_text), ("dns_per_second", str),
)  # fmt: skip


def widening(parent: Profile, child: Profile, more: str) -> Iterator[Finding]:
    """Where the child reaches further than the profile that it extends, or with another credential."""
    for number, rule in enumerate(child.network.rules):
        if not any(_within(rule, other) for other in parent.network.rules):
            ports = ", ".join(map(str, rule.ports))
            yield ("network", "egress", number), f"{more}reaches {rule.name} on {ports} ({rule.kind.value}) as it could not"
    before, now = parent.network.limits, child.network.limits
    for name, show in _LIMITS:
        if getattr(now, name) > getattr(before, name):
            yield ("network", "limits", name), f"{more}{show(getattr(now, name))} instead of {show(getattr(before, name))}"
    rate = before.bytes_per_second
    if rate is not None and (now.bytes_per_second is None or now.bytes_per_second > rate):
        yield ("network", "limits", "bytes_per_second"), f"{more}a higher rate than {size_text(rate)} a second"
    known = {use.name: use for use in parent.credentials}
    for use in child.credentials:
        if use.name not in known:
            yield ("credentials", use.name), f"{more}uses the credential {use.source}"
        elif use != known[use.name]:
            yield ("credentials", use.name), f"{more}uses the credential {use.source} in another way"


def _within(rule: EgressRule, other: EgressRule) -> bool:
    """Whether everything that `rule` allows, `other` allows too."""
    return (
        rule.kind is other.kind
        and (rule.name == other.name or covers(other.name, rule.name))
        and set(rule.ports) <= set(other.ports)
        and set(rule.addresses) <= set(other.addresses)
        and (other.allow is None or (rule.allow is not None and set(rule.allow) <= set(other.allow)))
        and rule.credential in (None, other.credential)
        and rule.insecure is other.insecure
        and set(other.labels) <= set(rule.labels)
    )


def without_effect(value: Profile) -> Iterator[Finding]:
    """Credentials that nothing uses."""
    named = {rule.credential for rule in value.network.rules}
    for use in value.credentials:
        if use.deliver is Delivery.GATE and use.name not in named:
            yield ("credentials", use.name), "has no effect: no rule of network.egress names it"


def unknown(value: Profile, known: frozenset[str]) -> Iterator[Finding]:
    """Credentials that the configuration does not have."""
    for use in value.credentials:
        if use.source not in known:
            said = f"fumehood.yaml has no credential {use.source}, so every call will be refused{nearest(use.source, known)}"
            yield ("credentials", use.name), said


def regretted(value: Profile) -> Iterator[Finding]:
    """What is valid and deserves a look."""
    for number, rule in enumerate(value.network.rules):
        at: Path = ("network", "egress", number)
        yield from (((*at, *path), message) for path, message in _regretted_rule(rule))
    for use in value.credentials:
        yield from _regretted_use(use)


def _regretted_rule(rule: EgressRule) -> Iterator[Finding]:
    kind = rule.kind.value
    if rule.name.startswith("*.") and _is_shared(rule.name[2:]):
        yield (kind,), f"allows every name below {rule.name[2:]}, and anybody can have one: name the ones that are meant"
    for number, text in enumerate(rule.addresses):
        yield from ((("addresses", number), message) for message in _regretted_network(text))
    if rule.insecure:
        yield ("insecure",), "everybody between this host and the server reads and writes what is sent"
    if rule.credential is not None and rule.kind is EgressKind.HTTP and (rule.allow is None or "* /**" in rule.allow):
        where = ("credential",) if rule.allow is None else ("allow", rule.allow.index("* /**"))
        yield where, "lets the tool do all that the credential can: name the methods and paths that it needs in `allow`"
    if rule.kind is EgressKind.TCP and {80, 443} & set(rule.ports):
        yield (kind,), "nothing of what is sent is looked at: `tls` checks the server's name, `http` reads the requests"


def _regretted_network(text: str) -> Iterator[str]:
    found = ipaddress.ip_network(text)
    if found.prefixlen == 0:
        yield "is every private network around: whoever answers for the name in DNS chooses which host of yours it leads to"
        return
    for text_of_range, message in _REGRETTED:
        within = ipaddress.ip_network(text_of_range)
        # A wider network names neither of them: the gate wants loopback and link-local named by themselves.
        if found.version == within.version and found.network_address in within and found.prefixlen >= within.prefixlen:
            yield message


def _regretted_use(use: CredentialUse) -> Iterator[Finding]:
    if use.deliver is not Delivery.GATE:
        yield ("credentials", use.name, "deliver"), "the tool can read the secret and send it wherever it can reach"


def _is_shared(suffix: str) -> bool:
    labels = suffix.split(".")
    return suffix in _SHARED or (len(labels) == 2 and labels[0] in _SECOND_LEVEL and len(labels[1]) == 2)
