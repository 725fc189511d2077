from __future__ import annotations

import struct

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress.dns import MOST_BYTES, NAME_NOT_LISTED, QUESTION_MALFORMED, TOO_MANY_NAMES, Answer, answer, refused
from fumehood.egress.names import MOST_NAMES, Names
from fumehood.reach import EgressKind, EgressRule


def names() -> Names:
    return Names([EgressRule(kind=EgressKind.TLS, name=name, ports=(443,)) for name in ("api.example", "*.cdn.example")])


def ask(name: str, kind: str = "A", **fields: object) -> tuple[Answer, dns.message.Message]:
    found = answer(dns.message.make_query(name, kind, **fields).to_wire(), names())  # type: ignore[arg-type]
    assert found.reply is not None
    return found, dns.message.from_wire(found.reply)


def question(*labels: bytes, kind: int = 1, flags: int = 0x100, counts: tuple[int, int, int, int] = (1, 0, 0, 0), tail: bytes = b"") -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!6H", 7, flags, *counts) + name + struct.pack("!HH", kind, 1) + tail


@pytest.mark.parametrize(("kind", "text"), [("A", "198.18.0.2"), ("AAAA", "fd53::2")])
def test_a_name_of_the_profile_has_its_synthetic_addresses(kind: str, text: str) -> None:
    found, reply = ask("api.example", kind, use_edns=0)
    assert [record.address for record in reply.answer[0]] == [text]
    assert (found.name, found.kind, found.code, found.why) == ("api.example", kind, "NOERROR", None)
    assert reply.flags & dns.flags.QR
    assert reply.flags & dns.flags.RA
    assert reply.edns == 0


def test_the_answers_name_is_spelled_as_the_question_was() -> None:
    found, reply = ask("aPi.ExAmple")
    assert reply.answer[0].name.to_text() == "aPi.ExAmple."
    assert found.name == "api.example"


@pytest.mark.parametrize("kind", ["TXT", "ANY", "HTTPS", "SVCB", "MX", "NS", "SRV", "CNAME", "NULL", "TYPE65280"])
def test_a_known_name_has_no_record_of_any_other_type(kind: str) -> None:
    _, reply = ask("www.cdn.example", kind)
    assert (reply.rcode(), reply.answer, reply.authority, reply.additional) == (dns.rcode.NOERROR, [], [], [])


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "ANY", "HTTPS", "PTR"])
@pytest.mark.parametrize("name", ["secret.attacker.example", "example", ".", "a.b.cdn.example", "cdn.example", "2.0.18.198.in-addr.arpa"])
def test_any_other_name_does_not_exist_whatever_is_asked_of_it(name: str, kind: str) -> None:
    found, reply = ask(name, kind)
    assert (reply.rcode(), reply.answer) == (dns.rcode.NXDOMAIN, [])
    assert found.why is NAME_NOT_LISTED


@pytest.mark.parametrize(
    "labels",
    [(b"api.example",), (b"api", b"example\0"), (b"a\0pi", b"example"), (b"api", b"exam ple"), (b"\xe4pi", b"example"), (b"*", b"cdn", b"example"),
     (b"a.b", b"cdn", b"example"), (b"_a", b"cdn", b"example"), (b"-a", b"cdn", b"example"), (b"", )],
)  # fmt: skip
def test_names_outside_letters_digits_and_hyphens_do_not_exist(labels: tuple[bytes, ...]) -> None:
    found = answer(question(*labels), names())
    assert found.reply is not None
    assert found.reply[3] & 15 in {dns.rcode.NXDOMAIN, dns.rcode.FORMERR}
    assert found.why is not None


@pytest.mark.parametrize(
    "data",
    [
        question(b"api", b"example", counts=(2, 0, 0, 0)),
        question(b"api", b"example", counts=(0, 0, 0, 0)),
        question(b"api", b"example", counts=(1, 1, 0, 0)),
        question(b"api", b"example", counts=(1, 0, 1, 0)),
        question(b"api", b"example", counts=(1, 0, 0, 2)),
        question(b"api", b"example", counts=(1, 0, 0, 1), tail=b"\0\0\x01\0\x01\0\0\0\0\0\0"),  # a record that is not EDNS
        question(b"api", b"example", tail=b"trailing"),
        question(b"api", b"example", flags=0x0300),  # truncated, in a question
        question(*[b"a" * 63] * 4, b"api"),  # 255 bytes and more
        question(b"api", b"example")[:-1],
        struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01",  # a name that points to itself
        struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x03api\xc0\x0c\0\x01\0\x01",
        struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01",  # a label of 64
        struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x80\0\0\x01\0\x01",
        question(b"api", b"example", counts=(1, 0, 0, 1), tail=b"\0\0\x29\x05\0\0\0\0\0" + b"\x04\x10" + bytes(MOST_BYTES)),
    ],
)
def test_what_is_not_one_plain_question_is_malformed(data: bytes) -> None:
    found = answer(data, names())
    assert found.reply is not None
    assert dns.message.from_wire(found.reply, question_only=True).rcode() == dns.rcode.FORMERR
    assert found.why is QUESTION_MALFORMED


@pytest.mark.parametrize("data", [b"", b"\0" * 11, question(b"api", b"example", flags=0x8180)])
def test_what_is_no_question_at_all_gets_no_answer_to_answer_again(data: bytes) -> None:
    assert answer(data, names()).reply is None
    assert refused(data) is None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_operations_are_not_implemented(opcode: int) -> None:
    found = answer(question(b"api", b"example", flags=opcode << 11), names())
    assert found.reply is not None
    assert found.reply[3] & 15 == dns.rcode.NOTIMP


def test_another_class_is_refused() -> None:
    data = question(b"api", b"example")[:-2] + b"\0\x03"
    assert answer(data, names()).code == "REFUSED"


def test_a_box_that_makes_up_names_is_told_to_stop() -> None:
    known = names()
    found = [answer(question(b"n%d" % number, b"cdn", b"example"), known) for number in range(MOST_NAMES + 5)]
    assert [each.why for each in found[: MOST_NAMES - 1]] == [None] * (MOST_NAMES - 1)
    assert {(each.code, each.why) for each in found[MOST_NAMES - 1 :]} == {("SERVFAIL", TOO_MANY_NAMES)}


def test_a_shut_gate_refuses_with_the_question_in_its_answer() -> None:
    said = refused(question(b"api", b"example"))
    assert said is not None
    reply = dns.message.from_wire(said)
    assert reply.rcode() == dns.rcode.REFUSED
    assert reply.question[0].name.to_text() == "api.example."
    assert reply.id == 7


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_and_every_answer_is_smaller_than_a_datagram(data: bytes) -> None:
    known = names()
    for each in (data, struct.pack("!6H", 1, 0, 1, 0, 0, 0) + data, question(b"api", b"example", counts=(1, 0, 0, 1), tail=data)):
        found = answer(each, known)
        assert found.reply is None or len(found.reply) <= 512
        refused(each)


@given(st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=5), st.integers(0, 65535))
def test_nothing_but_the_profiles_names_ever_has_an_address(labels: list[bytes], kind: int) -> None:
    found = answer(question(*labels, kind=kind), names())
    if found.reply and dns.message.from_wire(found.reply).answer:
        assert found.name == "api.example" or str(found.name).endswith(".cdn.example")
