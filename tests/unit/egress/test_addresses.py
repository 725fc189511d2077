from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress.addresses import embedded, is_public, judge, named

METADATA = "169.254.169.254"


def wrong(address: str, *networks: str) -> str | None:
    return judge(ipaddress.ip_address(address), named(networks))


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:2800:220:1::1", "2a00:1450::1"])
def test_public_addresses_are_allowed_whatever_else_is_named(address: str) -> None:
    assert wrong(address) is None
    assert wrong(address, "10.0.0.0/8") is None


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "127.255.0.1", METADATA, "0.1.2.3", "224.0.0.1",
     "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.2", "198.51.100.1", "203.0.113.1", "192.88.99.1",
     "168.63.129.16", "100.100.100.200",
     "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd53::2", "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1",
     "2001:2::1", "2001:10::1", "4000::1"],
)  # fmt: skip
def test_addresses_that_are_no_place_on_the_internet_are_refused(address: str) -> None:
    assert wrong(address) is not None


@pytest.mark.parametrize(
    ("address", "network"),
    [("10.1.2.3", "10.1.0.0/16"), ("172.16.0.1", "172.16.0.1/32"), ("100.64.0.1", "100.64.0.0/10"), ("fd12::1", "fd12::/48"),
     ("127.0.0.1", "127.0.0.0/8"), ("169.254.1.1", "169.254.1.0/24"), ("::1", "::1/128"), ("198.18.9.9", "198.18.0.0/15"),
     ("168.63.129.16", "168.63.129.16/32"), ("100.100.100.200", "100.100.100.200/32")],
)  # fmt: skip
def test_what_a_rule_names_is_allowed(address: str, network: str) -> None:
    assert wrong(address) is not None
    assert wrong(address, network) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [(METADATA, "0.0.0.0/0"), ("127.0.0.1", "0.0.0.0/0"), ("::1", "::/0"), ("fe80::1", "::/0"), ("100.100.100.200", "100.64.0.0/10"),
     ("fd00:ec2::254", "fd00::/8"), ("168.63.129.16", "168.63.0.0/16"), ("224.0.0.1", "224.0.0.0/4"), ("0.1.0.0", "0.0.0.0/0"),
     ("::", "::/0"), ("ff02::1", "ff00::/8"), ("255.255.255.255", "0.0.0.0/0")],
)  # fmt: skip
def test_a_wide_range_names_neither_loopback_nor_metadata_nor_what_is_no_host(address: str, network: str) -> None:
    assert wrong(address, network) is not None


@pytest.mark.parametrize(
    "address",
    [f"::ffff:{METADATA}", "::ffff:10.0.0.1", "::ffff:93.184.216.34", f"::{METADATA}", "2002:a9fe:a9fe::1", "2002:5db8:d822::1",
     "2001:0:4136:e378:8000:63bf:5601:5601", "64:ff9b::a9fe:a9fe", "64:ff9b::5db8:d822", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::"],
)  # fmt: skip
def test_an_ipv4_address_inside_an_ipv6_one_does_not_slip_through(address: str) -> None:
    assert wrong(address) is not None
    assert wrong(address, "0.0.0.0/0") is not None


def test_a_sites_nat64_may_be_named_and_still_leads_to_no_private_address() -> None:
    assert wrong("64:ff9b::5db8:d822", "64:ff9b::/96") is None
    assert wrong("64:ff9b::a9fe:a9fe", "64:ff9b::/96") is not None
    assert wrong("64:ff9b::a01:203", "64:ff9b::/96") is not None
    assert wrong("64:ff9b::a01:203", "64:ff9b::/96", "10.1.0.0/16") is None
    assert wrong("64:ff9b:1::5db8:d822", "64:ff9b:1::/48") is None
    assert wrong("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1::/48") is not None, "RFC 6052's form for a prefix of 48 bits"
    assert wrong("64:ff9b:1:aa:a9:fea9:fe00:0", "64:ff9b:1::/48") is not None, "for one of 56"
    assert wrong("64:ff9b:1:aaaa:a9:fea9:fe00:0", "64:ff9b:1::/48") is not None, "for one of 64"


def test_the_unspecified_address_is_never_dialled_because_it_is_this_host() -> None:
    assert judge(ipaddress.IPv4Address(0), named(("0.0.0.0/0", "0.0.0.0/32"))) is not None


def test_an_address_with_a_scope_is_refused() -> None:
    assert wrong("fe80::1%1", "fe80::/10") == "scoped"


@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_address_is_public_that_python_calls_private(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast


@given(st.integers(0, 2**32 - 1))
def test_whatever_wraps_an_address_is_judged_as_the_address(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    for base in (0xFFFF << 32, 0x64FF9B << 96, 0x64FF9B0001 << 80):
        outer = ipaddress.IPv6Address(base | number)
        assert inner in embedded(outer) or number == 0
        if judge(inner) is not None:
            assert judge(outer, named(("::/0", "64:ff9b::/96", "64:ff9b:1::/48"))) is not None


@given(st.integers(0, 2**128 - 1), st.sampled_from(["::/0", "10.0.0.0/8", "0.0.0.0/0", "fd00::/8"]))
def test_every_address_has_a_judgement_and_no_network_of_the_other_family_changes_it(number: int, network: str) -> None:
    address = ipaddress.IPv6Address(number)
    without = judge(address)
    other = tuple(each for each in named((network,)) if each.version == 4)
    assert without == judge(address, other) or embedded(address)
