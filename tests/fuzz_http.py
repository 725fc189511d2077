"""For `scripts/fuzz`: bytes that a box may send as a request's head or body, and bytes that a server may answer with a secret in.

`head(data)` and `scrub(data)` raise AssertionError when a promise is broken, and nothing else whatever the bytes are.
"""

from __future__ import annotations

import h11

from fumehood.egress.http_judge import HeadReader, Place, Refusal, judge
from fumehood.egress.scrub import Scrubber
from fumehood.reach import EgressKind, EgressRule
from fumehood.screening.spellings import Spellings, forms

_RULE = EgressRule(kind=EgressKind.HTTP, name="api.example.org", ports=(443,), allow=("* /public/**",))
_PLACE = Place(name="api.example.org", port=443, rule=_RULE)
_SECRET = "ghs_S3cret/+0123456789"  # noqa: S105 - a canary
_SPELLINGS = Spellings(forms(_SECRET, "user").items(), b"fumehood0abcdef")


def head(data: bytes) -> None:
    """Whatever is let through is one request for our host, below /public, and is read again as the same by h11."""
    reader = HeadReader()
    for start in range(0, len(data), 16):
        reader.feed(data[start : start + 16])
        if reader.ready():
            break
    if reader.ready() is not True:
        return
    found = judge(reader.take(), _PLACE)
    if isinstance(found, Refusal):
        return
    request, _ = found
    assert request.path == b"/public" or request.path.startswith(b"/public/") or b"%" in request.path
    assert b".." not in request.path.split(b"/")
    again = h11.Connection(h11.SERVER)
    lines = [b"%s %s HTTP/1.1" % (request.method, request.target), b"host: " + _PLACE.host]
    lines += [name + b": " + value for name, value in request.headers]
    again.receive_data(b"\r\n".join(lines) + b"\r\n\r\n")
    event = again.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target, list(event.headers)[1:]) == (request.method, request.target, request.headers)


def scrub(data: bytes) -> None:
    """No spelling goes out, and as many bytes as came in, however the stream is cut."""
    scrubber = Scrubber(_SPELLINGS)
    text = data.replace(b"\0", _SECRET.encode())
    out, at = b"", 0
    while at < len(text):
        size = 1 + text[at] % 23
        out += scrubber.feed(text[at : at + size])
        at += size
    out += scrubber.end()
    assert len(out) == len(text)
    assert _SECRET.encode() not in out
