from __future__ import annotations

import ipaddress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress.names import MOST_LISTENERS, MOST_NAMES, Names, is_name
from fumehood.faults import Refused
from fumehood.reach import EgressKind, EgressRule
from fumehood.reasons import Reason

LABEL = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


def rule(name: str, *ports: int, kind: EgressKind = EgressKind.TLS) -> EgressRule:
    return EgressRule(kind=kind, name=name, ports=ports or (443,))


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "a.", ".a", "-a.b", "a-.b", "A.b", "a_b.c", "a b", "a\0.b", "ä.example", "xn--ä", "a" * 64 + ".b", "a." * 127,
     "1.2.3.4", "example.1", "0x7f000001", "a.0x1", "127.1", "[::1]", "::1", "*.a", "a\n"],
)  # fmt: skip
def test_what_is_no_host_name(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize("text", ["a", "localhost", "api.github.com", "xn--bcher-kva.example", "1e100.net", "3.a", "a--b.c", "a" * 63])
def test_what_is_a_host_name(text: str) -> None:
    assert is_name(text)


def test_a_wildcard_stands_for_one_label_and_not_for_none_or_two() -> None:
    names = Names([rule("*.example.org")])
    assert names.knows("www.example.org")
    assert not any(names.knows(name) for name in ("example.org", "a.b.example.org", "xexample.org", ".example.org", "*.example.org"))
    assert names.route("www.example.org", 443) is not None
    assert names.route("www.example.org", 80) is None


def test_an_exact_rule_beats_a_wildcard_and_the_first_of_equals_holds() -> None:
    names = Names([rule("*.example.org"), rule("www.example.org", kind=EgressKind.HTTP), rule("www.example.org", kind=EgressKind.TCP)])
    route = names.route("www.example.org", 443)
    assert route is not None
    assert (route.number, route.rule.kind, route.label) == (1, EgressKind.HTTP, "network.egress[1] http: www.example.org")


def test_one_name_may_have_a_rule_for_each_of_its_ports() -> None:
    names = Names([rule("git.example", 443), rule("git.example", 22, kind=EgressKind.TCP)])
    assert [names.route("git.example", port) is not None for port in (443, 22, 80)] == [True, True, False]
    assert {route.port for route in names.exact()} == {443, 22}


def test_each_name_has_addresses_of_its_own_that_lead_back_to_it() -> None:
    names = Names([rule("a.example"), rule("*.b.example")])
    found = [names.address_of(name) for name in ("a.example", "x.b.example", "y.b.example", "x.b.example")]
    assert None not in found
    assert found[1] == found[3]
    assert len({each.v4 for each in found if each} | {each.v6 for each in found if each}) == 6
    for each, name in zip(found, ("a.example", "x.b.example", "y.b.example"), strict=False):
        assert each is not None
        assert names.name_at(each.v4) == names.name_at(each.v6) == name
        assert ipaddress.ip_address(each.v4) in ipaddress.ip_network("198.18.0.0/15")
        assert ipaddress.ip_address(each.v6) in ipaddress.ip_network("fd53::/48")
    assert names.address_of("c.example") is None


def test_a_box_that_makes_up_names_gets_256_of_them_and_keeps_those_it_had() -> None:
    names = Names([rule("api.example"), rule("*.cdn.example")])
    made = [names.address_of(f"n{number}.cdn.example") for number in range(1000)]
    assert sum(each is not None for each in made) == MOST_NAMES - 1
    assert names.address_of("api.example") is not None
    assert names.address_of("n0.cdn.example") == made[0]


def test_exact_names_are_listened_for_at_their_addresses_and_wildcards_everywhere() -> None:
    names = Names([rule("a.example", 443, 80), rule("*.b.example", 443), rule("c.example", 5432, kind=EgressKind.POSTGRES)])
    a, c = names.address_of("a.example"), names.address_of("c.example")
    assert a is not None
    assert c is not None
    listens = {(each.v4, each.v6, each.port) for each in names.listens()}
    assert listens == {(a.v4, a.v6, 80), (c.v4, c.v6, 5432), (None, None, 443)}


def test_too_many_pairs_are_listened_for_by_port() -> None:
    names = Names([rule(f"n{number}.example", 443, 80) for number in range(MOST_LISTENERS)])
    assert [(each.v4, each.port) for each in names.listens()] == [(None, 80), (None, 443)]


@pytest.mark.parametrize(
    "rules",
    [
        [rule("not a name")],
        [rule("*.*.example")],
        [rule("10.0.0.1")],
        [rule("*.0.0.1")],
        [rule("dns.example", 53)],
        [rule(f"n{number}.example") for number in range(MOST_NAMES + 1)],
    ],
)
def test_rules_that_cannot_be_kept_are_refused_by_their_place(rules: list[EgressRule]) -> None:
    with pytest.raises(Refused) as refused:
        Names(rules)
    assert refused.value.reason is Reason.PROFILE_INVALID
    assert refused.value.deny.rule.startswith("network.egress[")


def test_more_ports_than_a_gate_can_listen_at_are_refused() -> None:
    names = Names([rule("*.example", *range(1000, 1000 + MOST_LISTENERS + 1))])
    with pytest.raises(Refused):
        names.listens()


@given(st.lists(LABEL, min_size=1, max_size=4), st.lists(LABEL, min_size=1, max_size=4))
def test_a_name_is_known_exactly_when_a_rule_matches_it_label_by_label(suffix: list[str], asked: list[str]) -> None:
    name = ".".join(asked)
    if not is_name(".".join(suffix)) or not is_name(name):
        return
    names = Names([rule("*." + ".".join(suffix))])
    assert names.knows(name) == (asked[1:] == suffix)
    assert (names.route(name, 443) is not None) == (asked[1:] == suffix)


@given(st.lists(LABEL, unique=True, min_size=2, max_size=40))
def test_no_two_names_share_an_address(labels: list[str]) -> None:
    names = Names([rule("*.example")])
    found = sorted(filter(None, (names.address_of(f"{label}.example") for label in labels)), key=lambda each: each.v6)
    assert len(found) == len(labels)
    assert all(left.v4 != right.v4 and left.v6 != right.v6 for left, right in pairwise(found))
