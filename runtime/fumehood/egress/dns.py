"""Answers to a box's questions for names: from the profile alone, never from upstream, so no question leaves the host.

Pure. A known name has an A and an AAAA record with its synthetic addresses and no record of any other type (TXT, HTTPS, SVCB, ANY:
no answer, so that nothing is learnt of encrypted hellos or other ports); any other name does not exist. Questions are read strictly
before dnspython sees them: one question, no compression, no records but EDNS. Imports dnspython: only where a gate is open.
Sources: RFC 1035 4, RFC 6891, RFC 8020, RFC 8482.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from fumehood.egress.names import MOST_NAMES, Names
from fumehood.egress.refusals import Why

NAME_NOT_LISTED = Why("name_not_listed", "no rule names this", "Add a rule for the name to `network.egress`, if it is right.")
TOO_MANY_NAMES = Why(
    "too_many_names", f"the task has asked for {MOST_NAMES} names already", "List the names one by one instead of a wildcard."
)
QUESTION_MALFORMED = Why("question_malformed", "this is not a question for a name", "Use a resolver library that follows RFC 1035.")

MOST_BYTES = 1024
_TTL_S = 60
_HEADER = struct.Struct("!6H")
_IS_ANSWER, _OPCODE, _TRUNCATED, _RECURSION = 0x8000, 0x7800, 0x0200, 0x0100
_IN = 1
_MOST_SHOWN = 253


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back (None: nothing), and what was asked as far as it could be read. `why` when it was refused."""

    reply: bytes | None
    name: str | None = None
    kind: str | None = None
    code: str = ""
    why: Why | None = None


def answer(data: bytes, names: Names) -> Answer:
    """The answer to one message from a box."""
    if len(data) < _HEADER.size or data[2] & 0x80:
        return Answer(None, why=QUESTION_MALFORMED)  # answering an answer can go on for ever
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _OPCODE:
        return Answer(_bare(number, flags, dns.rcode.NOTIMP), code="NOTIMP", why=QUESTION_MALFORMED)
    end = _end_of_question(data)
    if end is None or questions != 1 or answers or authorities or additional > 1 or flags & _TRUNCATED or len(data) > MOST_BYTES:
        return _malformed(number, flags)
    try:
        asked = dns.message.from_wire(data)
    except dns.exception.DNSException:
        return _malformed(number, flags)
    if asked.had_tsig or (additional and asked.edns < 0):
        return _malformed(number, flags)
    question = asked.question[0]
    name = _text(data)
    kind = dns.rdatatype.to_text(question.rdtype)
    code, records, why = dns.rcode.NOERROR, [], None
    if question.rdclass != dns.rdataclass.IN:
        code, why = dns.rcode.REFUSED, QUESTION_MALFORMED
    elif not names.knows(name):
        code, why = dns.rcode.NXDOMAIN, NAME_NOT_LISTED
    elif question.rdtype in {dns.rdatatype.A, dns.rdatatype.AAAA}:
        address = names.address_of(name)
        if address is None:
            code, why = dns.rcode.SERVFAIL, TOO_MANY_NAMES
        else:
            text = address.v4 if question.rdtype == dns.rdatatype.A else address.v6
            records = [dns.rrset.from_text(question.name, _TTL_S, dns.rdataclass.IN, question.rdtype, text)]
    response = dns.message.make_response(asked, recursion_available=True)
    response.flags |= dns.flags.AA
    response.set_rcode(code)
    response.answer = records
    return Answer(response.to_wire(), name=name[:_MOST_SHOWN], kind=kind, code=dns.rcode.to_text(code), why=why)


def refused(data: bytes) -> bytes | None:
    """A refusal that costs next to nothing: for a gate that is shut, and for a box that asks too often."""
    if len(data) < _HEADER.size or data[2] & 0x80:
        return None
    number, flags = struct.unpack_from("!HH", data)
    end = _end_of_question(data)
    if end is None or data[4:6] != b"\0\1":
        return _bare(number, flags, dns.rcode.REFUSED)
    header = _HEADER.pack(number, _IS_ANSWER | flags & _RECURSION | dns.rcode.REFUSED, 1, 0, 0, 0)
    return header + data[_HEADER.size : end]


def _malformed(number: int, flags: int) -> Answer:
    return Answer(_bare(number, flags, dns.rcode.FORMERR), code="FORMERR", why=QUESTION_MALFORMED)


def _bare(number: int, flags: int, code: int) -> bytes:
    return _HEADER.pack(number, _IS_ANSWER | flags & (_OPCODE | _RECURSION) | code, 0, 0, 0, 0)


def _labels(data: bytes) -> tuple[list[bytes], int] | None:
    """The labels of the question's name and where they end; None when they do not, or point elsewhere."""
    place, labels = _HEADER.size, list[bytes]()
    while place < len(data):
        size = data[place]
        place += 1
        if size == 0:
            return (labels, place) if place - _HEADER.size <= 255 else None
        if size > 63:  # a pointer: to itself, perhaps
            return None
        labels.append(data[place : place + size])
        place += size
    return None


def _end_of_question(data: bytes) -> int | None:
    found = _labels(data)
    return None if found is None or found[1] + 4 > len(data) else found[1] + 4


def _text(data: bytes) -> str:
    """The name as bytes one to one, in lower-case: `Names` refuses all but letters, digits and hyphens, and a dot in a label."""
    labels, _ = _labels(data) or ([], 0)
    return ".".join(label.decode("latin-1").replace(".", "\\.") for label in labels).lower()
