"""Which requests an HTTP rule allows: `METHOD /path` patterns, and paths that mean one thing only. Pure.

The gate and the server behind it must read a path alike, or a rule that allows `/public/**` lets `/public/..%2fadmin` through. So a
path is judged normalised, segment by segment and percent-decoded, and one that servers are known to read in different ways is refused
(rule 21), wherever there is something to judge: a rule with `allow`, or with a credential. A rule without either allows
every path of its name, in any spelling.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from fumehood.reach import EgressRule

ANY = "*"
ANY_NUMBER = "**"
_METHOD = re.compile(r"\*|[A-Z][A-Z0-9-]{0,31}")
# `&'()` and the like are legal and plain; `;` begins path parameters, which servers drop before they look for dot segments.
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()+,=:@%-]*")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
# What means something to a server that decodes first and splits later, or twice.
_TELLING = frozenset("/\\;?#\x7f") | {chr(code) for code in range(32)}


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of `allow`: a method or `*`, and the segments of a path, decoded."""

    method: str
    segments: tuple[str, ...]

    def matches(self, method: str, segments: Sequence[str]) -> bool:
        """Whether a request's method and path fit."""
        return self.method in (ANY, method) and _fits(self.segments, segments)


def pattern(text: str) -> Pattern:
    """Read `METHOD /path`. Raises ValueError, with a sentence for whoever wrote the profile."""
    method, space, path = text.partition(" ")
    if not space or not path.startswith("/"):
        raise ValueError(f"{text!r} must be `METHOD /path`")
    if _METHOD.fullmatch(method) is None:
        raise ValueError(f"{method!r} is not a method: write it in capitals, or `*` for every one")
    if "?" in path or "#" in path:
        raise ValueError(f"{path!r}: a query is no part of the match")
    segments = []
    for segment in path[1:].split("/"):
        if segment in (ANY, ANY_NUMBER):
            segments.append(segment)
            continue
        if ANY in segment:
            raise ValueError(f"{segment!r}: `*` and `**` stand for whole segments")
        read = _read(segment.encode())
        if isinstance(read, Ambiguous):
            raise ValueError(f"{path!r}: {read.why}, which no request may have")  # noqa: TRY004 - the text is wrong, not its type
        segments.append(read)
    if "" in segments[:-1]:
        raise ValueError(f"{path!r}: an empty segment, which no request may have")
    return Pattern(method, tuple(segments))


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Why a path is not judged: servers would read it in different ways."""

    why: str


def segments_of(path: bytes) -> tuple[str, ...] | Ambiguous:
    """A path's segments, decoded; the path begins with `/` and has no query. `/a/` has an empty one at its end."""
    parts = path[1:].split(b"/")
    if b"" in parts[:-1]:
        return Ambiguous("it has an empty segment (`//`)")
    segments = []
    for part in parts:
        read = _read(part)
        if isinstance(read, Ambiguous):
            return read
        segments.append(read)
    return tuple(segments)


def _read(part: bytes) -> str | Ambiguous:
    if _BAD_ESCAPE.search(part):
        return Ambiguous("it has a percent sign that begins no escape")
    text = part.decode("latin-1")
    if _SEGMENT.fullmatch(text) is None:
        return Ambiguous("it has a character that a path spells in escapes, or a `;`")
    try:
        decoded = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        return Ambiguous("its escapes are not UTF-8")  # an overlong `/` too: %c0%af
    # Full-width forms and the like become `/` and `.` in servers that normalise names.
    normal = unicodedata.normalize("NFKC", decoded)
    if _TELLING.intersection(decoded) or _TELLING.intersection(normal):
        return Ambiguous("it has an encoded separator or control character")
    if normal.strip(" ") in (".", ".."):
        return Ambiguous("it has a dot segment")
    if _ESCAPE.search(normal):
        return Ambiguous("it is escaped twice")
    return decoded


def _fits(wanted: Sequence[str], found: Sequence[str]) -> bool:
    """Match with `**` in any place, in time that grows with the product of the lengths (backtracking would be a bomb)."""
    # reachable[j]: the patterns so far match the first j segments.
    reachable = [True] + [False] * len(found)
    for want in wanted:
        if want == ANY_NUMBER:
            first = next((place for place, fits in enumerate(reachable) if fits), len(found) + 1)
            reachable = [place >= first for place in range(len(found) + 1)]
            continue
        reachable = [False] + [
            fits and (segment == want or (want == ANY and segment != ""))
            for fits, segment in zip(reachable, found, strict=False)
        ]
    return reachable[-1]


def judges_paths(rule: EgressRule) -> bool:
    """Whether a path makes a difference to a rule."""
    return rule.allow is not None or rule.credential is not None


@functools.lru_cache(maxsize=256)
def _patterns(allow: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(pattern(text) for text in allow)


def allows(rule: EgressRule, method: str, segments: Sequence[str] | None) -> bool:
    """Whether a rule allows a request. `segments` is None where no path is judged, and for `OPTIONS *`, which no pattern matches."""
    if rule.allow is None:
        return True
    return segments is not None and any(each.matches(method, segments) for each in _patterns(rule.allow))
